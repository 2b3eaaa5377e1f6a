"""One pass over texts that may not fit into memory: what there is, and what is measured on.

Knows rows and how they are streamed. Keeps of the train rows only how many there are of each
language and domain, and those that are held out.
"""

import hashlib
import heapq
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adapters_hub.data.rows import Columns, Row
from adapters_hub.errors import DataError

_HELD_TEXTS = 500
_HELD_BYTES = 256 * 1024
"""Texts and UTF-8 bytes of a language that are held out for dev, and as many for test."""

_KEPT = ("text", "language", "domain", "key", "where")

Group = tuple[str | None, str | None]
"""A language and a domain; None where rows do not say."""


@dataclass(frozen=True)
class Survey:
    """What a pass over the rows of a data set tells.

    ``first`` is each group's first train row, without its text; ``texts`` and ``bytes`` count its
    train rows, the held-out ones too.
    """

    texts: dict[Group, int]
    bytes: dict[Group, int]
    first: dict[Group, Row]
    dev: list[Row]
    test: list[Row]

    @staticmethod
    def of(rows: Iterable[tuple[str, Row]]) -> "Survey":
        """A pass over rows with their splits.

        Where there are no dev or no test rows, some train rows of each language are held out: those
        with the least digests of their ids, or texts where they have none. So it does not matter
        in which order rows come. Raises `DataError` where there are none to train on.
        """
        texts: dict[Group, int] = {}
        sizes: dict[Group, int] = {}
        first: dict[Group, Row] = {}
        given: dict[str, list[Row]] = {"dev": [], "test": []}
        held: dict[str | None, _Least] = {}
        for split, row in rows:
            if split != "train":
                given.setdefault(split, []).append(row)
                continue
            group, size = (row.language, row.domain), len(row.text.encode())
            if group not in first:
                first[group] = replace(row, text="", label=None, key=None, fields={})
            texts[group] = texts.get(group, 0) + 1
            sizes[group] = sizes.get(group, 0) + size
            held.setdefault(row.language, _Least()).add(row, size)
        missing = [name for name in ("dev", "test") if not given[name]]
        if missing:
            for least in held.values():
                for number, row in least.rows(len(missing)):
                    given[missing[number]].append(row)
        if not texts:
            raise DataError("no train rows; by the names of its files, all are for dev or test")
        return Survey(texts, sizes, first, given["dev"], given["test"])

    def to_json(self) -> str:
        """What `from_json` takes."""
        values = {
            "first": [_as_json(row) for row in self.first.values()],
            "texts": [self.texts[group] for group in self.first],
            "bytes": [self.bytes[group] for group in self.first],
            "dev": [_as_json(row) for row in self.dev],
            "test": [_as_json(row) for row in self.test],
        }
        return json.dumps(values, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Survey":
        """The survey of which `to_json` gave this text."""
        values = json.loads(text)
        first, dev, test = (
            [_row(**row) for row in values[name]] for name in ("first", "dev", "test")
        )
        groups: list[Group] = [(row.language, row.domain) for row in first]
        return Survey(
            texts=dict(zip(groups, values["texts"], strict=True)),
            bytes=dict(zip(groups, values["bytes"], strict=True)),
            first=dict(zip(groups, first, strict=True)),
            dev=dev,
            test=test,
        )

    def train_rows(self, rows: Iterable[tuple[str, Row]]) -> Iterator[Row]:
        """The train rows of another pass over the same rows, without those that are held out.

        Left out too are rows with the id or the text of one in dev or test, in whatever language:
        a translation of a text that is measured on, or its twin.
        """
        held = {name for row in (*self.dev, *self.test) for name in _names(row)}
        for split, row in rows:
            if split == "train" and held.isdisjoint(_names(row)):
                yield row


@dataclass
class _Least:
    """Rows of a language with the least digests: those of the fewest that reach a limit."""

    heap: list[tuple[int, int, int, Row]] = field(default_factory=list)  # the greatest digest first
    bytes: int = 0
    seen: int = 0

    def add(self, row: Row, size: int) -> None:
        digest = int.from_bytes(_names(row)[0][:8], "big")
        heapq.heappush(self.heap, (-digest, -self.seen, size, row))
        self.seen += 1
        self.bytes += size
        while len(self.heap) > 2 * _HELD_TEXTS or (
            len(self.heap) > 2 and self.bytes - self.heap[0][2] >= 2 * _HELD_BYTES
        ):
            self.bytes -= heapq.heappop(self.heap)[2]

    def rows(self, splits: int) -> Iterator[tuple[int, Row]]:
        """A tenth of the rows for each of so many splits, as far as they are kept; one at least.

        Rows of one id come into one split.
        """
        most = min(max(1, self.seen // 10), max(1, len(self.heap) // 2))
        digests: dict[int, int] = {}
        for digest, _, _, row in sorted(self.heap, reverse=True)[: splits * most]:
            yield digests.setdefault(digest, len(digests)) % splits, row


def _as_json(row: Row) -> dict[str, object]:
    """What a text is measured with: the text, what it is in, and where it stands."""
    values: dict[str, object] = {name: getattr(row, name) for name in _KEPT}
    return {**values, "names": row.columns.names, "renamed": dict(row.columns.renamed)}


def _row(
    text: str,
    language: str | None,
    domain: str | None,
    key: str | None,
    where: str,
    names: Sequence[str],
    renamed: Mapping[str, str],
) -> Row:
    """The row of which `_as_json` gave these values."""
    columns = Columns(tuple(names), renamed)
    return Row(text, None, language, domain, key, where, columns=columns)


def _names(row: Row) -> list[bytes]:
    """Digests of what a row shares with its twins: its id, if it has one, and its text."""
    text = unicodedata.normalize("NFC", row.text)
    names = [f"text {text}"] if not row.key else [f"id {row.key}", f"text {text}"]
    return [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names]
