"""Adapters in a store that fsspec reaches: S3, GCS, a web server, memory.

A download that broke off leaves what came in the cache, and the next one goes on from there. Knows
bytes and URLs; does not check what is in the files.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adapters_hub import progress
from adapters_hub.errors import (
    AccessError,
    AdaptersHubError,
    LibraryError,
    MissingExtraError,
    RemoteNotFoundError,
    SettingsError,
    TransferError,
)
from adapters_hub.library.adapter_file import CARD_FILE, CONFIG_FILE, METADATA_KEY, WEIGHTS_FILE
from adapters_hub.library.remote.address import StoreAddress

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_Answer = TypeVar("_Answer")

CHUNK = 8 << 20
"""Bytes of one request."""
_ATTEMPTS, _PAUSE = 4, 0.2
_HEADER = 8  # bytes that say how long a safetensors header is
_MAX_HEADER = 100_000_000
_STATE = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "content_md5", "checksum",
          "Last-Modified", "LastModified", "last_modified", "mtime", "created")  # fmt: skip
_SET_BY = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_ORDER = (WEIGHTS_FILE, CARD_FILE, CONFIG_FILE)  # who finds a configuration finds the rest


def newest(address: StoreAddress) -> str:
    """What stands for a store's adapter as it is now; see `revision_of`."""
    with _told(address):
        return revision_of(
            *_open(address, address.url if address.lone else address.file(WEIGHTS_FILE))
        )


def revision_of(fs: "AbstractFileSystem", path: str) -> str:
    """A hash of a weights file's header, and of what the store says of a file that is not ours.

    Our header has a hash of the tensors; for other files the store's time or checksum is used.
    """
    info = _info(fs, path)
    start = _bytes(fs, path, 0, _HEADER)[:_HEADER]
    length = min(int.from_bytes(start, "little"), _MAX_HEADER)
    header = _bytes(fs, path, 0, _HEADER + length)[: _HEADER + length]
    ours = f'"{METADATA_KEY}"'.encode() in header
    return hashlib.sha256(header if ours else _state(info) + header).hexdigest()[:40]


def fetch(address: StoreAddress, into: Path) -> Path:
    """Put an adapter's files into an empty folder; returns the folder, or the one file."""
    with _told(address):
        if address.lone:
            target = into / f"{address.name}.safetensors"
            _download(*_open(address, address.url), target)
            return target
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            _download(*_open(address, address.file(name)), into / name)
        fs, path = _open(address, address.file(CARD_FILE))
        with suppress(FileNotFoundError):  # a card is not needed
            _download(fs, path, into / CARD_FILE)
        return into


def send(folder: Path, address: StoreAddress, *, replace_existing: bool) -> str:
    """Copy an adapter's files to where an address says; returns the address for people.

    Object stores take each file whole, the configuration last. What was sent of a new adapter is
    deleted where the rest fails.
    """
    if address.url.startswith(("http://", "https://")):
        raise SettingsError(
            f"{address.text}: a web server can only be pulled from; push to the Hub (user/repo), "
            "s3://, gs:// or a folder, and let the server show that"
        )
    names = {WEIGHTS_FILE: address.url} if address.lone else {
        name: address.file(name) for name in _ORDER if (folder / name).exists()
    }  # fmt: skip
    with _told(address, writing=True):
        fs, weights = _open(address, names[WEIGHTS_FILE])
        there = fs.exists(weights)
        if there and not replace_existing:
            raise LibraryError(
                f"{address.text} has an adapter already: push to another place, or replace it "
                "(replace_existing=True, --replace)"
            )
        fs.makedirs(fs._parent(weights), exist_ok=True)
        sent = []
        try:
            for name, url in names.items():
                path = str(fs._strip_protocol(url))
                sent.append(path)
                fs.put_file(str(folder / name), path)
        except BaseException:
            for path in () if there else sent:
                if fs.exists(path):
                    fs.rm_file(path)
            raise
    return address.text


