"""Blends: a weighted set of adapters as a value, ``"sw + 0.5*hotel - en"``.

Knows the grammar and the arithmetic; does not know which adapters exist.

    blend  = [sign] item { sign item }
    item   = [number "*"] term  |  term "*" number
    term   = plain ["?"]  |  ["lang:"] "auto?" plain
    plain  = ["lang:" | "domain:" | "name:" | "proxy:"] name
    name   = word characters and dots, in parts joined by single hyphens

A hyphen inside a name is part of it (``pt-BR``), so a minus needs a space before it. A term with a
question mark is optional: the adapter it means if there is one, else nothing. What ``auto`` and
``proxy:`` mean: `library.row_terms` and `library.proxies`.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Union

from adapters_hub.errors import BlendError


def _marks() -> str:
    """Combining marks as ranges for a regular expression, which Python's has no class for."""
    ranges: list[list[str]] = []
    for block in ((0x0300, 0x2100), (0xA600, 0xAC00), (0xFE20, 0xFE30), (0x10A00, 0x12000)):
        for character in map(chr, range(*block)):
            if not unicodedata.category(character).startswith("M"):
                continue
            if ranges and ord(ranges[-1][1]) == ord(character) - 1:
                ranges[-1][1] = character
            else:
                ranges.append([character, character])
    return "".join(f"{first}-{last}" for first, last in ranges)


# The vowel signs of Hindi or Tamil are parts of letters, and \w has them not.
_LETTER = rf"[\w{_marks()}]"
NAME = re.compile(rf"{_LETTER}+(?:[.\-]{_LETTER}+)*")
"""What a term may look like, and so what an adapter may be called."""
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_PLAIN = rf"(?:(?:lang|domain|name|proxy):)?{NAME.pattern}"
_TERM = rf"(?:(?:lang:)?auto\?{_PLAIN}|{_PLAIN}\??)"
_ITEM = re.compile(
    rf"\s*(?P<sign>[+\-])?\s*(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<term>{_TERM})"
    rf"(?:\s*\*\s*(?P<after>{_NUMBER}))?(?=\s|[+\-]|$)"
)

BlendLike = Union["Blend", str, None]
_MOST = 1e9  # what is added must stay a number in float32


