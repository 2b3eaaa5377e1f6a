"""Safetensors files without torch: checked headers, metadata, hashes, copies.

Knows the container format; does not know what an adapter is. Everything read here is treated as
hostile: sizes are bounded before anything is allocated, and no tensor may lie outside the file.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO

from adapters_hub.errors import AdapterFileError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

_HEADER_ROOM = 1 << 19  # a header above this is an eighth of its file at most: in those that have
# tensors it is a thousandth, and one that is read takes up to twenty-six times its size in memory

_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_MAX_DIMENSIONS = 64
_HASH = "sha256:"
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 22
_MAX_KEPT = 1 << 20  # letters of a layout that is remembered


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: dtype by its safetensors name, shape, byte range within the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The tensors of a file by name, and how many bytes they fill.

    Files that differ only in their numbers and metadata, as adapters trained alike do, share one;
    so what follows from it can be worked out once, and be ``known``. Compared by identity; not to be
    changed.
    """

    tensors: dict[str, TensorEntry]
    size: int
    known: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @cached_property
    def items(self) -> int:
        """How many numbers there are in all."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


@dataclass(frozen=True)
class Header:
    """A checked header: layout, metadata, where the data begin, and in which file."""

    layout: Layout
    metadata: dict[str, str]
    data_start: int
    file: tuple[int, ...] = ()

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        """The tensors by name."""
        return self.layout.tensors


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file, or a link to one, for reading; raises `AdapterFileError` for others.

    A pipe would wait for a writer, and a device such as ``/dev/zero`` never ends.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise AdapterFileError(f"{path}: not a regular file but a pipe or a device")
    return file


def read_small(path: str | Path, limit: int) -> bytes:
    """All of a regular file of at most ``limit`` bytes; raises `AdapterFileError` for others."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise AdapterFileError(f"{path}: larger than {limit} bytes, which no sound one is")
    return content


def read_header(path: str | Path) -> Header:
    """Read and check a header; raises `AdapterFileError` for anything a sound file cannot have."""
    with open_regular(path) as file:
        size, state = os.fstat(file.fileno()).st_size, _state_of(file)
        first = file.read(8)
        if len(first) < 8:
            raise AdapterFileError(f"{path}: {size} bytes is too short for a safetensors file")
        (length,) = struct.unpack("<Q", first)
        if length > MAX_HEADER_BYTES:
            if first.startswith(
                (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
            ):
                raise AdapterFileError(
                    f"{path}: this is a pickle, which can run code when it is opened; "
                    "save the adapter again as safetensors"
                )
            raise AdapterFileError(
                f"{path}: the header claims {length} bytes (limit {MAX_HEADER_BYTES}): not safetensors"
            )
        if length > _HEADER_ROOM + size // 8 and 8 + length <= size:
            raise AdapterFileError(
                f"{path}: a header of {length} bytes in a file of {size}: it is not for its tensors"
            )
        if 8 + length > size:
            raise AdapterFileError(
                f"{path}: truncated: the header needs {8 + length} bytes, the file has {size}"
            )
        raw = file.read(length)
    try:
        if sum(map(raw.count, (b"{", b"[", b","))) > length // 4 + 1000:
            raise ValueError("more values than tensors need")
        metadata, rest = _split(raw.decode("utf-8"))
        layout = (_layout if len(rest) <= _MAX_KEPT else _layout.__wrapped__)(rest)
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata must be text")
        "".join((*metadata, *metadata.values())).encode()  # a lone surrogate cannot
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, AdapterFileError):
            raise AdapterFileError(f"{path}: {error}") from None
        raise AdapterFileError(f"{path}: damaged safetensors header ({error})") from None
    left = size - 8 - length - layout.size
    if left < 0:
        raise AdapterFileError(
            f"{path}: truncated: the tensors need {8 + length + layout.size} bytes, the file has "
            f"{size}"
        )
    if left > 0:
        raise AdapterFileError(f"{path}: {left} bytes after the last tensor")
    return Header(layout, metadata, 8 + length, state)


