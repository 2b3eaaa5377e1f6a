"""Data files as records: JSON Lines, JSON arrays, CSV, TSV, Parquet and text, perhaps compressed.

Knows formats; does not know what the fields of a record mean. Complaints name file and line.
"""

import codecs
import csv
import gzip
import io
import json
import shlex
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, TextIO, cast

from adapters_hub.data.rows import Record
from adapters_hub.errors import DataError
from adapters_hub.extras import require

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
PACKED = (".gz", ".zst")
_MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}  # the first in a header separates its cells
_BYTE_ORDER_MARKS = {  # those of UTF-32 first: one of them begins as one of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAX_CELL = 2**31 - 1
"""Characters of a CSV cell: what a C long holds everywhere. The csv module allows 131,072."""


def records(file: Path) -> Iterator[tuple[int, Record]]:
    """The records of a data file and the line that each is on; `DataError` for damaged ones."""
    suffix, number = suffix_of(file), 0
    try:
        if suffix == ".parquet":
            yield from enumerate(_parquet(file), 1)
        elif suffix in (".csv", ".tsv"):
            yield from _table(file, tabs=suffix == ".tsv")
        elif suffix == ".txt":
            with opened(file) as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield number, {"text": line.strip(), "id": number}
        elif suffix == ".json" and _is_array(file):
            yield from _array(file)
        else:
            with opened(file) as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield number, _json(line, file, number)
    except UnicodeDecodeError as error:
        if not error.encoding.startswith("utf-8"):
            raise DataError(
                f"{file}: damaged after line {number} ({error.reason}): its byte order mark says "
                f"{error.encoding}; write the file again"
            ) from None
        raise DataError(
            f"{file}: not UTF-8 text ({error.reason}, after line {number}); it may be Latin-1 or "
            f"another 8-bit encoding; {_converted(file, 'LATIN1')}"
        ) from None
    except _damages(file) as error:
        raise DataError(f"{file}: damaged after line {number} ({error})") from None


def _damages(file: Path) -> tuple[type[Exception], ...]:
    """What reading a compressed file raises where it is damaged or cut."""
    known: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    return (*known, _zstd(file).ZstdError) if file.name.lower().endswith(".zst") else known


def suffix_of(file: Path) -> str:
    """A file's format by its name, in lower case, without what says that it is compressed."""
    name = file.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def opened(file: Path, newline: str | None = None) -> TextIO:
    """A text file, perhaps compressed by gzip or Zstandard, in UTF-8 or as its first bytes say."""
    with _unpacked(file) as stream:
        encoding = _encoding(stream.read(4), file)
    return io.TextIOWrapper(_unpacked(file), encoding=encoding, newline=newline)


def _unpacked(file: Path) -> BinaryIO:
    """The bytes of a file as they are without compression."""
    name = file.name.lower()
    if name.endswith(".gz"):
        return cast("BinaryIO", gzip.open(file))
    return cast("BinaryIO", _zstd(file).open(file)) if name.endswith(".zst") else open(file, "rb")


def _encoding(start: bytes, file: Path) -> str:
    """The encoding that a file's first four bytes say; `DataError` for UTF-16 without a mark.

    Such a file would be read as UTF-8 with a NUL character between any two letters.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" in start:
        guess = "UTF-16LE" if start[1:2] == b"\0" else "UTF-16BE"
        raise DataError(
            f"{file}: not UTF-8 text (there is a NUL byte at its start); it may be {guess} without "
            f"a byte order mark; {_converted(file, guess)}"
        )
    return "utf-8-sig"


def _converted(file: Path, encoding: str) -> str:
    """What to do with a file in another encoding than UTF-8."""
    packed = file.name.lower().endswith(PACKED)
    name = "UNPACKED" if packed else shlex.quote(str(file))
    return f"make it UTF-8, such as by: iconv -f {encoding} -t UTF-8 {name} > NEW"


def _zstd(file: Path) -> ModuleType:
    """Python's module for Zstandard (from 3.14 on), or the same for older Pythons."""
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return require(module, "data", f"{file}: a .zst file")


def _is_array(file: Path) -> bool:
    """Whether a JSON file holds one array, rather than an object a line."""
    with opened(file) as stream:
        return next((line.lstrip()[0] for line in stream if line.strip()), "") == "["


def _array(file: Path) -> Iterator[tuple[int, Record]]:
    """The objects of a JSON array, numbered from 1."""
    with opened(file) as stream:
        try:
            items = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON ({error})") from None
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise DataError(f"{file}: item {number} of the array is {item!r}, not a JSON object")
        yield number, item


def _table(file: Path, tabs: bool) -> Iterator[tuple[int, Record]]:
    """The records of a CSV or TSV file; a row that is not just as wide as the header is refused.

    It would otherwise be shifted without a word: an unquoted comma, a quote that nobody closed.
    So would the rest of a row be in which a carriage return ends the line too early.
    """
    kind = "TSV" if tabs else "CSV"
    mark = "\t" if tabs else _separator(file)
    old_limit = csv.field_size_limit(_MAX_CELL)
    header: list[str] = []
    header_end, begin = "", 1
    try:
        with opened(file, newline="") as stream:
            lines = _Lines(stream)
            reader = csv.reader(
                lines,
                strict=True,
                delimiter=mark,
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            )
            for cells in reader:
                if not header:
                    header, header_end = cells, lines.end
                    if twice := sorted({name for name in header if header.count(name) > 1}):
                        raise DataError(f"{file}:{begin}: the header has {twice[0]!r} twice")
                elif lines.end == "\r" != header_end:
                    remedy = "" if tabs else ", or put the cell in quotes"
                    raise DataError(
                        f"{file}:{begin}: a carriage return (CR) in a cell ends this line, and "
                        f"the header's ends otherwise: put a blank in its place{remedy}"
                    )
                elif cells and len(cells) != len(header):
                    raise DataError(
                        f"{file}:{begin}: the header has {len(header)} cells, this row "
                        f"{len(cells)}: "
                        + _width_advice(mark, tabs, len(cells) < len(header))
                        + _quote_advice(begin, reader.line_num)
                    )
                elif cells:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
                begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}:{begin}: not {kind} from here on ({error}): a quote begins a cell only where "
            'another one ends it; a quote inside a quoted cell is written twice (""). In a .tsv '
            "file quotes are text"
        ) from None
    finally:
        csv.field_size_limit(old_limit)


