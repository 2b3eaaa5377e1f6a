"""Which language a text is in, and how sure that is.

Knows texts, tags and an identifier; knows no adapters. The identifier is py3langid's (langid.py,
P12-3005: naive Bayes over bytes, 140 languages, offline), unless another one is given: it was the
most accurate of those that are small, see docs/languages.md.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from adapters_hub.errors import LanguageError, SettingsError
from adapters_hub.extras import require
from adapters_hub.library import languages

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

Probabilities = Mapping[str, float]
"""Tag → how probable it is that a text is in this language, over all that an identifier knows."""

Identifier = Callable[[Sequence[str]], Sequence[Probabilities]]
"""Texts → the probabilities of each. It is called from several threads at once."""

MINIMUM = 0.5
"""The least probability, among the languages allowed, of one that is taken."""

COVERED = 0.1
"""The least probability of all languages allowed together; below it a text is in another one."""

READ = 1000
"""Characters of a text that are looked at, from its first letter on."""


@dataclass(frozen=True)
class Identified:
    """What was found for a text.

    ``language`` is one of the tags allowed, or None for a text that is undecided; ``likeliest`` is
    the best one all the same (None for a text without letters). ``probability`` is that of
    ``likeliest`` among the languages allowed, ``elsewhere`` the language outside of them that the
    text seems to be in, if it does.
    """

    language: str | None
    likeliest: str | None
    probability: float
    elsewhere: str | None = None


def identify(
    texts: Sequence[str],
    allowed: Iterable[str] | None = None,
    *,
    minimum: float = MINIMUM,
    identifier: Identifier | None = None,
) -> list[Identified]:
    """The language of each text among those allowed (BCP-47 tags; None: all that are known).

    Undecided is a text without letters, one whose likeliest language has less than ``minimum``
    among those allowed, and one that is in none of them. Tags of one language (``pt``, ``pt-BR``;
    ``sr``, ``sr-Latn``) are told apart by their scripts alone; else the shortest is taken. Raises
    `LanguageError` for a tag that is none and where the identifier fails, `MissingExtraError`
    without one.
    """
    if not 0 <= minimum <= 1:
        raise SettingsError(f"minimum={minimum}: must be a probability, between 0 and 1")
    ask = identifier or py3langid
    tags = None if allowed is None else tuple(dict.fromkeys(map(languages.canonical, allowed)))
    starts = [_start(text) for text in texts]
    lettered = [start for start in starts if start]
    answers = iter(_asked(ask, lettered) if lettered else ())
    return [
        _decided(start, next(answers), tags, minimum) if start else Identified(None, None, 0.0)
        for start in starts
    ]


def known_languages() -> frozenset[str]:
    """The tags of the languages that the identifier of the package knows."""
    return frozenset(_labels().values())


def py3langid(texts: Sequence[str]) -> list[Probabilities]:
    """The probabilities of py3langid's languages, by canonical tag."""
    model, labels = _model(), _labels()
    results: list[Probabilities] = []
    for text in texts:
        by_tag: dict[str, float] = {}
        for label, probability in model.rank(text):  # only reads, so threads may share it
            tag = labels.get(label)
            if tag is not None:
                by_tag[tag] = by_tag.get(tag, 0.0) + probability
        results.append(by_tag)
    return results


def _start(text: str) -> str:
    """A text from its first letter on, as far as it is looked at; empty without a letter."""
    first = next((at for at, letter in enumerate(text) if letter.isalpha()), len(text))
    return text[first : first + READ]


def _asked(ask: Identifier, texts: Sequence[str]) -> Sequence[Probabilities]:
    """What an identifier says, checked; `LanguageError` where it fails."""
    try:
        answers = list(ask(texts))
    except (LanguageError, ImportError):
        raise
    except Exception as error:  # a user's identifier may raise anything
        raise LanguageError(
            f"the identifier failed on {len(texts)} texts ({type(error).__name__}: {error}); "
            "name the languages instead: adapters=[…], one blend a text, or languages=[…]"
        ) from error
    if len(answers) != len(texts):
        raise LanguageError(f"the identifier gave {len(answers)} results for {len(texts)} texts")
    for probabilities in answers:
        for tag, value in probabilities.items():
            if not (math.isfinite(value) and value >= 0):
                raise LanguageError(f"the identifier gave {tag!r} the probability {value}")
    return answers


def _decided(
    text: str, probabilities: Probabilities, allowed: tuple[str, ...] | None, minimum: float
) -> Identified:
    """The language of one text, from the probabilities of all."""
    whole = sum(probabilities.values())
    if not whole:
        return Identified(None, None, 0.0)
    top = max(probabilities, key=lambda tag: probabilities[tag])
    if allowed is None:
        best = probabilities[top] / whole
        return Identified(top if best >= minimum else None, top, best)
    tags_of: dict[str, list[str]] = {}
    for tag in allowed:
        if (known := _known_as(tag, probabilities)) is not None:
            tags_of.setdefault(known, []).append(tag)
    covered = sum(probabilities[known] for known in tags_of)
    outside = None if top in tags_of else top
    if not covered:
        return Identified(None, None, 0.0, outside)
    known = max(tags_of, key=lambda tag: probabilities[tag])
    probability = probabilities[known] / covered
    likeliest = _by_script(text, tags_of[known])
    if covered / whole < COVERED:
        return Identified(None, likeliest, probability, outside)
    return Identified(likeliest if probability >= minimum else None, likeliest, probability)


def _known_as(tag: str, probabilities: Probabilities) -> str | None:
    """The tag by which an identifier knows a language: this very one, else without its region."""
    base = tag.partition("-")[0]
    return tag if tag in probabilities else base if base in probabilities else None


def _by_script(text: str, tags: Sequence[str]) -> str:
    """Of tags of one language the one in the script of a text, else the shortest."""
    ranked = sorted(tags, key=lambda tag: (len(tag), tag))
    if len(ranked) == 1:
        return ranked[0]
    counted = Counter(
        unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha()
    )
    written = counted.most_common(1)[0][0]
    return next((tag for tag in ranked if _script_name(tag) == written), ranked[0])


@lru_cache(maxsize=256)
def _script_name(tag: str) -> str:
    """The script of a tag as Unicode's names of letters begin: LATIN, CYRILLIC."""
    import langcodes

    script = languages.script(tag)
    name = langcodes.Language.make(script=script).script_name() if script else ""
    return name.partition(" ")[0].upper()


@lru_cache(maxsize=1)
def _model() -> "LanguageIdentifier":
    langid = require("py3langid.langid", "identify", "identifying the language of texts")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def _labels() -> Mapping[str, str]:
    """The identifier's labels → canonical tags, without those for no language."""
    labels = [label for label in _model().labels if not languages.undetermined(label)]
    return {label: languages.canonical(label) for label in labels}