def read_into(path: str | Path, header: Header, buffer: memoryview) -> None:
    """All tensors' bytes, one after the other, in one read; ``buffer`` has room for just these.

    Raises `AdapterFileError` if the file is not the one the header was read from any more.
    """
    with open_regular(path) as file:
        file.seek(header.data_start)
        if _state_of(file) != header.file or file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise AdapterFileError(f"{path}: changed while it was read; load it again")


def copy(
    source: str | Path,
    header: Header,
    target: str | Path,
    metadata: Callable[[str], dict[str, str]],
) -> str:
    """Copy a safetensors file with other metadata, in one reading; synced to disk.

    ``metadata`` makes them from the `content_hash`, which is returned. Raises `AdapterFileError`
    for NaN or infinity, and if the file is not the one the header was read from any more.
    """
    head = _head(header, metadata(_HASH + "0" * 64))
    numbers = _Numbers()
    with open_regular(source) as old, open(target, "xb") as new:
        if _state_of(old) != header.file:
            raise AdapterFileError(f"{source}: changed while it was read; add it again")
        new.write(head)
        for name, entry, chunk, place in _read(old, header):
            numbers.take(name, entry, chunk)
            new.seek(len(head) + place)
            new.write(chunk)
        if numbers.bad:
            raise AdapterFileError(f"{source}: {numbers.bad} holds NaN or infinity")
        final = _head(header, metadata(numbers.hash))
        if len(final) != len(head):
            raise ValueError("the metadata's length must not depend on the hash")
        new.seek(0)
        new.write(final)
        new.flush()
        os.fsync(new.fileno())
    return numbers.hash


def rename(source: str | Path, header: Header, target: str | Path, names: dict[str, str]) -> None:
    """Copy a safetensors file with other names of its tensors, old → new; metadata stay.

    Raises `AdapterFileError` if the file is not the one the header was read from any more.
    """
    tensors = {names[name]: entry for name, entry in header.tensors.items()}
    renamed = Header(Layout(tensors, header.layout.size), header.metadata, 0)
    with open_regular(source) as old, open(target, "xb") as new:
        if _state_of(old) != header.file:
            raise AdapterFileError(f"{source}: changed while it was read; add it again")
        new.write(_head(renamed, header.metadata))
        old.seek(header.data_start)
        shutil.copyfileobj(old, new, _CHUNK)


def content_hash(path: str | Path, header: Header) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in order of name; metadata do not count."""
    return inspect(path, header)[0]


def inspect(path: str | Path, header: Header) -> tuple[str, str | None]:
    """The `content_hash`, and the name of a tensor that holds NaN or infinity, if there is one."""
    numbers = _Numbers()
    with open_regular(path) as file:
        for name, entry, chunk, _ in _read(file, header):
            numbers.take(name, entry, chunk)
    return numbers.hash, numbers.bad


def digests(path: str | Path, header: Header) -> dict[str, str]:
    """SHA-256 of every tensor's dtype, shape and bytes, by name."""
    hashes: dict[str, str] = {}
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for name, entry, chunk, _ in _read(file, header):
            if name not in hashes:
                digest = hashlib.sha256(json.dumps([entry.dtype, list(entry.shape)]).encode())
            digest.update(chunk)
            hashes[name] = digest.hexdigest()
    return hashes


class _Numbers:
    """What all the bytes of a file say, taken in chunk by chunk: its hash, and whether finite."""

    def __init__(self) -> None:
        self.bad: str | None = None
        self._digest = hashlib.sha256()
        self._last: str | None = None

    @property
    def hash(self) -> str:
        return _HASH + self._digest.hexdigest()

    def take(self, name: str, entry: TensorEntry, chunk: bytes) -> None:
        if name != self._last:
            self._digest.update(json.dumps([name, entry.dtype, list(entry.shape)]).encode())
            self._last = name
        self._digest.update(chunk)
        if self.bad is None and not _finite(entry.dtype, chunk):
            self.bad = name


