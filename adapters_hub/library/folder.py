"""A library's folder on disk: names of folders, and changes that happen whole or not at all.

    <root>/.lock           what writers wait for
    <root>/.changes        a line for every change, so that readers notice each one
    <root>/.tmp/ .trash/   only while something is being changed

Knows names and renames; does not know what an adapter is. Writers hold a lock, write beside and
rename into place; readers need no lock. What a killed writer left is put right by the next one.
"""

import errno
import os
import shutil
import stat
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters_hub.errors import AdapterNameError, AdaptersHubError, LibraryError
from adapters_hub.library.blend import NAME

_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
_MAX_NAME = 96
_MAX_CHANGES = 1 << 20  # bytes of the list of changes; then a new one is begun


class LibraryFolder:
    """The folder of a library. ``root`` need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = str(root)  # asked for at every call of a model
        self._changes = os.path.join(self._path, ".changes")

    def place(self, name: str) -> Path:
        """Where the adapter of a name lies, if there is one; `AdapterNameError` for no name."""
        check_name(name)
        return self.root / (f"{name}_" if name.lower() in _DEVICES else name)

    def entries(self) -> list[os.DirEntry[str]]:
        """The folders that may be adapters, in order of name."""
        try:
            present = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            entry
            for entry in present
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]

    def names(self) -> list[str]:
        """The names that belong to the folders."""
        return sorted(name_of(entry.name) for entry in self.entries())

    def state(self) -> tuple[int, ...] | None:
        """What differs after every change: the list of changes grows, and a change by hand moves
        the folder's time. None if there is no folder.
        """
        try:
            folder = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not os.access(self._changes, os.F_OK):  # in less time than an error takes
            return folder.st_mtime_ns, folder.st_nlink
        try:
            changes = os.stat(self._changes)
        except FileNotFoundError:  # gone just now
            return folder.st_mtime_ns, folder.st_nlink
        return folder.st_mtime_ns, folder.st_nlink, changes.st_ino, changes.st_size

    @property
    def unfinished(self) -> bool:
        """Whether a replacement or a removal is under way, or its writer was killed."""
        return os.path.isdir(self.root / ".trash")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of writers; raises `LibraryError` where nothing can be changed."""
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire()
        except OSError as error:
            raise LibraryError(f"cannot write to {self.root}: {error.strerror or error}") from error
        try:
            self._recover()
            yield
        except OSError as error:
            if isinstance(error, AdaptersHubError):
                raise
            raise LibraryError(f"cannot change {self.root}: {error.strerror or error}") from error
        finally:
            lock.release()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to fill; gone afterwards whatever happens, unless it was published."""
        stage = self.root / ".tmp" / uuid.uuid4().hex
        try:
            stage.mkdir(parents=True)
            yield stage
        except OSError as error:
            if isinstance(error, AdaptersHubError):
                raise
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise LibraryError(f"cannot write to {self.root}: {what}; nothing was added") from error
        finally:
            shutil.rmtree(self.root / ".tmp", ignore_errors=True)

    def publish(self, stage: Path, name: str, replace_existing: bool) -> None:
        """Under the lock: put a filled folder in the place of a name."""
        target = self.place(name)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise LibraryError(f"{target} is in the way and is no adapter folder")
        if not target.exists():
            alike = [n for n in self.names() if n != name and n.casefold() == name.casefold()]
            if alike:
                raise LibraryError(
                    f"{self.root} has {alike[0]!r}, which differs from {name!r} only in case: some "
                    "file systems take them for one; choose another name"
                )
            os.rename(stage, target)
            self._note(name)
            return
        if not replace_existing:
            raise LibraryError(
                f"{self.root} already has {name!r}; remove it first, add under another name, "
                "or replace it (replace_existing=True, --replace)"
            )
        old = self._to_trash(target, keep=True)
        os.rename(stage, target)
        self._note(name)
        shutil.rmtree(old.parent)

    def discard(self, name: str) -> None:
        """Under the lock: delete the folder of a name."""
        old = self._to_trash(self.place(name), keep=False)
        self._note(name)
        shutil.rmtree(old.parent)

    def _to_trash(self, folder: Path, keep: bool) -> Path:
        """Move a folder to the trash; ``keep`` brings it back should the writer die now."""
        trash = self.root / ".trash"
        trash.mkdir(exist_ok=True)
        old = trash / f"{folder.name}~{'keep' if keep else 'drop'}~{uuid.uuid4().hex}"
        os.rename(folder, old)
        return old

    def _recover(self) -> None:
        """Under the lock: bring back what a killed writer moved away, drop what it half wrote."""
        trash = self.root / ".trash"
        for place in (trash, self.root / ".tmp"):
            if place.is_symlink():
                place.unlink()
        for partial in self.root.glob("..index.json.*"):
            partial.unlink(missing_ok=True)
        if trash.is_dir():
            for old in trash.iterdir():
                folder_name, _, fate = old.name.rpartition("~")[0].rpartition("~")
                if fate == "keep" and not (self.root / folder_name).exists():
                    os.rename(old, self.root / folder_name)
                self._note(folder_name)
            shutil.rmtree(trash)
        shutil.rmtree(self.root / ".tmp", ignore_errors=True)

    def _note(self, name: str) -> None:
        """Say that something changed, to whoever asks for the `state`."""
        try:
            present = os.lstat(self._changes)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(present.st_mode) or present.st_size > _MAX_CHANGES:
                os.unlink(self._changes)
        with open(self._changes, "ab") as file:
            file.write(f"{name}\n".encode())


def check_name(name: str) -> str:
    """The name, if it can be a folder and a blend's term; `AdapterNameError` otherwise."""
    name = unicodedata.normalize("NFC", name)
    sound = NAME.fullmatch(name) and len(name.encode()) <= _MAX_NAME and not name.isdigit()
    if not sound or name != name_of(name):
        raise AdapterNameError(
            f"{name!r} cannot name an adapter: use letters, digits and _, joined by single '.' or "
            f"'-' (at most {_MAX_NAME} bytes, not digits alone), such as de, pt-BR or hotel.v2"
        )
    return name


def name_of(folder_name: str) -> str:
    """An adapter's name from its folder's, which ends in _ where Windows reserves the name."""
    stem = folder_name.removesuffix("_")
    return stem if stem.lower() in _DEVICES else folder_name
