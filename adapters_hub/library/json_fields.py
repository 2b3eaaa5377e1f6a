"""Fields of a JSON object, each read as what it must be.

A field that is something else is a `TypeError` that names it; who reads a file says which one.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")
_Read = Callable[[object], _Value]

_MOST = 1e300  # what is written in digits may be more than a float holds


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
