"""What an engine is to an export, and what is exported to it.

Knows blends, adapters and backbones; does not know any engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from adapters_hub.errors import (
    AdaptersHubError,
    LibraryError,
    SettingsError,
    UnsupportedAdapterError,
)
from adapters_hub.inference.export import composed
from adapters_hub.library.atomic import new_folder
from adapters_hub.library.blend import Blend
from adapters_hub.library.checks import local_folder
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime, Weights
from adapters_hub.sharing.checks import Check, check_deltas
from adapters_hub.sharing.plain_form import plain_form


@dataclass(frozen=True)
class Export:
    """What was written: the folder, and a line on how the engine is given it."""

    folder: Path
    hint: str


@dataclass(frozen=True)
class Source:
    """A blend on its way out: as one adapter, or in the weights of a model."""

    model: Runtime
    weights: Weights
    method: str = "sum"
    options: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    dtype: str = "float32"
    base: str | None = None

    @cached_property
    def blend(self) -> Blend:
        """The adapters and their weights."""
        return self.model.resolve(self.weights)

    @property
    def base_name(self) -> str:
        """What the engine is to load the backbone by: what was said, else its folder or hub id."""
        name = self.model.backbone.name
        return self.base or str(local_folder(name) or name)

    @cached_property
    def composed(self) -> Adapter:
        """The blend as one adapter, ranks as they come."""
        return composed(self.model, self.weights, self.method, self.name, self.options)

    def adapter(self, engine: str, *, head: bool = False, missing: Collection[str] = ()) -> Adapter:
        """The blend as one adapter in the plain form; ``missing`` sites get zeros.

        Raises `UnsupportedAdapterError` for what no engine's file has: a task head (unless
        ``head``), and experts.
        """
        adapter, backbone = self.composed, self.model.backbone
        if adapter.head and not head:
            raise UnsupportedAdapterError(
                f"{self.blend} has a task head, which {engine} does not read from an adapter; "
                "write a whole model with --for merged"
            )
        if experts := sorted(adapter.factors.keys() - backbone.sites.keys()):
            raise UnsupportedAdapterError(
                f"{self.blend} adapts {experts[0]!r}, a router or experts, which {engine} does not "
                "read from an adapter; write --for peft or --for merged"
            )
        sites = [site for site in backbone.sites if site in adapter.factors or site in missing]
        return plain_form(adapter, {site: backbone.shapes[site] for site in sites})


class Engine(ABC):
    """One engine's form of an adapter or a model: to write, and to check."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, source: Source, folder: Path) -> str:
        """Write a folder, whole or not at all; returns a line on how the engine is given it.

        Raises `UnsupportedAdapterError` or `SettingsError` for what the engine cannot read,
        `LibraryError` where the folder cannot be written.
        """

    @abstractmethod
    def check(self, source: Source, folder: Path, texts: Sequence[str]) -> Check:
        """Read what was written, as the engine does, and compare it with the blend."""


class AdapterEngine(Engine):
    """An engine whose file of factors is read back by its format."""

    reader: ClassVar[str]
    """What reads it back, for the message."""

    @abstractmethod
    def read(self, source: Source, folder: Path) -> dict[str, Tensor]:
        """Site → delta (out, in) as the engine would add it, from what was written alone."""

    def check(self, source: Source, folder: Path, texts: Sequence[str]) -> Check:
        return check_deltas(self.reader, self.read(source, folder), source.composed.factors)


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which is ``folder`` at the end; what fails is a `LibraryError`."""
    try:
        with new_folder(folder) as stage:
            yield stage
    except OSError as error:
        if isinstance(error, AdaptersHubError):
            raise
        raise LibraryError(f"cannot write {folder}: {error}") from error


def of_type(source: Source, engine: str, types: Collection[str]) -> str:
    """The backbone's model type; `SettingsError` where the engine does not have it."""
    kind: str = source.model.backbone.config.model_type
    if kind not in types:
        raise SettingsError(
            f"--for {engine}: {source.model.backbone.name} is of the type {kind!r}, and what is "
            f"known here are {', '.join(sorted(types))}"
        )
    return kind