def _open(address: StoreAddress, url: str) -> tuple["AbstractFileSystem", str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = address.url.partition("://")[0]
        extra = _SET_BY.get(scheme, "")
        how = f"pip install 'adapters-hub[{extra}]'" if extra else str(error)
        raise MissingExtraError(
            f"{scheme}:// needs a package that is not installed: {how}"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{address.text}: {error}") from error
    fs.invalidate_cache()  # what was listed before may be old
    return fs, path


def _download(fs: "AbstractFileSystem", path: str, target: Path) -> None:
    """Fetch a file by parts, going on with what an earlier try left."""
    from filelock import FileLock

    info = _info(fs, path)
    size = info.get("size")
    key = hashlib.sha256(path.encode() + _state(info)).hexdigest()[:32]
    cache = downloads()
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{key}.part"
    with FileLock(cache / f"{key}.lock"):
        with (
            open(partial, "ab") as file,
            progress.bar(size, target.name, "B", initial=file.tell(), scale=True) as bar,
        ):
            while size is None or file.tell() < size:
                at = file.tell()
                end = None if size is None else min(size, at + CHUNK)
                part = _bytes(fs, path, at, end)
                if size is not None and len(part) == size:  # a server may send the whole file
                    file.truncate(0)
                if not part:
                    break
                file.write(part)
                file.flush()
                bar.update(len(part))
                if size is None:
                    break
            got = file.tell()
        if size is not None and got != size:
            partial.unlink()
            raise TransferError(f"{target.name} has {got} bytes there, and {size} were said")
        shutil.move(partial, target)
    (cache / f"{key}.lock").unlink(missing_ok=True)


def _bytes(fs: "AbstractFileSystem", path: str, start: int, end: int | None) -> bytes:
    """Some of a file, or all of it where its end is not known."""
    return _again(
        lambda: bytes(fs.cat_file(path) if end is None else fs.cat_file(path, start, end))
    )


def _info(fs: "AbstractFileSystem", path: str) -> dict[str, Any]:
    """What a store says of a file."""

    def ask() -> dict[str, Any]:
        try:
            return dict(fs.info(path))
        except FileNotFoundError as error:  # fsspec raises it for any failure of a web server
            cause = error.__cause__
            if isinstance(cause, Exception) and _status(cause) != 404:
                raise cause from None
            raise

    return _again(ask)


def _again(ask: Callable[[], _Answer]) -> _Answer:
    """An answer, asked for again where the connection breaks."""
    left = _ATTEMPTS
    while True:
        try:
            return ask()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            left -= 1
            if not left or _status(error) in (401, 403, 404):
                raise
            time.sleep(_PAUSE * (_ATTEMPTS - left))


def _state(info: dict[str, Any]) -> bytes:
    """What a store says of a file that differs once it is written anew."""
    facts = {key: str(info[key]) for key in (*_STATE, "size") if info.get(key) is not None}
    return json.dumps(facts, sort_keys=True).encode()


def downloads() -> Path:
    """Where parts of downloads are kept: in ``$ADAPTERS_HUB_CACHE``, else the user's cache."""
    if chosen := os.environ.get("ADAPTERS_HUB_CACHE"):
        return Path(chosen) / "downloads"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adapters_hub" / "downloads"


@contextmanager
def _told(address: StoreAddress, *, writing: bool = False) -> Iterator[None]:
    """Turn a store's errors, which are of many classes, into ours."""
    try:
        yield
    except AdaptersHubError:
        raise
    except FileNotFoundError as error:
        raise RemoteNotFoundError(
            f"{address.text}: no adapter there ({error}); give the folder of {WEIGHTS_FILE} and "
            f"{CONFIG_FILE}, or one .safetensors file of ours"
        ) from error
    except Exception as error:
        status, kind = _status(error), type(error).__name__
        if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in kind:
            what = "write" if writing else "read"
            raise AccessError(
                f"{address.text}: it may not be {what} ({kind}: {error}); give the store's "
                "credentials as its tools take them (such as AWS_PROFILE, or gcloud's login)"
            ) from error
        raise TransferError(
            f"{address.text}: the transfer failed ({kind}: {error}); look at the network and run "
            "the same again, which goes on where it stopped"
        ) from error


def _status(error: Exception) -> int | None:
    """The HTTP status of an error, by the names that clients give it."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None
