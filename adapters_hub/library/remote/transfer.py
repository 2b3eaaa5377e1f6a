"""Fetches and sends adapters, in the same way for every kind of address.

Knows addresses, origins and an adapter's files; does not know a library.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from adapters_hub.errors import AdaptersHubError, LibraryError, RemoteNotFoundError, TransferError
from adapters_hub.library import model_card as card
from adapters_hub.library.adapter_file import CARD_FILE, WEIGHTS_FILE, AdapterFiles, AdapterInfo
from adapters_hub.library.atomic import atomic_write, new_folder
from adapters_hub.library.card_usage import usage
from adapters_hub.library.hub_fields import hub_id
from adapters_hub.library.origin import Origin
from adapters_hub.library.remote import hub, store
from adapters_hub.library.remote.address import Address, HubAddress, StoreAddress
from adapters_hub.library.results import eval_files
from adapters_hub.library.writing import write_adapter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceAdapter:
    """An adapter at its source, not fetched yet."""

    origin: Origin
    name: str
    _fetch: Callable[[Path], Path]

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Its folder or file on this machine; temporary, for the ``with`` block."""
        import tempfile

        with tempfile.TemporaryDirectory() as work:
            name = re.sub(r"[^\w.-]|(?<=[.-])[.-]+|^[.-]+|[.-]+$", "", self.name) or "adapter"
            folder = Path(work) / name
            folder.mkdir()
            yield self._fetch(folder)


def adapter_at(address: Address, token: hub.Token = None) -> SourceAdapter:
    """What is at an address now; raises `TransferError` or `AdapterFileError`."""
    if isinstance(address, HubAddress):
        commit = hub.commit_of(address, token)
        source = address.without_commit(commit.id).text

        def from_hub(folder: Path) -> Path:
            hub.fetch(address, commit, folder, token)
            return folder

        return SourceAdapter(Origin(source, commit.id), address.name, from_hub)
    if isinstance(address, StoreAddress):
        origin = Origin(address.text, store.newest(address))
        return SourceAdapter(origin, address.name, lambda folder: store.fetch(address, folder))
    return SourceAdapter(
        Origin(str(address.resolve()), _of_path(address)), "", lambda folder: address
    )


def newest_of(address: Address, token: hub.Token = None) -> str:
    """The revision at an address now; raises `TransferError`."""
    if isinstance(address, HubAddress):
        return hub.commit_of(address, token).id
    return store.newest(address) if isinstance(address, StoreAddress) else _of_path(address)


def same_source(origin: Origin, address: Address) -> bool:
    """Whether what was pulled from an origin is what an address means, without asking it."""
    if not isinstance(address, HubAddress):
        text = address.text if isinstance(address, StoreAddress) else str(address.resolve())
        return origin.source == text
    if origin.source == address.text:
        return True
    newest = address.without_commit(origin.revision)
    return newest != address and origin.source == newest.text


@dataclass(frozen=True)
class Outgoing:
    """An adapter to send: its files, its metadata, the folder it is from."""

    files: AdapterFiles
    info: AdapterInfo
    folder: Path
    base: str | None = None
    """The backbone's id on the Hub, where the adapter names it otherwise."""

    def send(
        self,
        stage: Path,
        address: Address,
        *,
        private: bool | None,
        message: str,
        replace_existing: bool,
        token: hub.Token,
    ) -> hub.Pushed:
        """Write it into ``stage``, which is not there yet, and send that."""
        self._write(stage, address)
        if isinstance(address, HubAddress):
            for path, text in eval_files(self.info.results).items():
                (stage / path).parent.mkdir(exist_ok=True)
                (stage / path).write_text(text, encoding="utf-8")
            return hub.send(stage, address, private=private, message=message, token=token)
        if isinstance(address, StoreAddress):
            text = store.send(stage, address, replace_existing=replace_existing)
        else:
            text = _to_path(stage, address, replace_existing)
        return hub.Pushed(text, text, None)

    def _write(self, stage: Path, address: Address) -> None:
        """Its three files, with a card that the Hub takes; a text of the user's own stays."""
        info = replace(self.info, backbone=self.base or self.info.backbone)
        if isinstance(address, HubAddress) and hub_id(info.backbone) is None:
            log.warning(
                "%s: its backbone is %s, which is no id on the Hub, so its page will name no base "
                "model; give its id (base=..., --base)", info.name, info.backbone,
            )  # fmt: skip
        stage.mkdir()
        write_adapter(self.files, info, stage)
        source = None if isinstance(address, Path) else address.text
        written, config = self.files.info, self.files.spec.config
        body = card.card_body(info, source) + usage(info, config)
        old = self.folder / CARD_FILE
        if old.is_file():
            present = card.split_card(old.read_text(encoding="utf-8"))
            plain = card.card_body(written)
            if present.strip() not in ("", plain.strip(), (plain + usage(written, config)).strip()):
                body = present
        (stage / CARD_FILE).write_text(
            card.join_card(card.front_matter(info), body), encoding="utf-8"
        )


def of_parts(info: AdapterInfo, parts: Sequence[AdapterInfo]) -> AdapterInfo:
    """The metadata of a sum of adapters: its language and domain, and what all parts share."""

    def one(values: Sequence[str | None], *, of_all: bool = False) -> str | None:
        known = {*values} if of_all else {value for value in values if value is not None}
        return known.pop() if len(known) == 1 else None

    return replace(
        info,
        language=info.language or one([part.language for part in parts]),
        domain=info.domain or one([part.domain for part in parts]),
        license=info.license or one([part.license for part in parts], of_all=True),
        datasets=tuple(dict.fromkeys(name for part in parts for name in part.datasets)),
    )


def _of_path(path: Path) -> str:
    """The revision of a folder or a file here."""
    import fsspec

    weights = path if path.is_file() else path / WEIGHTS_FILE
    if not weights.is_file():
        raise RemoteNotFoundError(
            f"{path}: no adapter there; give a PEFT folder, one .safetensors file, user/repo on "
            "the Hub, or a URL"
        )
    return store.revision_of(fsspec.filesystem("file"), str(weights))


def _to_path(stage: Path, target: Path, replace_existing: bool) -> str:
    """Put an adapter where a path says, whole or not at all; returns the path for people."""
    lone = target.suffix == ".safetensors"
    if (target if lone else target / WEIGHTS_FILE).exists() and not replace_existing:
        raise LibraryError(
            f"{target} has an adapter already: push to another place, or replace it "
            "(replace_existing=True, --replace)"
        )
    try:
        if lone:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(stage / WEIGHTS_FILE, "rb") as file, atomic_write(target) as copy:
                shutil.copyfileobj(file, copy)
        else:
            with new_folder(target) as fresh:
                shutil.copytree(stage, fresh, dirs_exist_ok=True)
    except OSError as error:
        if isinstance(error, AdaptersHubError):
            raise
        raise TransferError(f"cannot write {target}: {error.strerror or error}") from error
    return str(target)
