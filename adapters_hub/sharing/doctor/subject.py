"""An adapter under examination: what can be read of it, each part by itself, and why not the rest.

Reading a part never raises: its `Unread` says why there is none. Tensors are read one at a time.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.errors import AdapterFileError, AdaptersHubError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import (
    CARD_FILE,
    CONFIG_FILE,
    METADATA_KEY,
    WEIGHTS_FILE,
    AdapterFiles,
    read_adapter,
    read_config,
)
from adapters_hub.library.checks import local_folder
from adapters_hub.library.json_fields import read_json
from adapters_hub.library.model_card import read_front_matter
from adapters_hub.sharing.printable import printable

if TYPE_CHECKING:
    import numpy as np

MAX_FILES = 5000
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Unread:
    """Why a part could not be read."""

    why: str


@dataclass(frozen=True)
class File:
    """A file beside the weights: its path below the folder, and what kind of thing it is."""

    path: str
    regular: bool
    size: int
    start: bytes  # its first eight bytes


@dataclass
class Subject:
    """A PEFT folder, or a lone ``.safetensors`` file."""

    path: Path

    @property
    def folder(self) -> Path | None:
        """The folder; None for a lone file."""
        return self.path if self.path.is_dir() else None

    @property
    def weights(self) -> Path:
        """The file that should have the tensors."""
        return self.path / WEIGHTS_FILE if self.folder else self.path

    @cached_property
    def files(self) -> list[File]:
        """All files below the folder, none of them opened further than eight bytes."""
        if self.folder is None:
            return [_file(self.path, self.path.parent)]
        return [_file(path, self.folder) for path in _walk(self.folder)]

    @cached_property
    def header(self) -> tensorfile.Header | Unread:
        """The safetensors header."""
        try:
            return tensorfile.read_header(self.weights)
        except (AdapterFileError, OSError, ValueError) as error:
            return Unread(_why(error))

    @cached_property
    def adapter(self) -> AdapterFiles | Unread:
        """What the library reads; it refuses what it cannot compose."""
        try:
            return read_adapter(self.path)
        except (AdaptersHubError, OSError, ValueError) as error:
            return Unread(_why(error))

    @cached_property
    def config(self) -> Mapping[str, object] | Unread:
        """PEFT's configuration: the folder's, or the copy in a lone file's header."""
        try:
            if self.folder:
                return read_config(self.folder / CONFIG_FILE)
        except AdapterFileError as error:
            return Unread(_why(error))
        stored = self.ours.get("lora")
        return stored if isinstance(stored, dict) else Unread(f"no configuration in {self.path}")

    @cached_property
    def ours(self) -> Mapping[str, object]:
        """The metadata this library writes into a header; empty without."""
        if isinstance(self.header, Unread):
            return {}
        try:
            data = read_json(self.header.metadata.get(METADATA_KEY, "{}"))
        except (ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    @cached_property
    def card(self) -> Mapping[str, object] | Unread | None:
        """The card's front matter; None without a card."""
        if self.folder is None or not (self.folder / CARD_FILE).exists():
            return None
        try:
            return read_front_matter(self.folder / CARD_FILE)
        except (AdapterFileError, OSError) as error:
            return Unread(_why(error))

    @property
    def base(self) -> str | None:
        """The backbone that the files name."""
        named = self.ours.get("backbone")
        if named is None and isinstance(self.config, Mapping):
            named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    @cached_property
    def base_folder(self) -> Path | None:
        """The backbone's folder, where it is at hand."""
        try:
            return local_folder(self.base)
        except (OSError, ValueError):
            return None

    @cached_property
    def pairs(self) -> dict[str, dict[str, str]]:
        """Module → side (A, B) → key, as far as the names say."""
        keys: dict[str, dict[str, str]] = {}
        if isinstance(self.header, tensorfile.Header):
            for key in self.header.tensors:
                if match := FACTOR.fullmatch(key):
                    keys.setdefault(match[1], {})[match[2]] = key
        return keys

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Module → rank, as the shape of A says."""
        if isinstance(self.header, Unread):
            return {}
        shapes = {
            module: self.header.tensors[pair["A"]].shape
            for module, pair in self.pairs.items()
            if "A" in pair
        }
        return {module: shape[0] for module, shape in shapes.items() if shape}

    def tensors(self) -> "Iterator[tuple[str, np.ndarray]]":
        """Each tensor of floating point, float32, of its shape; one at a time.

        Raises `AdapterFileError` if the file changes meanwhile.
        """
        if isinstance(self.header, Unread):
            return
        with tensorfile.open_regular(self.weights) as file:
            for name, entry in self.header.tensors.items():
                if entry.dtype not in (*_FLOATS, "BF16"):
                    continue
                file.seek(self.header.data_start + entry.start)
                raw = file.read(entry.end - entry.start)
                if len(raw) != entry.end - entry.start:
                    raise AdapterFileError(f"{self.weights}: became shorter while it was read")
                yield name, _float32(raw, entry.dtype).reshape(entry.shape)


def _float32(raw: bytes, dtype: str) -> "np.ndarray":
    import numpy as np

    if dtype == "BF16":
        wide = np.zeros(len(raw) // 2, "<u4")
        wide[:] = np.frombuffer(raw, "<u2")
        wide <<= 16
        return wide.view("<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(raw, _FLOATS[dtype]).astype("<f4", copy=False)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, linked folders not followed, `MAX_FILES` at most."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                return
            yield Path(place, name)


def _file(path: Path, folder: Path) -> File:
    name = path.relative_to(folder).as_posix()
    try:
        seen = os.stat(path)
        if not stat.S_ISREG(seen.st_mode):
            return File(name, False, 0, b"")
        with tensorfile.open_regular(path) as file:
            return File(name, True, seen.st_size, file.read(8))
    except (OSError, AdapterFileError):
        return File(name, False, 0, b"")


def _why(error: Exception) -> str:
    return printable(str(getattr(error, "strerror", None) or error))
