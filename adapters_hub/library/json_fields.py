"""Reads untrusted JSON within bounds, and checks the type of each field.

A field that is something else is a `TypeError` that names it; the caller adds the name of the file.
"""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")
_Read = Callable[[object], _Value]

MAX_DEPTH = 40
"""The deepest nesting of a sound file's JSON is a quarter of this."""

_SPARE = 40_000  # values, of a hundred bytes each in memory
_MAX_OTHER = 1_000_000  # letters of a text with others than ASCII's, four bytes each in memory
_MOST = 1e300  # what is written in digits may be more than a float holds


def check_count(text: str, letters: int = 32) -> None:
    """Raise `ValueError` for a JSON text of more values than a sound file's, before it is parsed.

    Beyond some thousands, values have so many ``letters`` each, as names of modules do. So the
    memory they take is a few times the file's, however the text is made up.
    """
    values = sum(map(text.count, "[,:")) + 3 * text.count("{")
    if values > _SPARE + len(text) // letters:
        raise ValueError(f"{values} values in {len(text)} letters")
    if len(text) > _MAX_OTHER and not text.isascii():
        raise ValueError(f"more than {_MAX_OTHER} letters, not all of them ASCII")


def read_json(text: str) -> object:
    """What a JSON text says, if it can be written again.

    Raises `ValueError` for what is no JSON, has too many values, is nested too deep, or holds a
    lone surrogate; `RecursionError`.
    """
    check_count(text)
    data: object = json.loads(text)
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(data)
    json.dumps(data, ensure_ascii=False).encode()
    return data


def _check_depth(data: object) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        inside: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inside.extend(value.values())
            elif isinstance(value, list):
                inside.extend(value)
        level = inside
    if any(isinstance(value, dict | list) for value in level):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")


class Fields:
    """An object's fields by name; ``read`` is one of the functions below, or any like them.

    Raises `TypeError` for what is no object.
    """

    def __init__(self, data: object) -> None:
        self._data = as_mapping(data)

    def get(self, name: str, read: _Read[_Value]) -> _Value | None:
        """A field; None where it is null or not there."""
        value = self._data.get(name)
        return None if value is None else _named(name, read, value)

    def need(self, name: str, read: _Read[_Value]) -> _Value:
        """A field that must be there."""
        value = self.get(name, read)
        if value is None:
            raise TypeError(f"{name} is missing")
        return value


def as_text(value: object) -> str:
    """A text."""
    if isinstance(value, str):
        return value
    raise TypeError("must be text")


def as_line(value: object) -> str:
    """A text of one line, all of it to be seen."""
    written = as_text(value)
    if written.isprintable():
        return written
    raise TypeError("a text of one line holds what cannot be printed")


def as_number(value: object) -> float:
    """A number that a float holds."""
    if isinstance(value, int | float) and -_MOST < value < _MOST:
        return value
    raise TypeError("not a number, or too large for one")


def as_count(value: object) -> int:
    """A whole number that is not negative."""
    if isinstance(value, int) and as_number(value) >= 0:
        return value
    raise TypeError("not a count")


def as_mapping(value: object) -> Mapping[str, object]:
    """An object."""
    if isinstance(value, Mapping):
        return value
    raise TypeError("must be an object")


def tuple_of(read: _Read[_Value]) -> _Read[tuple[_Value, ...]]:
    """A list of what ``read`` reads."""

    def each(value: object) -> tuple[_Value, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError("must be a list")
        return tuple(map(read, value))

    return each


def dict_of(read: _Read[_Value]) -> _Read[dict[str, _Value]]:
    """An object of what ``read`` reads, under any names."""

    def each(value: object) -> dict[str, _Value]:
        entries = as_mapping(value).items()  # whose names are as hostile as the file
        return {name: _named(ascii(name)[:80], read, entry) for name, entry in entries}

    return each


def _named(name: str, read: _Read[_Value], value: object) -> _Value:
    try:
        return read(value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
