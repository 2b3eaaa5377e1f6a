"""Adapters on the Hub: resolves a revision to a commit, downloads its files, pushes a commit.

The client is huggingface_hub: it takes up a download that broke off where it stopped, keeps what
was fetched in its cache, and sends no large file that the Hub has already. Knows repositories;
does not check what is in the files.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.errors import (
    AccessError,
    AdapterFileError,
    AdaptersHubError,
    RemoteNotFoundError,
    SettingsError,
    TransferError,
)
from adapters_hub.library.adapter_file import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from adapters_hub.library.remote.address import HubAddress

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

Token = str | bool | None
"""huggingface_hub's: a token, None for the one that is logged in, False for none."""
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Commit:
    """One revision of a repository, and the files in it."""

    id: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Pushed:
    """Where an adapter was sent: for people, and for `Library.pull`."""

    url: str
    source: str
    revision: str | None
    """The commit on the Hub; None elsewhere."""


def commit_of(address: HubAddress, token: Token = None) -> Commit:
    """The commit that an address means now, without its files; raises `TransferError`."""
    with _told(address, token):
        info = _api(token).model_info(address.repo, revision=address.revision)
        return Commit(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def fetch(address: HubAddress, commit: Commit, into: Path, token: Token = None) -> None:
    """Put an adapter's files of a commit into an empty folder.

    Raises `AdapterFileError` where the repository has no adapter there, `TransferError`.
    """
    prefix = f"{address.folder}/" if address.folder else ""
    present = {name.removeprefix(prefix) for name in commit.files if name.startswith(prefix)}
    _check_present(address, present, commit)
    with _told(address, token):
        for name in (CONFIG_FILE, CARD_FILE, WEIGHTS_FILE):
            if name in present:
                cached = _api(token).hf_hub_download(
                    address.repo, prefix + name, revision=commit.id
                )
                shutil.copyfile(cached, into / name)


def send(
    folder: Path, address: HubAddress, *, private: bool | None, message: str, token: Token = None
) -> Pushed:
    """Send a folder's files as one commit; the repository and the branch are made if need be.

    Raises `TransferError` or `AccessError`; there is all of it or nothing then.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api(token)
    with _told(address, token, writing=True):
        api.create_repo(address.repo, private=private, exist_ok=True)
        branch = address.revision
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(address.repo, branch=branch, exist_ok=True)
        prefix = f"{address.folder}/" if address.folder else ""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        done = api.create_commit(
            address.repo,
            [
                CommitOperationAdd(prefix + path.relative_to(folder).as_posix(), str(path))
                for path in files
            ],
            commit_message=message,
            revision=branch,
        )
    page = f"{api.endpoint}/{address.repo}"
    return Pushed(f"{page}/tree/{branch}" if branch else page, address.text, done.oid)


def _api(token: Token) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="adapters_hub")


def _check_present(address: HubAddress, present: set[str], commit: Commit) -> None:
    if {WEIGHTS_FILE, CONFIG_FILE} <= present:
        return
    if "adapter_model.bin" in present and WEIGHTS_FILE not in present:
        raise AdapterFileError(
            f"{address.text}: adapter_model.bin is a pickle, which can run code when it is opened; "
            "ask its author for safetensors, or convert it with PEFT where you trust it"
        )
    folders = sorted(
        name.rpartition("/")[0] for name in commit.files if name.endswith(f"/{WEIGHTS_FILE}")
    )
    if folders:
        there = ", ".join(folders[:8])
        raise RemoteNotFoundError(
            f"{address.text}: no adapter there, but in its folders {there}: pull "
            f"hf://{address.repo}@{address.revision or 'main'}/{folders[0]}"
        )
    missing = ", ".join(sorted({WEIGHTS_FILE, CONFIG_FILE} - present))
    raise RemoteNotFoundError(
        f"{address.text}: no {missing} (there: {', '.join(sorted(present)[:8]) or 'nothing'}), so "
        "it holds no PEFT adapter"
    )


@contextmanager
def _told(address: HubAddress, token: Token, *, writing: bool = False) -> Iterator[None]:
    """Turn the client's errors into ours, which say what to do next."""
    from huggingface_hub import errors

    try:
        yield
    except AdaptersHubError:
        raise
    except errors.HFValidationError as error:
        raise SettingsError(f"{address.text} is no repository's name: {error}") from error
    except errors.LocalTokenNotFoundError as error:
        raise AccessError(f"{address.text}: no token: {_LOGIN}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(address, error.__cause__, token, writing) from error
        raise TransferError(f"{address.text}: {_unreachable(error)}") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(address, error, token, writing) from error
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error.__cause__, errors.BadRequestError):  # its message says what is wrong
            raise TransferError(f"{address.text}: the Hub refuses it: {_line(error)}") from error
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(address, error.__cause__, token, writing) from error
        raise TransferError(f"{address.text}: {_unreachable(error)}") from error


def _unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return (
            "the Hub is not asked, because HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it"
        )
    return (
        f"the transfer failed ({type(error).__name__}: {_line(error)}); look at the network, "
        "HF_ENDPOINT and proxies, and run the same again: what was transferred is not sent twice"
    )


def _refusal(
    address: HubAddress, error: "HfHubHTTPError", token: Token, writing: bool
) -> TransferError:
    """What an answer of the Hub that is an error means, and what to do."""
    from huggingface_hub import errors

    status = error.response.status_code
    where, anonymous = address.text, not _has_token(token)
    if isinstance(error, errors.GatedRepoError):
        return AccessError(
            f"{where} is gated: ask for access on its page, then {_LOGIN} as who was let in"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RemoteNotFoundError(
            f"{where}: no revision {address.revision!r}; {_revisions(address, token)}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return RemoteNotFoundError(f"{where}: a file is gone: {_line(error)}")
    if status == 401 or (status == 404 and anonymous):
        if writing and anonymous:
            return AccessError(f"{where}: nobody is logged in, and pushing needs a token that may "
                               f"write: {_LOGIN}")  # fmt: skip
        if anonymous:
            return AccessError(
                f"{where}: no such repository, or a private one, and no token is at hand: look at "
                f"the name; if it is private, {_LOGIN}"
            )
        return AccessError(f"{where}: the Hub does not take the token; make a new one and {_LOGIN}")
    if status == 403:
        need = "one that may write to it" if writing else "one that may read it"
        return AccessError(f"{where}: the token may not do this; it needs {need}: {_line(error)}")
    if status == 404:
        return RemoteNotFoundError(
            f"{where}: no such repository, or a private one that the token may not read; look at "
            "the name, and who is logged in (`hf auth whoami`)"
        )
    return TransferError(f"{where}: the Hub answers {status}: {_line(error)}; try again later")


def _has_token(token: Token) -> bool:
    from huggingface_hub import get_token

    return bool(token) if isinstance(token, str | bool) and token is not True else bool(get_token())


def _revisions(address: HubAddress, token: Token) -> str:
    """The branches and tags there are, in words."""
    from huggingface_hub.errors import HTTPError

    try:
        refs = _api(token).list_repo_refs(address.repo)
    except (HTTPError, OSError):
        return "look at the repository's branches and tags"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"there are {', '.join(names[:12]) or 'none'}, and commits by their id"


def _line(error: BaseException) -> str:
    """An error's words on one line."""
    return re.sub(r"\s+", " ", str(error)).strip()[:400]
