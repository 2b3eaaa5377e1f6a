"""The row: one line of data, whatever file it came from. Knows no format and no task."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of data. ``key`` is equal for translations of one item, so splits can respect it.

    A ``label`` that is a tuple is any number of labels, of which none excludes another.
    """

    text: str
    label: str | tuple[str, ...] | None = None
    language: str | None = None
    domain: str | None = None
    key: str | None = None
    where: str = ""  # file and line, for messages
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Its label, or labels, as far as they are said."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label
