"""What the headers of a library's adapters say, kept in memory and in ``.index.json``.

Only a cache: what it keeps of an adapter is true while the times and sizes of the adapter's files
are those it was read at. Safe to delete; not written where that does not pay or is not allowed.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from adapters_hub.errors import AdaptersHubError
from adapters_hub.library.adapter_file import (
    CARD_FILE,
    CONFIG_FILE,
    METADATA_KEY,
    WEIGHTS_FILE,
    AdapterInfo,
    read_adapter,
)
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.checks import with_card
from adapters_hub.library.folder import check_name, name_of

log = logging.getLogger(__name__)

_Known = dict[str, tuple[list[int], AdapterInfo]]  # by the folder's name
_WORTH = 100  # adapters known for one newly read: below, the file is left as it is


class Index:
    """The cache of one library's folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = root / ".index.json"
        self._known: _Known | None = None

    def look(self, folders: Iterable[os.DirEntry[str]], *, save: bool) -> dict[str, AdapterInfo]:
        """The sound adapters of these folders by name, and a logged warning for every other."""
        known = self._load() if self._known is None else self._known
        fresh: _Known = {}
        read = 0
        for folder in folders:
            now = stamp(folder.path)
            kept = known.get(folder.name)
            if kept is not None and now and kept[0] == now:
                fresh[folder.name] = kept
                continue
            try:
                fresh[folder.name] = (now, _read(folder))
            except (AdaptersHubError, OSError) as error:
                log.warning("left out of %s: %s", self._root, error)
                continue
            read += 1
        changes = read + len(known.keys() - fresh.keys())
        self._known = fresh
        if save and changes and changes * _WORTH >= len(fresh):
            self._save(fresh)
        return {info.name: info for _, info in fresh.values()}

    def _load(self) -> _Known:
        try:
            entries = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(entries, dict):
            return {}
        known: _Known = {}
        for name, entry in entries.items():
            try:
                path = os.path.join(self._root, name)
                known[name] = (
                    entry["state"],
                    AdapterInfo.from_json(entry["info"] | {"path": path}),
                )
            except (KeyError, TypeError, ValueError):
                continue  # not an entry that this version wrote
        return known

    def _save(self, known: _Known) -> None:
        entries = {
            name: {"state": at, "info": info.to_json()} for name, (at, info) in known.items()
        }
        try:
            with atomic_write(self._file) as file:
                file.write(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode())
        except OSError as error:
            log.debug("no index in %s (%s): listing stays slow but right", self._root, error)


def stamp(folder: str) -> list[int]:
    """The times and sizes of an adapter's files; empty if there is none."""
    state = []
    for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
        try:
            stat = os.stat(os.path.join(folder, name))
            state += [stat.st_mtime_ns, stat.st_size]
        except OSError:
            if name != CARD_FILE:
                return []
    return state


def _read(folder: os.DirEntry[str]) -> AdapterInfo:
    files = read_adapter(folder.path, check_name(name_of(folder.name)))
    if METADATA_KEY in files.header.metadata:
        return files.info
    return with_card(files.info, Path(folder.path))
