"""PEFT's patterns for modules, matched in bounded time.

PEFT takes any regular expression. One from a stranger's file can keep Python's engine busy for
ever, so here a match is a set of places that moves along the name: no step is made twice.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from adapters_hub.errors import UnsupportedAdapterError

_NAME = re.compile(r"[\w.\-/]*")  # no more than a module's name
_CHARACTER = re.compile(r"\\[dDwWsS]|\\[^a-zA-Z0-9]|\[\^?(?:\\.|[^\]\[\\])+\]|[^\\\[\](){}|*+?^$]")
_TIMES = re.compile(r"([*+?])\??|\{(\d)(,?)(\d?)\}\??")


class _Step(NamedTuple):
    """What stands at one place of a pattern, and how often (``most`` None: without end).

    It is a test of a character, ``^`` or ``$``, or the alternatives of a bracket.
    """

    what: "Callable[[str], object] | str | _Alternatives"
    least: int
    most: int | None


_Alternatives = list[list[_Step]]


def matches(pattern: str, module: str) -> bool:
    r"""Whether ``(.*\.)?(pattern)$`` matches a module's path, as in PEFT's ``get_pattern_key``.

    The time is the product of both lengths at most. Raises `UnsupportedAdapterError` for what is
    neither a name nor made of characters, classes such as ``\d`` or ``[0-9]``, ``* + ?``, ``{2}``
    behind one of these, ``^``, ``$`` and ``(a|b)``.
    """
    alternatives = _parse(pattern)
    if alternatives is None:
        begin = len(module) - len(pattern)
        return (begin == 0 or (begin > 0 and module[begin - 1] == ".")) and all(
            letter in (".", other) for letter, other in zip(pattern, module[begin:], strict=True)
        )
    begins = {0} | {place + 1 for place, letter in enumerate(module) if letter == "."}
    return len(module) in _ends(alternatives, module, begins)


def is_name(pattern: str) -> bool:
    """Whether a pattern is no more than a module's name, which costs nothing to match."""
    return _parse(pattern) is None


@lru_cache(maxsize=1024)
def _parse(pattern: str) -> _Alternatives | None:
    """A pattern's alternatives; None for a mere name."""
    if _NAME.fullmatch(pattern):
        return None
    try:
        alternatives, end = _parse_from(pattern, 0)
        if end == len(pattern):
            return alternatives
    except (re.error, RecursionError):
        pass
    raise UnsupportedAdapterError(
        f"{pattern!r} is no pattern that is safe to match: use names of modules, with classes such "
        r"as \d or [0-9], with * + ? behind a character or class, and with (a|b)"
    )


def _parse_from(pattern: str, at: int) -> tuple[_Alternatives, int]:
    """The alternatives up to a closing bracket or the end, and where that is."""
    alternatives: _Alternatives = [[]]
    while at < len(pattern) and (sign := pattern[at]) != ")":
        what: Callable[[str], object] | str | _Alternatives = sign
        if sign == "|":
            alternatives.append([])
            at += 1
            continue
        if sign == "(":
            what, at = _parse_from(pattern, at + (3 if pattern.startswith("(?:", at) else 1))
            if at == len(pattern):
                raise re.error("a bracket is left open")
            at += 1
        elif sign in "^$":
            at += 1
        elif match := _CHARACTER.match(pattern, at):
            what, at = re.compile(match[0]).fullmatch, match.end()
        else:
            raise re.error(f"{sign} is not known")
        least: int = 1
        most: int | None = 1
        if times := _TIMES.match(pattern, at):
            if not callable(what) and times[1] != "?":
                raise re.error("only a character may be repeated")
            least, most = _least_and_most(*times.groups())
            at = times.end()
        alternatives[-1].append(_Step(what, least, most))
    return alternatives, at


def _least_and_most(sign: str, least: str, comma: str, most: str) -> tuple[int, int | None]:
    if sign:
        return int(sign == "+"), 1 if sign == "?" else None
    return int(least), int(most) if most else None if comma else int(least)


def _ends(alternatives: _Alternatives, text: str, begins: set[int]) -> set[int]:
    """Where a match of one of the alternatives may end that begins at one of these places."""
    ends: set[int] = set()
    for steps in alternatives:
        places = begins
        for what, least, most in steps:
            reached = set() if least else set(places)
            count = 0
            while places and count != most:
                if callable(what):
                    places = {p + 1 for p in places if p < len(text) and what(text[p])}
                elif isinstance(what, str):
                    places = places & {0 if what == "^" else len(text)}
                else:
                    places = _ends(what, text, places)
                count += 1
                if count >= least:
                    places = places - reached
                    reached |= places
            places = reached
        ends |= places
    return ends
