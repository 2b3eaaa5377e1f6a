"""Where an adapter is or shall be, read from what a user writes.

    user/repo                    the Hub, unless there is such a folder here
    hf://user/repo[@revision][/folder]
    https://huggingface.co/user/repo[/tree/revision[/folder]]      as copied from a browser
    s3://bucket/folder, gs://…, memory://…, https://host/folder    a folder that fsspec reaches
    …/name.safetensors           one file, which is a whole adapter
    ./folder, /a/folder          a folder here

Knows texts; goes to no network.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from adapters_hub.errors import SettingsError

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_TREE = re.compile(r"(?:tree|blob|resolve|raw)/(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.*))?")
_REVISION = re.compile(r"(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class HubAddress:
    """A repository of the Hub, a revision of it (None: its main branch), a folder in it."""

    repo: str
    revision: str | None = None
    folder: str = ""

    @property
    def text(self) -> str:
        """What `address_of` reads."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}" + (f"/{self.folder}" if self.folder else "")

    @property
    def name(self) -> str:
        """What an adapter that says no name could be called."""
        return (self.folder or self.repo).rpartition("/")[2]

    def without_commit(self, commit: str) -> "HubAddress":
        """The address of what is newest, where the revision is this commit and no branch."""
        asked = self.revision or ""
        pinned = _COMMIT.fullmatch(asked) and commit.startswith(asked)
        return replace(self, revision=None) if pinned else self


@dataclass(frozen=True)
class StoreAddress:
    """A folder, or one ``.safetensors`` file, that fsspec reaches by its URL."""

    url: str

    @property
    def text(self) -> str:
        """The URL without what may be secret in it: a password, a signature."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    @property
    def lone(self) -> bool:
        """Whether it is one file."""
        return urlsplit(self.url).path.endswith(".safetensors") or self.url.endswith(".safetensors")

    @property
    def name(self) -> str:
        """What an adapter that says no name could be called."""
        return self.text.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")

    def file(self, name: str) -> str:
        """The URL of a file in the folder; a query stays behind it."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


Address = HubAddress | StoreAddress | Path


def is_remote(text: str) -> bool:
    """Whether a text names something by a scheme, such as ``hf://`` or ``https://``."""
    return _SCHEME.match(text) is not None


def address_of(
    text: str | os.PathLike[str], revision: str | None = None, *, sending: bool = False
) -> Address:
    """Read an address; ``revision`` is of the Hub only. A folder that is here is meant, if any.

    ``sending``: ``user/repo`` is the Hub whatever folders there are. Raises `SettingsError` for
    what cannot be one.
    """
    address = _read(os.fspath(text), sending)
    if revision is None:
        return address
    if not isinstance(address, HubAddress):
        raise SettingsError(
            f"revision={revision!r}: {text} is not on the Hub, and only the Hub keeps revisions"
        )
    if address.revision not in (None, revision):
        raise SettingsError(f"two revisions: {revision!r} and the one in {text!r}; give one")
    return replace(address, revision=revision)


def _read(text: str, sending: bool) -> Address:
    if text.startswith("hf://"):
        return _hub(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://")).expanduser()
    if is_remote(text):
        return _hub_page(text) or StoreAddress(text)
    path = Path(text).expanduser()
    if _REPO.fullmatch(text) and not text.startswith(".") and (sending or not path.exists()):
        return HubAddress(text)
    return path


def _hub(text: str) -> HubAddress:
    rest = text.removeprefix("hf://").removeprefix("models/").strip("/")
    repo, at, behind = rest.partition("@")
    folder = ""
    revision = None
    if at:
        match = _REVISION.fullmatch(behind)
        revision, folder = (match[1], match[2] or "") if match else (None, "")
    else:
        parts = rest.split("/")
        repo, folder = "/".join(parts[:2]), "/".join(parts[2:])
    if not _REPO.fullmatch(repo) or (at and revision is None):
        raise SettingsError(
            f"{text!r} is no address on the Hub: write hf://user/repo, hf://user/repo@revision or "
            "hf://user/repo@revision/folder"
        )
    return HubAddress(repo, revision, _folder(folder, text))


def _hub_page(text: str) -> HubAddress | None:
    """The repository of a page that was copied from a browser, if it is one of the Hub's."""
    parts = urlsplit(text)
    hosts = {"huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc} - {""}
    if parts.scheme not in ("http", "https") or parts.netloc not in hosts:
        return None
    pieces = parts.path.strip("/").split("/", 2)
    repo = "/".join(pieces[:2])
    if len(pieces) < 2 or not _REPO.fullmatch(repo) or pieces[0] in ("datasets", "spaces"):
        raise SettingsError(f"{text} is no page of a model on the Hub: write user/repo")
    if len(pieces) == 2:
        return HubAddress(repo)
    match = _TREE.fullmatch(pieces[2])
    if match is None:
        return HubAddress(repo)
    folder = match[2] or ""
    if re.search(r"\.(?:safetensors|json|md|bin)$", folder):  # a file's page: its folder is meant
        folder = folder.rpartition("/")[0]
    return HubAddress(repo, match[1], _folder(folder, text))


def _folder(folder: str, text: str) -> str:
    if ".." in folder.split("/"):
        raise SettingsError(f"{text!r}: .. in an address")
    return folder.strip("/")
