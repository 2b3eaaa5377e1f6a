"""Progress bars of long work, all alike, and the one switch that turns them off; no torch.

Bars go to stderr, so that a command's result on stdout stays clean.
"""

import sys
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm.std import tqdm

_Item = TypeVar("_Item")

_FORMAT = (
    "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
)
_SHORT = 1.0  # seconds that work may take without a bar
_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Show no bar from now on in this process, or show them again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether bars are turned off."""
    return _quiet


def bar(
    total: int | None,
    desc: str,
    unit: str,
    *,
    initial: int = 0,
    show: bool = True,
    at_once: bool = False,
    scale: bool = False,
) -> "tqdm[NoReturn]":
    """A bar with the time that is left, moved by its ``update``; close it, or use it by ``with``.

    It is shown where the work takes longer than a second, and is gone when that is done; or
    ``at_once``, and stays. Where stderr is no terminal a line is written every ten seconds.
    ``scale`` counts in thousands and millions.
    """
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        unit_scale=scale,
        disable=_quiet or not show,
        delay=0 if at_once else _SHORT,
        leave=at_once,
        mininterval=_interval(),
        bar_format=_FORMAT,
    )


def over(items: Iterable[_Item], desc: str, unit: str, *, show: bool = True) -> "Iterable[_Item]":
    """The same items, with a bar while they are gone through; without a length it only counts."""
    from tqdm.auto import tqdm

    return tqdm(
        items,
        desc=desc,
        unit=unit,
        disable=_quiet or not show,
        delay=_SHORT,
        leave=False,
        mininterval=_interval(),
        bar_format=_FORMAT if isinstance(items, Sized) else None,
    )


def _interval() -> float:
    return 0.1 if sys.stderr is not None and sys.stderr.isatty() else 10.0
