"""A record of a file, or of a Hub data set, as a row: which of its columns is which field.

Knows fields that any data may have; those of a task are given by name. Every complaint names the
file, the line and the field.
"""

import unicodedata
from collections.abc import Iterable, Mapping

from adapters_hub.data.pairs import is_text, language_tag
from adapters_hub.data.rows import Columns, Record, Row
from adapters_hub.errors import DataError

FIELDS = ("text", "label", "language", "domain", "id")
"""The fields of a record that are parts of a `Row`, whatever the task."""

_INVISIBLE = "\u200b\u2060\ufeff"
"""Characters of no width that mean nothing inside a label, unlike a joiner of Hindi or Persian."""


class RowMaker:
    """Rows of the records of one data set, all with the same names of columns.

    ``columns`` maps fields to the columns that they are, ``fields`` are those of tasks.
    """

    def __init__(
        self, columns: Mapping[str, str], fields: Iterable[str], separator: str | None
    ) -> None:
        self.columns, self.separator = dict(columns), separator
        self.known = tuple(dict.fromkeys((*FIELDS, "words", *fields)))
        self.used = {self.columns.get(name, name) for name in (*FIELDS, *self.columns)}
        self.there: dict[str, None] = {}  # the names of all columns seen, in their order
        self._shared: dict[tuple[tuple[str, ...], bool], Columns] = {}

    def row(self, record: Record, language: str | None, where: str) -> Row:
        """A record's row; ``language`` is the one of records that do not say theirs."""
        if not self.there:
            self._check_names(record, where)
        self.there |= dict.fromkeys(record)
        # NaN is how Python's JSON and data frames write that there is no value
        record = {name: None if value != value else value for name, value in record.items()}
        squad = "text" not in record and "text" not in self.columns and "context" in record
        columns = self._columns(tuple(record), squad)
        column = lambda name: columns.renamed.get(name, name)
        text = record.get(column("text"))
        words = record.get(column("words"))
        if text is None and isinstance(words, list):
            text = " ".join(map(str, words))
        if not isinstance(text, str) or not text.strip():
            if text is None or isinstance(text, str):
                raise DataError(f"{where}: {columns.lacking('text')}{self._swapped('text')}")
            raise DataError(f"{where}: field {column('text')!r} is {text!r}, not text")
        for name, value in record.items():
            if isinstance(value, str) and not is_text(value):
                raise DataError(
                    f"{where}: field {name!r} holds half a surrogate pair, which is no text"
                )
        said = record.get(column("language")) or language
        domain, number = (record.get(column(name)) for name in ("domain", "id"))
        domain = None if domain in (None, "") else str(domain)
        label = record.get(column("label"))
        rest = {name: value for name, value in record.items() if name not in self.used}
        if squad:
            rest.pop("context", None)
        rest |= {name: record.get(c) for name, c in self.columns.items() if name not in FIELDS}
        return Row(
            text,
            _label(label, self.separator, f"{where}: field {column('label')!r}"),
            language_tag(said, column("language"), where),
            domain,
            None if number in (None, "") else f"{domain}/{number}",
            where,
            rest,
            columns,
        )

    def check(self, source: str) -> None:
        """Raise `DataError` for a column that was named and that no record has."""
        columns = Columns(tuple(self.there), self.columns)
        for name, column in self.columns.items():
            if column not in self.there:
                raise DataError(f"{source}: {columns.lacking(name)}{self._swapped(name)}")

    def _columns(self, names: tuple[str, ...], squad: bool) -> Columns:
        """One object for all records of the same names."""
        if (names, squad) not in self._shared:
            renamed = {**self.columns, "text": "context"} if squad else self.columns
            self._shared[names, squad] = Columns(names, renamed)
        return self._shared[names, squad]

    def _check_names(self, record: Record, where: str) -> None:
        """Raise `DataError` for names in ``columns`` that no field has."""
        if unknown := sorted(set(self.columns) - set(self.known)):
            swapped = [
                f"{self.columns[name]}={name}"
                for name in unknown
                if name in record and self.columns[name] in self.known
            ]
            advice = f"--columns {' '.join(swapped)}" if swapped else "--columns FIELD=NAME"
            raise DataError(
                f"columns: {unknown} is none of {', '.join(self.known)}; {where} has the columns "
                f"{', '.join(record)}: write {advice}"
            )

    def _swapped(self, name: str) -> str:
        """The flag to type where the sides of one seem to be swapped, or name no column."""
        if name not in self.columns or (column := self.columns[name]) in self.there:
            return ""
        if name in self.there and column in self.known:
            return f"; are the sides of {name}={column} swapped? Then: --columns {column}={name}"
        return f"; name one of these: --columns {name}=NAME"


def record_of(row: Row) -> dict[str, object]:
    """A row as a record that `RowMaker` makes the same row of; what it lacks is left out."""
    number = row.key and row.key.removeprefix(f"{row.domain}/")
    label = list(row.label) if isinstance(row.label, tuple) else row.label
    given: dict[str, object] = {
        "id": number,
        "text": row.text,
        "label": label,
        "language": row.language,
    }
    given |= {"domain": row.domain, **row.fields}
    return {name: value for name, value in given.items() if value is not None}


def _label(value: object, separator: str | None, where: str) -> str | tuple[str, ...] | None:
    """One label, or a tuple of them where the data say a list, or separate them."""
    if separator and isinstance(value, str):
        value = [part.strip() for part in value.split(separator)] if value.strip() else []
    if isinstance(value, str):
        value = _plain_label(value)
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return str(value)
    if not isinstance(value, list):
        raise DataError(f"{where}: {value!r} is no label")
    value = [_plain_label(item) if isinstance(item, str) else item for item in value]
    for item in value:
        known = isinstance(item, str | int | float) and item == item  # NaN is none
        if item == "" or not known or not is_text(str(item)):
            raise DataError(f"{where}: {item!r} in {value!r} is no label")
    return tuple(dict.fromkeys(map(str, value)))


def _plain_label(label: str) -> str:
    """A label without what cannot be seen: blanks around it, its Unicode form, no-width signs."""
    visible = label.translate(dict.fromkeys(map(ord, _INVISIBLE)))
    return unicodedata.normalize("NFC", visible).strip()
