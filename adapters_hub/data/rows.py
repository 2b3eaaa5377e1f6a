"""The row: one line of data, whatever file it came from. Knows no format and no task."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Record = Mapping[str, object]
"""One line of data as its format gives it: the name of each column, and a value of any type."""


@dataclass(frozen=True)
class Columns:
    """What a row's record is called in its file: ``names`` of all its columns, in their order.

    ``renamed`` maps fields to those of them that a run says they are, as ``--columns`` does.
    """

    names: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def lacking(self, name: str, why: str = "") -> str:
        """Why a field has no value: its column is empty, or missing, with what to type.

        ``why`` it is needed stands before the advice. Rows that came from no file get no advice.
        """
        column = self.renamed.get(name, name)
        if column in self.names:
            return f"field {column!r} is empty{why}"
        there = f" (there: {', '.join(self.names)})" if self.names else ""
        advice = f"; say which column it is: --columns {name}=NAME"
        advice = "" if name in self.renamed or not self.names else advice
        return f"field {column!r} is missing{there}{why}{advice}"


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
    fields: dict[str, object] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns, compare=False, repr=False)  # for messages

    @property
    def labels(self) -> tuple[str, ...]:
        """Its label, or labels, as far as they are said."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label
