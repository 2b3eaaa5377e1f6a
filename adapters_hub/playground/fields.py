"""The fields of a request, read and checked one by one.

Knows JSON values and adapters' names; every complaint names the field. Paths are never among them.
"""

import math
import os
from collections.abc import Iterable, Mapping

from adapters_hub.errors import NotFoundError, SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library

LONGEST_TEXT = 20_000
"""Characters of one text that is looked at (not of rows to train on)."""

_MOST_WEIGHT = 10.0
_MOST_BLENDS = 8
_MOST_TERMS = 64


class Request:
    """A request's JSON object; each method reads one field, or raises `SettingsError`."""

    def __init__(self, data: object) -> None:
        if not isinstance(data, dict):
            raise SettingsError("a request is a JSON object")
        self._data: dict[str, object] = data

    def text(
        self, name: str, default: str | None = None, longest: int | None = LONGEST_TEXT
    ) -> str:
        """A text; without a default it must be there and not blank."""
        value = self._data.get(name, default)
        if not isinstance(value, str):
            raise SettingsError(f"{name}: a text is needed")
        if default is None and not value.strip():
            raise SettingsError(f"{name}: it is empty; type something")
        return _short(name, value, longest)

    def texts(self, name: str, most: int = 200) -> list[str]:
        """A list of texts, none of them blank."""
        value = self._data.get(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise SettingsError(f"{name}: a list of texts is needed")
        texts = [_short(name, text, LONGEST_TEXT) for text in value if text.strip()]
        if not texts:
            raise SettingsError(f"{name}: it is empty; type something")
        if len(texts) > most:
            raise SettingsError(f"{name}: {len(texts)} texts; give {most} at most")
        return texts

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number between two limits."""
        value = self._data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{name}: a number is needed")
        if not low <= value <= high:
            raise SettingsError(f"{name}={value}: must be between {low:g} and {high:g}")
        return float(value)

    def count(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number between two limits."""
        value = self.number(name, default, low, high)
        if value != int(value):
            raise SettingsError(f"{name}={value}: must be a whole number")
        return int(value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is not there."""
        value = self._data.get(name, False)
        if not isinstance(value, bool):
            raise SettingsError(f"{name}: true or false is needed")
        return value

    def choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """One of some texts."""
        value, known = self._data.get(name, default), list(choices)
        if value not in known:
            raise SettingsError(f"{name}={value!r}: choose one of {', '.join(known)}")
        return str(value)

    def adapter(self, name: str, library: Library) -> str:
        """The name of an adapter of the library; `NotFoundError` for any other text."""
        return checked_name(self.text(name, longest=200), library)

    def blends(self, name: str, library: Library) -> list[Blend]:
        """A list of blends, each a mapping of adapters' names to weights."""
        value = self._data.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= _MOST_BLENDS:
            raise SettingsError(f"{name}: a list of 1 to {_MOST_BLENDS} blends is needed")
        return [_blend(name, item, library) for item in value]

    def blend(self, name: str, library: Library) -> Blend:
        """One blend, of which something must be left."""
        blend = _blend(name, self._data.get(name), library)
        if not blend:
            raise SettingsError(f"{name}: all weights are 0; move a slider first")
        return blend


def checked_name(name: str, library: Library) -> str:
    """The name, if the library has an adapter of exactly this name."""
    if name not in library:
        raise NotFoundError(f"no adapter is called {name!r} here")
    return name


def public(message: str, library: Library) -> str:
    """A message without the folders that the library lies in, which are nobody's business."""
    parents = {str(root.parent) for root in (library.root, library.root.absolute())} - {".", os.sep}
    for parent in sorted(parents, key=len, reverse=True):
        message = message.replace(f"{parent}{os.sep}", "")
    return message


def _blend(name: str, value: object, library: Library) -> Blend:
    if not isinstance(value, Mapping) or len(value) > _MOST_TERMS:
        raise SettingsError(f"{name}: a blend maps at most {_MOST_TERMS} adapters to weights")
    weights: list[tuple[str, float]] = []
    for term, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise SettingsError(f"{name}: the weight of {term!r} is not a number")
        if not math.isfinite(weight) or abs(weight) > _MOST_WEIGHT:
            raise SettingsError(f"{name}: the weight of {term!r} must be within ±{_MOST_WEIGHT:g}")
        if weight:
            weights.append((checked_name(term, library), float(weight)))
    return Blend(weights, exact=True)


def _short(name: str, text: str, longest: int | None) -> str:
    if longest is not None and len(text) > longest:
        raise SettingsError(f"{name}: {len(text)} characters; give {longest} at most")
    return text