class _Lines:
    """The lines of a stream, and how the one read last ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.end = stream, ""

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.end = line[len(line.rstrip("\r\n")) :]
            yield line


def _width_advice(mark: str, tabs: bool, narrow: bool) -> str:
    """What to do about a row that is narrower or wider than the header."""
    whole = "a cell cannot hold a tab or a line end, since quotes are text in TSV"
    if narrow:
        return "an empty cell needs its separator too" + (f"; {whole}" if tabs else "")
    return whole if tabs else f"a {_MARKS[mark]} in a cell needs quotes"


def _quote_advice(first: int, last: int) -> str:
    """What to look for in a row of a table that goes over several lines."""
    if first == last:
        return ""
    return f"; the row goes on to line {last}: perhaps a quote in it is not closed"


def _json(line: str, file: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}:{number}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{file}:{number}: one JSON object a line is expected")
    return record


def _parquet(file: Path) -> Iterator[Record]:
    arrow = require("pyarrow", "data", f"{file}: Parquet")
    parquet = require("pyarrow.parquet", "data", f"{file}: Parquet")
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not Parquet ({error})") from None


def _separator(file: Path) -> str:
    """What separates the cells of a CSV file, by its header: a comma, else Excel's ; or a tab."""
    with opened(file, newline="") as stream:
        header = stream.readline()
    return next((mark for mark in _MARKS if mark in header), ",")
