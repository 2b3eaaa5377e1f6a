"""A folder of PEFT adapters, as the Hub has them, into a library: one after the other.

What one of them is refused for does not stop the others; each gets a row. Never imports torch, and
never opens a pickle (see `pickles`).
"""

import re
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from adapters_hub.errors import AdapterFileError, AdaptersHubError
from adapters_hub.library.adapter_file import WEIGHTS_FILE
from adapters_hub.library.library import Library
from adapters_hub.sharing.adapter_folders import (
    PICKLED_WEIGHTS,
    find_adapters,
    given_name,
    is_checkpoint,
)
from adapters_hub.sharing.normalising import normalise
from adapters_hub.sharing.pickles import convert_pickle
from adapters_hub.sharing.printable import printable

_NO_NAME = re.compile(r"[^\w.]+")
_MAX_NAME = 90


class Given(TypedDict, total=False):
    """What may be said of all adapters, as `Library.add` takes it."""

    language: str | None
    domain: str | None
    task: str | None
    backbone: str | None
    license: str | None


@dataclass(frozen=True)
class Imported:
    """What became of one adapter. ``status``: added, refused, or left out; ``why``: in words."""

    source: str
    status: str
    name: str | None = None
    why: str = ""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        parts = (f"{self.status:<8}", self.name or "-", self.source, self.why)
        return "  ".join(printable(part) for part in parts if part)


def import_adapters(
    library: Library,
    source: Path,
    *,
    convert: bool = False,
    replace_existing: bool = False,
    **given: Unpack[Given],
) -> Iterator[Imported]:
    """Add every adapter below a folder, a row each, as it is done.

    ``convert``: make safetensors of pickles first. ``given`` goes to `Library.add` for all of them.
    Raises `AdapterFileError` if there is no such folder, or no adapter in it.
    """
    if not source.exists():
        raise AdapterFileError(f"{source}: no such folder or file")
    places = find_adapters(source)
    if not places:
        raise AdapterFileError(f"{source}: no adapter in it, nor in its folders")
    taken: dict[str, Path] = {}
    for place in places:
        shown = str(place)
        if place != source and is_checkpoint(place):
            yield Imported(shown, "left out", None, "a trainer's checkpoint; import it by itself")
            continue
        name = clean_name(given_name(place, source))
        try:
            if name in taken:
                raise AdapterFileError(f"{taken[name]} got the name {name!r}")
            added, notes = _add(library, place, name, convert, replace_existing, given)
        except AdaptersHubError as error:
            yield Imported(shown, "refused", None, str(error))
            continue
        except OSError as error:
            yield Imported(
                shown, "refused", None, f"{error.filename or place}: {error.strerror or error}"
            )
            continue
        taken[added] = place
        yield Imported(shown, "added", added, "; ".join(notes))


def clean_name(text: str) -> str:
    """The nearest valid name of an adapter; ``adapter`` where no character is left."""
    text = _NO_NAME.sub("-", unicodedata.normalize("NFC", text))
    text = re.sub(r"[.\-]*-[.\-]*|\.{2,}", "-", text).strip(".-")
    while len(text.encode()) > _MAX_NAME:
        text = text[:-1].rstrip(".-")
    if not text or text.isdigit():
        text = f"adapter-{text}".rstrip("-")
    return text


def _add(
    library: Library,
    place: Path,
    name: str,
    convert: bool,
    replace_existing: bool,
    given: Given,
) -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory(prefix="adapters-hub-") as scratch:
        plain = Path(scratch) / "plain"
        notes: list[str] = []
        folder = place
        try:
            if place.is_dir():
                weights, notes = _weights(place, Path(scratch), convert)
                folder, changes = normalise(place, weights, plain)
                notes += changes
            info = library.add(folder, name=name, replace_existing=replace_existing, **given)
        except AdaptersHubError as error:  # named by the path that the user gave
            text = str(error).replace(str(plain), str(place)).replace(scratch, str(place))
            raise type(error)(text) from None
        return info.name, notes


def _weights(place: Path, scratch: Path, convert: bool) -> tuple[Path, list[str]]:
    """The folder's safetensors, or those made of its pickle."""
    weights = place / WEIGHTS_FILE
    if weights.exists():
        return weights, []
    pickles = [place / name for name in PICKLED_WEIGHTS if (place / name).exists()]
    if not pickles:
        return weights, []  # the caller reports it as missing
    if not convert:
        raise AdapterFileError(
            f"{pickles[0]} is a pickle, which can run code when it is opened; --convert-pickle "
            "makes safetensors of it in a process that has no network and reads tensors alone"
        )
    if not pickles[0].is_file():
        raise AdapterFileError(f"{pickles[0]}: not a regular file")
    convert_pickle(pickles[0], scratch / WEIGHTS_FILE)
    return scratch / WEIGHTS_FILE, ["converted from a pickle"]
