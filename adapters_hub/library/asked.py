"""Resolves a request for a language, a domain or a blend that names no backbone.

Knows a library and its adapters' metadata; loads nothing.
"""

from collections.abc import Sequence

from adapters_hub.errors import BackboneMismatchError, LanguageError, NotFoundError
from adapters_hub.library import languages
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.library import Library
from adapters_hub.library.row_terms import row_term


def of_rows(term: str, library: Library) -> bool:
    """Whether a term is ``auto`` and no adapter or domain has that name."""
    meant = row_term(term)
    named = meant is not None and meant.plain and ("auto" in library or library.list(domain="auto"))
    return meant is not None and not named


def language_adapters(library: Library, infos: Sequence[AdapterInfo]) -> list[AdapterInfo]:
    """The adapters with a language and no domain; with ``infos``, those for their backbone only."""
    listed = library.list(fingerprint=infos[0].fingerprint if infos else None)
    return [info for info in listed if info.language and not info.domain]


def language_term(text: str, library: Library) -> str:
    """The argument of `load` as a blend's text; a language becomes the term ``lang:``.

    A name that is also some language's code ("one" is Oneida's) means the adapter, unless there is
    one for that language.
    """
    try:
        tag = languages.canonical(text)
    except LanguageError:
        return text
    named = text in library and not library.list(tag)
    return f"name:{text}" if named else f"lang:{text}"


def backbone_of(
    infos: Sequence[AdapterInfo], asked: str, revision: str | None
) -> tuple[str, str | None]:
    """The backbone that all the adapters name, and the revision given, else the one they pin."""
    backbones = {info.backbone for info in infos}
    if not infos:
        raise NotFoundError(f"load({asked!r}): no adapter is left of it, and so no backbone")
    if len(backbones) != 1 or None in backbones:
        raise BackboneMismatchError(
            f"load({asked!r}): the adapters must name one backbone, and name "
            + ", ".join(f"{info.backbone} ({info.name})" for info in infos)
            + "; load_backbone(...) takes it from you"
        )
    revisions = {revision} if revision else {info.revision for info in infos if info.revision}
    if len(revisions) > 1:
        raise BackboneMismatchError(
            f"load({asked!r}): the adapters pin different revisions of {infos[0].backbone}: "
            + ", ".join(f"{info.revision} ({info.name})" for info in infos if info.revision)
            + "; give revision=... to choose one"
        )
    return infos[0].backbone or "", next(iter(revisions), None)
