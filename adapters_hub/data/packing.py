"""Documents as rows of tokens of one length, written to disk and read back a row at a time.

Knows lists of numbers and Arrow files; does not know what a token is.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapters_hub.extras import require

if TYPE_CHECKING:
    from datasets import Dataset

_OPEN = 64  # rows of a group that are filled at a time

Documents = list[list[int]]
"""The documents of one row, in order."""


@dataclass
class Packer:
    """Puts documents into rows of at most ``limit`` tokens, each whole in one row.

    A document goes where it leaves the least room, among a bounded number of rows that are open
    (bounded-space best fit). So memory does not grow with the documents.
    """

    limit: int
    _rows: list[tuple[int, Documents]] = field(default_factory=list)  # tokens, documents

    def add(self, document: list[int]) -> Iterator[Documents]:
        """The rows that are complete now; a document is ``limit`` tokens long at most."""
        size = len(document)
        fits = [row for row in self._rows if row[0] + size <= self.limit]
        if fits:
            best = max(fits, key=lambda row: row[0])
            self._rows.remove(best)
        elif len(self._rows) == _OPEN:
            yield self._rows.pop(self._fullest())[1]
            best = (0, [])
        else:
            best = (0, [])
        used, documents = best[0] + size, [*best[1], document]
        if used < self.limit:
            self._rows.append((used, documents))
        else:
            yield documents

    def rest(self) -> Iterator[Documents]:
        """The rows that are still open."""
        yield from (documents for _, documents in self._rows)
        self._rows.clear()

    def _fullest(self) -> int:
        return max(range(len(self._rows)), key=lambda place: self._rows[place][0])


def write_rows(path: Path, rows: Iterable[tuple[int, Documents]]) -> None:
    """An Arrow file of rows of documents, and beside it (``.npy``) each row's group and length.

    Those are asked for all rows at once. In the Arrow file they lie between the tokens, so most of
    it would be read for them.
    """
    datasets = require("datasets", "data", "packing")
    writer_of = require("datasets.arrow_writer", "data", "packing").ArrowWriter
    numbers = datasets.List(datasets.Value("int32"))
    features = datasets.Features(input_ids=numbers, documents=numbers)
    index = array("i")
    with writer_of(path=str(path), features=features) as writer:
        for group, documents in rows:
            ids = [token for document in documents for token in document]
            index.extend((group, len(ids)))
            writer.write({"input_ids": ids, "documents": [len(part) for part in documents]})
        writer.finalize()
    np.save(_index(path), np.array(index, dtype=np.int32).reshape(-1, 2))


class PackedRows:
    """The rows of an Arrow file that `write_rows` wrote, read from disk when they are asked for."""

    def __init__(self, path: Path) -> None:
        datasets = require("datasets", "data", "packing")
        self._table: Dataset = datasets.Dataset.from_file(str(path))
        index = np.load(_index(path))
        self.groups: np.ndarray = index[:, 0]
        """The number of each row's group (rows,)."""
        self.lengths: np.ndarray = index[:, 1]
        """Tokens of each row (rows,)."""

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> tuple[Sequence[int], tuple[int, ...]]:
        """A row's tokens, and the lengths of its documents."""
        row = self._table[int(number)]
        return row["input_ids"], tuple(row["documents"])


def _index(path: Path) -> Path:
    return path.with_suffix(".npy")
