"""A library's pull and push: adapters fetched from and sent to other places.

Knows a library by what it lists, reads and adds; `remote` knows how files are transferred. Never
imports torch.
"""

import os
import re
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

from adapters_hub.errors import AdaptersHubError, LibraryError, NotFoundError, SettingsError
from adapters_hub.library.adapter_file import METADATA_KEY, AdapterFiles, AdapterInfo, read_adapter
from adapters_hub.library.blend import Blend, BlendLike
from adapters_hub.library.folder import check_name
from adapters_hub.library.origin import Origin, Outdated
from adapters_hub.library.remote.address import address_of
from adapters_hub.library.remote.hub import Pushed, Token
from adapters_hub.library.remote.transfer import (
    Outgoing,
    adapter_at,
    newest_of,
    of_parts,
    same_source,
)

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s*]+")
_Infos = list[AdapterInfo]  # inside the class, `list` is the method
_Outdated = list[Outdated]
_Lines = list[str]


class Exchange(ABC):
    """The part of `Library` that pushes and pulls."""

    root: Path

    @abstractmethod
    def list(self) -> _Infos:
        """All adapters."""

    @abstractmethod
    def names(self) -> _Lines:
        """The names of all adapter folders."""

    @abstractmethod
    def find(self, term: str, fingerprint: str | None = None) -> AdapterInfo:
        """The one adapter that a blend's term means."""

    @abstractmethod
    def read(self, name: str) -> AdapterFiles:
        """An adapter's checked files."""

    @abstractmethod
    def add(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        language: str | None = None,
        domain: str | None = None,
        backbone: str | None = None,
        replace_existing: bool = False,
        origin: Origin | None = None,
    ) -> AdapterInfo:
        """Take an adapter's files in, once they are checked."""

    def pull(
        self,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        name: str | None = None,
        language: str | None = None,
        domain: str | None = None,
        backbone: str | None = None,
        replace_existing: bool = False,
        token: Token = None,
    ) -> AdapterInfo:
        """Fetch an adapter and add it, with the revision it is pinned to in its ``origin``.

        ``source`` is ``user/repo`` on the Hub, or ``hf://user/repo@revision/folder``; a URL that
        fsspec reads (``s3://``, ``gs://``, ``https://``); a folder; or one ``.safetensors`` file.
        ``revision`` is the Hub's: a branch, a tag or a commit. The other arguments are `add`'s, and
        so are the checks; the name defaults to the one it had where it came from. What was pulled
        before at this revision is returned as it is.

        Raises `RemoteNotFoundError`, `AccessError` or `TransferError`, `LibraryError` for a name
        that is taken, and as `add`; nothing new is in the library then.
        """
        source_adapter = adapter_at(address_of(source, revision), token)
        if not replace_existing:
            for info in self.list():
                if info.origin == source_adapter.origin and name in (None, info.name):
                    return info
        if name is not None and name in self.names() and not replace_existing:
            raise LibraryError(_TAKEN.format(self.root, name))
        with source_adapter.fetched() as path:
            files = read_adapter(path)
            stored = files.info.name if METADATA_KEY in files.header.metadata else None
            return self.add(
                path,
                name=name or stored,
                language=language,
                domain=domain,
                backbone=backbone,
                replace_existing=replace_existing,
                origin=source_adapter.origin,
            )

    def pulled(self, source: str, *, token: Token = None) -> AdapterInfo:
        """The adapter that was pulled from a source, as it is pinned; else it is pulled now."""
        address = address_of(source)
        for info in self.list():
            if info.origin is not None and same_source(info.origin, address):
                return info
        return self.pull(source, token=token)

    def with_pulled(self, text: str, *, token: Token = None) -> str:
        """A blend's text, its addresses (``hf://…``) replaced by the names of what is `pulled`."""
        return _ADDRESS.sub(lambda match: f"name:{self.pulled(match[0], token=token).name}", text)

    def push(
        self,
        blend: BlendLike,
        target: str | os.PathLike[str],
        *,
        revision: str | None = None,
        private: bool | None = None,
        name: str | None = None,
        base: str | None = None,
        message: str | None = None,
        replace_existing: bool = False,
        token: Token = None,
    ) -> Pushed:
        """Send an adapter, or a blend as one adapter that is its exact sum, to where others are.

        ``target`` is ``user/repo`` on the Hub, which is made if need be (``private``: as it says,
        else the account's default) and gets one commit, on the branch ``revision``; a URL that
        fsspec writes (``s3://``, ``gs://``); a folder (``./out``); or one ``.safetensors`` file.
        ``base`` is the backbone's id on the Hub, where the adapter names it by a folder. A blend
        of several adapters is summed by `AdaptedModel.export`, over its backbone.

        Raises `AccessError` without a token that may write, `TransferError`, `LibraryError` where
        there is an adapter already (outside the Hub, unless ``replace_existing``), `NotFoundError`
        and as `AdaptedModel.export`.
        """
        import tempfile

        address = address_of(target, revision, sending=True)
        with tempfile.TemporaryDirectory() as work:
            files, info = self._outgoing(Blend.of(blend), Path(work) / "sum", name)
            info = replace(info, name=check_name(name or info.name), origin=None)
            leaving = Outgoing(files, info, Path(files.info.path or ""), base)
            return leaving.send(
                Path(work) / "adapter",
                address,
                private=private,
                message=message or f"{info.name}, by adapters-hub push",
                replace_existing=replace_existing,
                token=token,
            )

    def outdated(self, *, token: Token = None) -> _Outdated:
        """The pulled adapters whose source has another revision by now, or cannot be asked."""
        rows = []
        for info in self.list():
            if (origin := info.origin) is None:
                continue
            newest, problem = None, None
            try:
                newest = newest_of(address_of(origin.source), token)
            except AdaptersHubError as error:
                problem = str(error)
            if newest != origin.revision:
                rows.append(Outdated(info.name, origin.source, origin.revision, newest, problem))
        return rows

    def _outgoing(
        self, blend: Blend, folder: Path, name: str | None
    ) -> tuple[AdapterFiles, AdapterInfo]:
        """A blend as one adapter's files: those in the library, or its sum, written in ``folder``.

        The sum needs torch, which is above this room: its maker is named, as in an entry point,
        and not imported.
        """
        from importlib.metadata import EntryPoint

        infos: dict[str, AdapterInfo] = {}
        for term in blend.terms:
            fingerprint = next((i.fingerprint for i in infos.values() if i.fingerprint), None)
            try:
                infos[term] = self.find(term.removesuffix("?"), fingerprint)
            except NotFoundError:
                if not term.endswith("?"):
                    raise
        exact = blend.rename({t: infos[t].name if t in infos else None for t in blend.terms})
        if not exact:
            raise NotFoundError("nothing to push: the blend is empty")
        if exact.weights == ((exact.terms[0], 1.0),):
            return (files := self.read(exact.terms[0])), files.info
        first = next(iter(infos.values()))
        if first.backbone is None:
            raise SettingsError(
                f"{first.name} names no backbone, over which {str(blend)!r} is summed: add it "
                "again with one (backbone=..., --backbone)"
            )
        load = EntryPoint("load_backbone", "adapters_hub.model:load_backbone", "").load()
        model = load(first.backbone, library=self, revision=first.revision)
        files = read_adapter(model.export(exact, folder, name=name))
        return files, of_parts(files.info, list(infos.values()))


_TAKEN = (
    "{} already has {!r}: pull it under another name (name=..., --name), or replace that one "
    "(replace_existing=True, --replace)"
)
