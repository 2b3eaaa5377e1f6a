"""Where adapters lie in a folder by the Hub's conventions: at its top, in subfolders, or both.

    repo/adapter_config.json                 PEFT's default adapter
    repo/de/adapter_config.json              one more, named de
    models--org--name/snapshots/0123…/       the Hub's cache
    repo/checkpoint-500/                     a trainer's; left out

Knows names of files; reads none of them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from adapters_hub.library.adapter_file import CONFIG_FILE, WEIGHTS_FILE

PICKLED_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
_MARKS = (CONFIG_FILE, WEIGHTS_FILE, *PICKLED_WEIGHTS)
_MAX_DEPTH = 6
_MAX_FOLDERS = 20_000
_CACHE = "models--"


def find_adapters(source: Path) -> list[Path]:
    """The folders below ``source``, itself included, that have an adapter's files, and lone
    ``.safetensors`` files at its top, in order of path. Linked folders are not followed.
    """
    if not source.is_dir():
        return [source]
    places = [*_folders(source)]
    if not places:
        places = sorted(p for p in source.iterdir() if p.suffix == ".safetensors" and p.is_file())
    return places


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of those a trainer leaves while it goes on (``checkpoint-500``)."""
    start, _, step = folder.name.rpartition("-")
    return start == "checkpoint" and step.isdigit()


def given_name(folder: Path, source: Path) -> str:
    """What an adapter below ``source`` is called by its place: the path's parts, joined by ``-``.

    A folder of the Hub's cache is called by its repository.
    """
    place = folder.absolute()
    parts = list(folder.relative_to(source).with_suffix("").parts) if folder != source else []
    if parts and folder.is_dir():
        parts[-1] = folder.name
    if parts:
        return "-".join(parts)
    for part in (place, *place.parents)[:3]:
        if part.name.startswith(_CACHE):
            return part.name.rpartition("--")[2]
    return place.name.removesuffix(".safetensors")


def _folders(source: Path) -> Iterator[Path]:
    for count, (place, folders, names) in enumerate(os.walk(source)):
        depth = len(Path(place).relative_to(source).parts)
        if depth >= _MAX_DEPTH or count > _MAX_FOLDERS:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(mark in names for mark in _MARKS):
            yield Path(place)
