"""Rows whose adapter their text decides: ``auto`` in blends, for all tasks.

Knows texts, the languages that were found for them, and names; what an adapter does in a row is the
runtime's. Every task takes the blends of its rows from `row_blends`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from adapters_hub.errors import NotFoundError
from adapters_hub.library import languages
from adapters_hub.library.blend import Blend
from adapters_hub.library.commands import train_command
from adapters_hub.library.row_terms import PROXY, Auto, row_term
from adapters_hub.runtime.core import Active, Adapters, Languages, Runtime
from adapters_hub.text.identification import MINIMUM, Identified, identify, known_languages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowLanguage:
    """What ``auto`` is in a row: the language found, or None, and the blend that follows from it.

    ``probability`` is that of the likeliest language among those looked for, whether or not it was
    enough; ``reason`` says in words what was found and what is taken instead.
    """

    language: str | None
    probability: float
    blend: Blend
    reason: str


def row_blends(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    given: Languages = None,
    *,
    known: Sequence[str] | None = None,
) -> list[Blend]:
    """One resolved blend a row, as `Runtime.blends`, with ``auto`` set to each row's language.

    The language of a row that ``given`` names is that one, else one that is ``known`` otherwise;
    the text decides the others'.
    """
    rows = len(texts)
    wanted = _each_row(model, rows, adapters)
    terms = {term for blend in set(wanted) for term in model.residents.split(blend)[0].terms}
    if not terms:
        return model.blends(rows, adapters, given)
    model.blends(rows, None, given)  # which checks what is given
    tags = [given] * rows if given is None or isinstance(given, str) else list(given)
    if known is not None:
        tags = [tag or other for tag, other in zip(tags, known, strict=True)]
    meant: list[dict[str, Blend]] = [{} for _ in texts]
    for term in sorted(terms):
        having = [row for row in range(rows) if term in wanted[row].terms]
        fallback = _fallback(term)
        row_results = row_languages(
            model, [texts[row] for row in having], fallback, [tags[row] for row in having]
        )
        for row, language in zip(having, row_results, strict=True):
            meant[row][term] = language.blend
    blends = [blend.expand(of) for blend, of in zip(wanted, meant, strict=True)]
    return model.blends(rows, blends, given)


def row_languages(
    model: Runtime,
    texts: Sequence[str],
    fallback: str | None = None,
    given: Sequence[str | None] | None = None,
) -> list[RowLanguage]:
    """What ``auto``, or ``auto?`` and a ``fallback``, is for each text; ``given`` is known before.

    Raises `NotFoundError` for a library without a language adapter, or a fallback that is none,
    and `LanguageError` where the identifier fails.
    """
    settings = model.auto
    there = model.residents.languages()
    if not there:
        raise NotFoundError(
            f"auto: {model.library.root} has no adapter of a language alone for this backbone; "
            f"train one: {train_command('language', '--language', 'TAG', '--data', 'FILE')}"
        )
    instead = Blend()
    if fallback is not None and fallback != PROXY:
        instead = model.resolve(fallback)
    allowed = tuple(there if settings.languages is None else settings.languages)
    if settings.identifier is None:
        _say_unknown(allowed)
    given = [None] * len(texts) if given is None else given
    asked = dict.fromkeys(text for text, tag in zip(texts, given, strict=True) if not tag)
    by_text = dict(zip(asked, _identified([*asked], allowed, settings), strict=True))
    if fallback == PROXY:
        by_text |= _elsewhere(by_text, settings)
    results = []
    for text, tag in zip(texts, given, strict=True):
        identified = Identified(tag, tag, 1.0) if tag else by_text[text]
        results.append(_row_language(model, identified, fallback, instead, bool(tag)))
    return results


def _row_language(
    model: Runtime, identified: Identified, fallback: str | None, instead: Blend, given: bool
) -> RowLanguage:
    """The blend of one row, from its language."""
    language, how = identified.language, "given" if given else "identified"
    if language is not None:
        name = model.residents.language_adapter(language)
        if name is not None:
            return RowLanguage(language, identified.probability, _exact(name), how)
        if fallback == PROXY:
            proxy = model.residents.proxy(language)
            if proxy is not None:
                why = f"{how}, without an adapter: {proxy.reason}"
                return RowLanguage(language, identified.probability, proxy.blend, why)
        why = f"{how}, without an adapter"
    elif identified.elsewhere is not None:
        why = f"seems to be in {identified.elsewhere}, which is none of the languages looked for"
    elif identified.likeliest is None:
        why = "no letters to go by"
    else:
        why = f"undecided, {identified.likeliest} is the likeliest"
    taken = f"{instead} instead" if instead else "no adapter for it"
    return RowLanguage(language, identified.probability, instead, f"{why}; {taken}")


def _identified(
    texts: list[str], allowed: Sequence[str] | None, settings: Auto
) -> list[Identified]:
    minimum = MINIMUM if settings.minimum is None else settings.minimum
    return identify(texts, allowed, minimum=minimum, identifier=settings.identifier)


def _elsewhere(by_text: Mapping[str, Identified], settings: Auto) -> dict[str, Identified]:
    """The texts in none of the languages with an adapter, with the language that they are in."""
    texts = [text for text, one in by_text.items() if one.language is None and one.elsewhere]
    among = settings.languages
    return dict(zip(texts, _identified(texts, among, settings), strict=True)) if texts else {}


def _each_row(model: Runtime, rows: int, adapters: Adapters) -> list[Blend]:
    """The blend of each row as it was asked for; none for what `Runtime.blends` refuses anyway."""
    if isinstance(adapters, list | tuple) or not isinstance(
        adapters, Active | str | Blend | Mapping | None
    ):
        each = list(adapters)
        if len(each) != rows or any(isinstance(one, list | tuple) for one in each):
            return []
    else:
        each = [adapters] * rows
    return [
        model.active if isinstance(one, Active) else Blend.of(one)  # type: ignore[arg-type]
        for one in cast(list[object], each)
    ]


def _fallback(term: str) -> str | None:
    meant = row_term(term)
    return meant.fallback if meant else None


def _exact(name: str) -> Blend:
    return Blend(((name, 1.0),), exact=True)


@lru_cache(maxsize=64)  # so that each is said once, not in every call
def _say_unknown(allowed: tuple[str, ...]) -> None:
    known = known_languages()
    missing = [tag for tag in allowed if not {tag, tag.partition("-")[0]} & known]
    if missing:
        names = ", ".join(f"{tag} ({languages.name(tag)})" for tag in missing)
        log.warning("auto does not find rows in %s: the identifier does not know it", names)