@dataclass(frozen=True, init=False)
class Blend:
    """A weighted set of terms; immutable, hashable, ordered by first mention.

    ``Blend("de") + 0.5 * Blend("hotel") - "en"`` builds what ``Blend("de + 0.5*hotel - en")``
    reads. The terms of an ``exact`` blend are names of adapters, which are not looked up again.
    """

    weights: tuple[tuple[str, float], ...]
    exact: bool

    def __init__(
        self,
        weights: str | Mapping[str, float] | Iterable[tuple[str, float]] = (),
        exact: bool = False,
    ) -> None:
        """A blend from its text, from a mapping of weights, or from pairs (term, weight)."""
        if isinstance(weights, str):
            weights = _read(weights)
        elif isinstance(weights, Mapping):
            weights = weights.items()
        total: dict[str, float] = {}
        for name, weight in weights:
            term = name if name.isascii() else unicodedata.normalize("NFC", name)
            if not math.isfinite(weight):
                raise BlendError(f"the weight of {term!r} is {weight}, not a finite number")
            total[term] = total.get(term, 0.0) + float(weight)
            if abs(total[term]) > _MOST:
                raise BlendError(
                    f"the weight of {term!r} is {total[term]:g}, and {_MOST:g} is the most"
                )
        kept = tuple((term, weight) for term, weight in total.items() if weight != 0.0)
        object.__setattr__(self, "weights", kept)
        object.__setattr__(self, "exact", exact and bool(kept))  # there is only one empty blend

    @classmethod
    def parse(cls, text: str) -> "Blend":
        """Read the grammar at the top of this module; raises `BlendError` with the position."""
        return cls(_read(text))

    @classmethod
    def of(cls, value: BlendLike | Mapping[str, float]) -> "Blend":
        """A blend from a text, a mapping of weights, None (bare) or a blend.

        Raises `BlendError` for a list, which is never a sum.
        """
        if value is None:
            return cls()
        if isinstance(value, Blend):
            return value
        if isinstance(value, str | Mapping):
            return cls(value)
        if isinstance(value, list | tuple | set | frozenset):
            total = " + ".join(map(str, value)) or "de"
            raise BlendError(
                f"a list {value!r} where one blend is wanted: the sum of adapters is written "
                f"{total!r}; only `adapters` takes a list, of one blend a row"
            )
        raise BlendError(
            f"{value!r} ({type(value).__name__}) is no blend: give a text such as 'de + hotel', a "
            "mapping of weights, a Blend, or None for no adapter"
        )

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms, in order of first mention."""
        return tuple(term for term, _ in self.weights)

    def rename(self, names: Mapping[str, str | None]) -> "Blend":
        """The blend with terms replaced by exact names; those that become equal are added up.

        A term that becomes None is left out.
        """
        pairs = ((names.get(term, term), weight) for term, weight in self.weights)
        return Blend([(name, weight) for name, weight in pairs if name is not None], exact=True)

    def expand(self, blends: Mapping[str, "Blend"]) -> "Blend":
        """The blend with other blends, times its weight, in the place of terms."""
        total = Blend()
        for term, weight in self.weights:
            total = total + weight * blends.get(term, Blend([(term, 1.0)], self.exact))
        return total

    def __add__(self, other: BlendLike) -> "Blend":
        added = Blend.of(other)
        if self.exact and added.exact:
            return Blend(self.weights + added.weights, exact=True)
        if not (self and added):
            return self or added
        return Blend(self._to_look_up() + added._to_look_up())

    def _to_look_up(self) -> tuple[tuple[str, float], ...]:
        """The weights with terms that mean the same when they are looked up."""
        if not self.exact:
            return self.weights
        return tuple((f"name:{term}", weight) for term, weight in self.weights)

    def __radd__(self, other: BlendLike) -> "Blend":
        return Blend.of(other) + self

    def __neg__(self) -> "Blend":
        return self * -1.0

    def __sub__(self, other: BlendLike) -> "Blend":
        return self + -Blend.of(other)

    def __rsub__(self, other: BlendLike) -> "Blend":
        return Blend.of(other) - self

    def __mul__(self, factor: float) -> "Blend":
        return Blend([(term, weight * factor) for term, weight in self.weights], self.exact)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Blend":
        return self * (1.0 / divisor)

    def __bool__(self) -> bool:
        return bool(self.weights)

    def __str__(self) -> str:
        """Canonical text, 'none' of an empty blend; reading it gives a blend of equal weights."""
        if not self.weights:
            return "none"
        text = ""
        for term, weight in self.weights:
            sign = "-" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight)!r}*"
            text += f" {sign} {size}{term}" if text else ("-" if weight < 0 else "") + size + term
        return text


def _read(text: str) -> tuple[tuple[str, float], ...]:
    """The terms and weights of a text in the grammar at the top of this module."""
    items: list[tuple[str, float]] = []
    at = 0
    while text[at:].strip():
        match = _ITEM.match(text, at)
        tight = items and not text[at].isspace() and text[at] == "-"
        if match is None or tight or (items and match["sign"] is None):
            rest = text[at:].strip()
            expected = "'+' or '-' with a space before it" if match else "a name"
            raise BlendError(f"cannot read the blend {text!r} at {rest!r}: expected {expected}")
        if match["before"] and match["after"]:
            raise BlendError(f"two weights for {match['term']!r} in the blend {text!r}")
        weight = float(match["before"] or match["after"] or 1.0)
        items.append((match["term"], -weight if match["sign"] == "-" else weight))
        at = match.end()
    if not items:
        raise BlendError("an empty blend: write a name such as 'de', or None for no adapter")
    return tuple(items)
