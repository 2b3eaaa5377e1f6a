"""Languages: any usual way to write one → one canonical BCP-47 tag, and the closest match.

Knows CLDR's names, codes and distances (through ``langcodes``); knows nothing of adapters.
"""

import difflib
from collections.abc import Iterable
from functools import lru_cache

from adapters_hub.errors import LanguageError

MAX_DISTANCE = 10
"""Default limit of `closest`. CLDR's distance: 0 the same, below 10 a reader of one usually reads
the other (pt-PT for pt-BR: 5, Swiss German for German: 8), above 50 another script or language."""

UNDETERMINED = {"und", "mul", "mis", "zxx"}
"""Codes of ISO 639 for a language that is undetermined, several, uncoded, or none."""


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The canonical BCP-47 tag of a language given by name, ISO 639 code or tag.

    ``Swahili``, ``swa``, ``swh`` → ``sw``; ``iw`` → ``he``; ``cmn`` → ``zh``; ``pt_br`` →
    ``pt-BR``. A code of one language inside a macrolanguage becomes the code people use for the
    whole (RFC 5646 §4.5 as CLDR applies it). Raises `LanguageError` for what is no known language.
    """
    import langcodes  # 50 ms, and not everyone who imports the package asks for a language

    wanted = text.strip()
    if not wanted.isprintable():
        raise LanguageError(f"{wanted!r} is not a language")
    try:
        tag = langcodes.standardize_tag(wanted, macro=True)
        if langcodes.tag_is_valid(tag) and tag.partition("-")[0] not in UNDETERMINED:
            return tag
    except ValueError:
        pass  # not shaped like a tag: it may be a name
    code = _by_name(wanted)
    if code is None or code in UNDETERMINED:
        raise LanguageError(_unknown(wanted))
    return langcodes.standardize_tag(code, macro=True)


def is_language(text: str) -> bool:
    """Whether `canonical` would accept the text."""
    try:
        canonical(text)
    except LanguageError:
        return False
    return True


def undetermined(text: str) -> bool:
    """Whether a tag's language is undetermined, several, uncoded or none: ``und``, ``mul-Latn``."""
    return text.strip().lower().replace("_", "-").partition("-")[0] in UNDETERMINED


def name(tag: str) -> str:
    """The English name of a tag: ``pt-BR`` → ``Portuguese (Brazil)``."""
    import langcodes

    return langcodes.Language.get(tag).display_name()


def script(tag: str) -> str | None:
    """The script a tag is written in (ISO 15924): ``sr`` → ``Cyrl``, ``sr-Latn`` → ``Latn``."""
    import langcodes

    return langcodes.Language.get(tag).maximize().script


def distance(wanted: str, offered: str) -> int:
    """CLDR's distance from the language a reader wants to the one offered: 0 is the same."""
    import langcodes

    return langcodes.tag_distance(wanted, offered)


def closest(
    wanted: str, offered: Iterable[str], max_distance: int = MAX_DISTANCE
) -> tuple[str, int] | None:
    """The offered tag nearest to the wanted one and its distance; None if all are too far.

    Equal distances go to the very tag that is wanted (``en-US`` and ``en`` are at distance 0), then
    to the shorter one (``pt`` before ``pt-PT``), then to the alphabet.
    """
    wanted = canonical(wanted)
    ranked = sorted((distance(wanted, tag), tag != wanted, len(tag), tag) for tag in set(offered))
    if not ranked or ranked[0][0] > max_distance:
        return None
    return ranked[0][3], ranked[0][0]


def _by_name(wanted: str) -> str | None:
    """The code of a language's whole name, in English or in that language.

    ``name_to_code`` also takes a name with anything behind it: hotel is Hote (hot) and an l.
    """
    from language_data.names import TRIES, name_to_code, normalize_name

    code = name_to_code("language", wanted)
    return code if normalize_name(wanted) in TRIES["und/name_to_language"] else None


def _unknown(wanted: str) -> str:
    from langcodes.language_lists import CLDR_LANGUAGES

    names = {name(tag).lower(): tag for tag in CLDR_LANGUAGES}
    near = difflib.get_close_matches(wanted.lower(), names, n=3, cutoff=0.7)
    hint = ", ".join(f"{near_name.title()} ({names[near_name]})" for near_name in near)
    return (
        f"{wanted!r} is not a language: give an ISO 639 code, a BCP-47 tag or an English name"
        + (f" (close: {hint})" if hint else " such as de, pt-BR, Swahili")
    )
