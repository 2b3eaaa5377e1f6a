"""The exact sum of a blend as one adapter folder, made from files alone, once, and kept.

Servers take one adapter a request, of one rank and one scale. Knows libraries and factors; needs no
backbone.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapters_hub.compose.methods import concatenate
from adapters_hub.errors import NotFoundError, UnsupportedAdapterError
from adapters_hub.library.adapter_file import CONFIG_FILE, AdapterFiles, AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.layers import layer_of
from adapters_hub.library.library import Library
from adapters_hub.runtime.adapter import Adapter, read_factors
from adapters_hub.sharing.plain_form import plain_form


@dataclass(frozen=True)
class Sum:
    """One adapter folder that is a blend, and what it is of."""

    blend: Blend
    digest: str
    """Of the adapters' content and weights, so that what is trained anew has another."""

    folder: Path
    rank: int

    @property
    def number(self) -> int:
        """A positive number of 62 bits that stands for just this content."""
        return int(self.digest[:16], 16) % (2**62 - 1) + 1


@dataclass(frozen=True)
class Sums:
    """The sums of a library's adapters, kept in a folder under the hash of what they are of.

    ``fingerprint``: of the backbone whose adapters count; None takes those of any.
    """

    library: Library
    cache: Path
    fingerprint: str | None = None

    def __call__(self, text: str) -> Sum:
        """The sum that a text in the grammar of blends means, written if it is not there yet.

        Raises `BlendError`, `NotFoundError`, `AmbiguousTermError` or `BackboneMismatchError` for
        what is no blend of this library; `UnsupportedAdapterError` for one with a task head, or
        of adapters that were saved for unlike classes; `AdapterFileError` for damaged files.
        """
        blend = self.resolve(text)
        files = {name: self.library.read(name) for name in blend.terms}
        digest = _digest(blend, files)
        folder = self.cache / digest
        if not (folder / CONFIG_FILE).is_file():
            summed(blend, files).save(folder)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return Sum(blend, digest, folder, int(config["r"]))

    def resolve(self, text: str) -> Blend:
        """A text's blend, of exact names; see `__call__`."""
        wanted = Blend.parse(text)
        names: dict[str, str | None] = {}
        for term in wanted.terms:
            try:
                names[term] = self.library.find(term.removesuffix("?"), self.fingerprint).name
            except NotFoundError:
                if not term.endswith("?"):
                    raise
                names[term] = None
        blend = wanted.rename(names)
        if not blend:
            raise NotFoundError(f"{text!r} is the bare backbone, which has a name of its own")
        return blend


def summed(blend: Blend, files: dict[str, AdapterFiles]) -> Adapter:
    """Σ weight · scaling · B·A by the modules' paths, in the plain form; see `Sums`."""
    pieces: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
    for name, weight in blend.weights:
        read = files[name]
        if read.head:
            raise UnsupportedAdapterError(
                f"{name} has a task head, and servers add adapters to a language model: "
                f"adapters-hub export {name} --for merged"
            )
        for module, (a, b) in read_factors(read).items():
            scaling = read.spec.scaling(module, len(a))
            pieces.setdefault(module, []).append((weight * scaling, a, b))
    stacks = {layer.rsplit(".", 1)[0] for m in pieces if (layer := layer_of(m)) is not None}
    if len(stacks) > 1:
        raise UnsupportedAdapterError(
            f"the adapters of {str(blend)!r} were saved for classes that call the layers unlike: "
            f"{', '.join(sorted(stacks))}"
        )
    factors = {module: concatenate(parts) for module, parts in pieces.items()}
    first = files[blend.terms[0]]
    info = AdapterInfo(
        name="-".join(blend.terms),
        backbone=first.info.backbone,
        fingerprint=first.info.fingerprint,
        description=f"The sum of {blend}.",
    )
    config = {k: v for k, v in first.spec.config.items() if k in ("task_type", "fan_in_fan_out")}
    adapter = Adapter(info, factors, dict.fromkeys(factors, 1.0), config=config)
    shapes = {module: (a.shape[1], b.shape[0]) for module, (a, b) in factors.items()}
    return plain_form(adapter, shapes)


def default_cache() -> Path:
    """``$ADAPTERS_HUB_CACHE``, else ``adapters_hub`` in the user's cache folder."""
    if chosen := os.environ.get("ADAPTERS_HUB_CACHE"):
        return Path(chosen) / "sums"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adapters_hub" / "sums"


def _digest(blend: Blend, files: dict[str, AdapterFiles]) -> str:
    """Of weights and content: the stored hash, else the weights file's size and time."""
    parts = []
    for name, weight in blend.weights:
        info, stat = files[name].info, files[name].weights.stat()
        content = info.hash or f"{files[name].weights} {stat.st_size} {stat.st_mtime_ns}"
        parts.append((weight, content, files[name].spec.config.get("r")))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
