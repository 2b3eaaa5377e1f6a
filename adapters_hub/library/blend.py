"""Blends: a weighted set of adapters as a value, ``"sw + 0.5*hotel - en"``.

Knows the grammar and the arithmetic; does not know which adapters exist.

    blend  = [sign] item { sign item }
    item   = [number "*"] term  |  term "*" number
    term   = ["lang:" | "domain:"] name
    name   = word characters and dots, in parts joined by single hyphens

A hyphen inside a name is part of it (``pt-BR``), so a minus needs a space before it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Union

from adapters_hub.errors import BlendError

NAME = re.compile(r"\w+(?:[.\-]\w+)*")
"""What a term may look like, and so what an adapter may be called."""
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = rf"(?:(?:lang|domain):)?{NAME.pattern}"
_ITEM = re.compile(
    rf"\s*(?P<sign>[+\-])?\s*(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<term>{_TERM})"
    rf"(?:\s*\*\s*(?P<after>{_NUMBER}))?(?=\s|[+\-]|$)"
)

BlendLike = Union["Blend", str, None]
_MOST = 1e9  # what is added must stay a number in float32


@dataclass(frozen=True)
class Blend:
    """A weighted set of terms; immutable, hashable, ordered by first mention.

    ``Blend.of("de") + 0.5 * Blend.of("hotel") - "en"`` builds what ``Blend.parse`` reads.
    """

    weights: tuple[tuple[str, float], ...] = ()
    exact: bool = field(default=False, compare=False)  # the terms are names, not to be looked up

    def __post_init__(self) -> None:
        total: dict[str, float] = {}
        for term, weight in self.weights:
            if not math.isfinite(weight):
                raise BlendError(f"the weight of {term!r} is {weight}, not a finite number")
            total[term] = total.get(term, 0.0) + float(weight)
            if abs(total[term]) > _MOST:
                raise BlendError(
                    f"the weight of {term!r} is {total[term]:g}, and {_MOST:g} is the most"
                )
        cleaned = tuple((term, weight) for term, weight in total.items() if weight != 0.0)
        object.__setattr__(self, "weights", cleaned)

    @classmethod
    def parse(cls, text: str) -> "Blend":
        """Read the grammar at the top of this module; raises `BlendError` with the position."""
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
        return cls(tuple(items))

    @classmethod
    def of(cls, value: BlendLike | Mapping[str, float] | Iterable[str]) -> "Blend":
        """A blend from a text, a mapping of weights, several terms, None or a blend."""
        if value is None:
            return cls()
        if isinstance(value, Blend):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Mapping):
            return cls(tuple(value.items()))
        return cls(tuple((term, 1.0) for term in value))

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms, in order of first mention."""
        return tuple(term for term, _ in self.weights)

    def rename(self, names: Mapping[str, str]) -> "Blend":
        """The blend with terms replaced by exact names; those that become equal are added up."""
        renamed = tuple((names.get(term, term), weight) for term, weight in self.weights)
        return Blend(renamed, exact=True)

    def __add__(self, other: BlendLike) -> "Blend":
        return Blend(self.weights + Blend.of(other).weights)

    def __radd__(self, other: BlendLike) -> "Blend":
        return Blend.of(other) + self

    def __neg__(self) -> "Blend":
        return self * -1.0

    def __sub__(self, other: BlendLike) -> "Blend":
        return self + -Blend.of(other)

    def __rsub__(self, other: BlendLike) -> "Blend":
        return Blend.of(other) - self

    def __mul__(self, factor: float) -> "Blend":
        return Blend(tuple((term, weight * factor) for term, weight in self.weights))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Blend":
        return self * (1.0 / divisor)

    def __bool__(self) -> bool:
        return bool(self.weights)

    def __str__(self) -> str:
        """Canonical text; ``Blend.parse(str(blend)) == blend`` unless it is empty ('none')."""
        if not self.weights:
            return "none"
        text = ""
        for term, weight in self.weights:
            sign = "-" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight)!r}*"
            text += f" {sign} {size}{term}" if text else ("-" if weight < 0 else "") + size + term
        return text