def _finite(dtype: str, chunk: bytes) -> bool:
    import numpy as np

    if dtype in ("F32", "F64"):
        numbers = np.frombuffer(chunk, "<f4" if dtype == "F32" else "<f8")
        return bool(np.isfinite(numbers).all())
    if mask := _EXPONENT.get(dtype):
        return not ((np.frombuffer(chunk, "<u2") & mask) == mask).any()
    return True


def _head(header: Header, metadata: dict[str, str]) -> bytes:
    """A file's first bytes: the length of the header's JSON, and the JSON, padded."""
    table: dict[str, object] = {"__metadata__": metadata}
    for name, entry in header.tensors.items():
        table[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.start, entry.end],
        }
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _read(file: IO[bytes], header: Header) -> Iterator[tuple[str, TensorEntry, bytes, int]]:
    """Every tensor in order of name, in chunks, each with its place in the data."""
    for name, entry in sorted(header.tensors.items(), key=lambda item: item[0]):
        file.seek(header.data_start + entry.start)
        at = entry.start
        while True:
            chunk = file.read(min(_CHUNK, entry.end - at))
            if not chunk and at < entry.end:
                raise AdapterFileError("the file became shorter while it was read")
            yield name, entry, chunk, at
            at += len(chunk)
            if at == entry.end:
                break


def _state_of(file: IO[bytes]) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _split(text: str) -> tuple[dict[str, str], str]:
    """The metadata of a header's JSON, and the JSON without them."""
    first = _METADATA_FIRST.match(text)
    if first is None:  # they are somewhere else, or there are none
        table = _JSON.decode(text)
        metadata = table.pop("__metadata__", {})
        return metadata, json.dumps(table)
    metadata, end = _JSON.raw_decode(text, first.end())
    rest = text[end:].strip(_SPACE)
    if rest.startswith(","):
        rest = rest[1:].lstrip(_SPACE)
        if rest.startswith("}"):
            raise ValueError("a comma before the end")
    elif not rest.startswith("}"):
        raise ValueError("no comma after the metadata")
    return metadata, "{" + rest


@lru_cache(maxsize=64)
def _layout(text: str) -> Layout:
    """The checked layout that a JSON table of tensors describes."""
    table = _JSON.decode(text)
    if "__metadata__" in table:
        raise ValueError("a name occurs twice")
    "".join(table).encode()  # a lone surrogate cannot
    tensors = {name: _entry(name, value) for name, value in table.items()}
    at = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != at:
            raise AdapterFileError(f"tensors overlap or leave a hole at byte {entry.start}")
        at = entry.end
    return Layout(tensors, at)


def _entry(name: str, value: object) -> TensorEntry:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: no object with a dtype, a shape and data_offsets")
    if not isinstance(value["shape"], list) or not isinstance(value["data_offsets"], list):
        raise ValueError(f"{name}: shape and data_offsets must be lists")
    shape = tuple(value["shape"])
    begin, end = value["data_offsets"]
    item = _ITEM_BYTES.get(value["dtype"])
    if item is None:
        raise AdapterFileError(f"{name} has the unknown dtype {value['dtype']!r}")
    for n in (*shape, begin, end):
        if type(n) is not int or not 0 <= n < 1 << 63:
            raise ValueError(f"{name}: sizes must be whole numbers below 2^63")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name}: {len(shape)} dimensions")
    if end - begin != math.prod(shape) * item:
        raise ValueError(f"{name}: shape {shape} does not fill bytes {begin} to {end}")
    return TensorEntry(value["dtype"], shape, begin, end)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicates)
_SPACE = " \t\n\r"
_METADATA_FIRST = re.compile(r'[ \t\n\r]*\{[ \t\n\r]*"__metadata__"[ \t\n\r]*:[ \t\n\r]*')
