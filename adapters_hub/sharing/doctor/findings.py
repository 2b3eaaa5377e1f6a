"""A finding, and the registry of checks. Knows neither files nor adapters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters_hub.sharing.printable import printable

if TYPE_CHECKING:
    from adapters_hub.sharing.doctor.subject import Subject

LEVELS = ("error", "warning", "note")
"""Not to be used as it is; look before use; good to know."""


@dataclass(frozen=True)
class Finding:
    """``level`` of `LEVELS`; ``check``: its name; ``what`` is the case, ``where`` (file, tensor or
    field), and what to ``do``.
    """

    level: str
    check: str
    what: str
    where: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8}{self.check}: {self.what} [{self.where}]" + (
            f"\n        → {self.do}" if self.do else ""
        )


Check = Callable[["Subject"], Iterator[Finding]]
CHECKS: dict[str, Check] = {}
"""By name, in the order in which they are made."""


def check(function: Check) -> Check:
    """Enter a check under its function's name, with spaces."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def few(names: list[str], most: int = 3) -> str:
    """Some of many names, in words; what cannot be printed is escaped."""
    shown = [printable(name, 120) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
