"""``auto`` in a blend: the term that stands for the adapter of each row's own language.

    auto, auto?        nothing for a row whose language is not found or has no adapter
    auto?en            the adapter of this term for such a row
    auto?proxy         the proxy of its language, if that is found, and else nothing
    lang:auto          the same as auto, where an adapter or a domain has that name

Knows terms and what may be set; identifies no language.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PROXY = "proxy"
"""The fallback that is no term of its own: a blend of near languages, see `proxies`."""

_AUTO = re.compile(r"(lang:)?auto(?:\?(.*))?")


@dataclass(frozen=True)
class RowTerm:
    """A term that means another adapter in each row.

    ``fallback`` is the term for rows without an adapter. A ``plain`` one may be a name instead.
    """

    fallback: str | None = None
    plain: bool = False


def row_term(term: str) -> RowTerm | None:
    """How ``auto`` is meant in a term of a blend; None for another term."""
    match = _AUTO.fullmatch(term)
    if match is None:
        return None
    return RowTerm(match[2] or None, plain=not match[1] and not match[2])


@dataclass(frozen=True)
class Auto:
    """How ``auto`` finds the language of a row.

    Among ``languages``, or those of the library; ``minimum`` is the least probability that counts.
    ``identifier`` takes texts and gives the probability of each language, by tag, for each.
    """

    languages: tuple[str, ...] | None = None
    minimum: float | None = None
    identifier: Callable[[Sequence[str]], Sequence[Mapping[str, float]]] | None = None
