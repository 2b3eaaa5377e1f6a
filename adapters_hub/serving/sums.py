"""The exact sum of a blend as one adapter folder, made from files alone, once, and kept.

Servers take one adapter a request, of one rank and one scale. Knows libraries and factors; needs no
backbone, no transformers and no PEFT.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from adapters_hub.compose.methods import concatenate
from adapters_hub.errors import (
    AdaptersHubError,
    LibraryError,
    NotFoundError,
    SettingsError,
    UnsupportedAdapterError,
)
from adapters_hub.library.adapter_file import (
    CONFIG_FILE,
    KEY_PREFIX,
    WEIGHTS_FILE,
    AdapterFiles,
    AdapterInfo,
    plain_config,
)
from adapters_hub.library.blend import Blend
from adapters_hub.library.layers import layer_of
from adapters_hub.library.library import Library
from adapters_hub.library.row_terms import row_term
from adapters_hub.runtime.tensors import read_factors, write_folder
from adapters_hub.sharing.plain_form import one_rank

VERSION = 1
"""Of the sums that are kept: another one has them made anew."""
CACHE_GB = 50
"""What the kept sums may take together, in 10⁹ bytes, unless $ADAPTERS_HUB_CACHE_GB says else."""
_ATTEMPTS, _PAUSE = 5, 0.05
_MEANING = (
    "alpha_pattern", "fan_in_fan_out", "lora_alpha", "r", "rank_pattern", "target_parameters",
    "use_rslora",
)  # fmt: skip


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
        of adapters that were saved for unlike classes; `AdapterFileError` for damaged files;
        `SettingsError` for ``auto``; `LibraryError` where it cannot be written.
        """
        left = _ATTEMPTS
        while True:
            state, left = self.library.state(), left - 1
            try:
                return self._sum(text)
            except (AdaptersHubError, OSError) as error:
                still = state == self.library.state() and not self.library.folder.unfinished
                if left and not still:  # an adapter of it is being replaced
                    time.sleep(_PAUSE)
                elif isinstance(error, AdaptersHubError):
                    raise
                else:
                    raise LibraryError(f"the sum of {text!r}: {error}") from error

    def _sum(self, text: str) -> Sum:
        from filelock import FileLock

        blend, files = self._read(text)
        digest = digest_of(blend, files)
        folder = self.cache / digest
        if not _complete(folder):
            made = summed(blend, files)
            if self.digest(text) != digest:  # the numbers may be of what came in its place
                raise LibraryError(f"{text!r}: an adapter was replaced while it was read")
            self.cache.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache / ".lock"):
                if not _complete(folder):
                    _check_room(self.cache)
                    write_folder(folder, *made)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return Sum(blend, digest, folder, int(config["r"]))

    def digest(self, text: str) -> str:
        """Of what a text means now, without its sum; raises as `__call__`."""
        return digest_of(*self._read(text))

    def servable(self) -> list[AdapterInfo]:
        """The adapters that can be asked for by their name alone."""
        names = []
        for info in self.library.list(fingerprint=self.fingerprint):
            try:
                read = self.library.read(info.name)
            except AdaptersHubError:  # gone, or damaged just now; asking for it says how
                continue
            if not read.head and not read.wrapped:
                names.append(info)
        return names

    def _read(self, text: str) -> tuple[Blend, dict[str, AdapterFiles]]:
        blend = self.resolve(text)
        return blend, {name: self.library.read(name) for name in blend.terms}

    def resolve(self, text: str) -> Blend:
        """A text's blend, of exact names in their order; see `__call__`."""
        wanted = self.library.expand(Blend.parse(text), self.fingerprint)
        rows = [(term, meant) for term in wanted.terms if (meant := row_term(term))]
        if any(not meant.plain or "auto" not in self.library for _, meant in rows):
            raise SettingsError(
                f"{rows[0][0]!r} would choose adapters for each text, and a server's request has "
                "one adapter, chosen before its text is read: name the language, such as 'sw'"
            )
        names: dict[str, str | None] = {}
        for term in wanted.terms:
            try:
                names[term] = self.library.find(term.removesuffix("?"), self.fingerprint).name
            except NotFoundError:
                if not term.endswith("?"):
                    raise
                names[term] = None
        blend = Blend(sorted(wanted.rename(names).weights), exact=True)
        if not blend:
            raise NotFoundError(f"{text!r} is the bare backbone, which has a name of its own")
        return blend


def summed(
    blend: Blend, files: Mapping[str, AdapterFiles]
) -> tuple[AdapterInfo, dict[str, object], dict[str, Tensor]]:
    """Σ weight · scaling · B·A as `write_folder` takes it: one rank, float32, scaling 1.

    Raises as `Sums` for what cannot be such a sum.
    """
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
            path = f"model.{module}" if module.startswith("layers.") else module  # the bare body's
            pieces.setdefault(path, []).append((weight * scaling, a, b))
    _check_one_class(blend, pieces)
    factors = {module: concatenate(parts) for module, parts in sorted(pieces.items())}
    shapes = {module: (a.shape[1], b.shape[0]) for module, (a, b) in factors.items()}
    plain = one_rank(factors, shapes, dict.fromkeys(factors, 1.0))
    rank = len(next(iter(plain.values()))[0])
    first = files[blend.terms[0]]
    tensors = {
        f"{KEY_PREFIX}{module}.lora_{side}.weight": tensor
        for module, pair in plain.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": first.spec.config.get("task_type"),
        "base_model_name_or_path": first.info.backbone,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(plain),
        "fan_in_fan_out": bool(first.spec.config.get("fan_in_fan_out", False)),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
    }
    info = AdapterInfo(
        name="-".join(blend.terms),
        backbone=first.info.backbone,
        fingerprint=first.info.fingerprint,
        description=f"The sum of {blend}.",
    )
    sizes = sum(tensor.numel() for tensor in tensors.values())
    return replace(info, rank=rank, sites=len(plain), parameters=sizes), config, tensors


def digest_of(blend: Blend, files: Mapping[str, AdapterFiles]) -> str:
    """Of weights and contents in any order: the stored hash, else the file's size and time."""
    parts = []
    for name, weight in blend.weights:
        info, stat = files[name].info, files[name].weights.stat()
        content = info.hash or f"{files[name].weights} {stat.st_size} {stat.st_mtime_ns}"
        config = plain_config(files[name].spec.config)
        parts.append((name, weight, content, {key: config.get(key) for key in _MEANING}))
    text = json.dumps([VERSION, *sorted(parts, key=lambda part: part[0])])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def default_cache() -> Path:
    """``$ADAPTERS_HUB_CACHE``, else ``adapters_hub`` in the user's cache folder."""
    if chosen := os.environ.get("ADAPTERS_HUB_CACHE"):
        return Path(chosen) / "sums"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adapters_hub" / "sums"


def _complete(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def _check_room(cache: Path) -> None:
    """Raise `LibraryError` where the kept sums are as large as they may be."""
    limit = os.environ.get("ADAPTERS_HUB_CACHE_GB") or CACHE_GB
    try:
        allowed = float(limit) * 1e9
    except ValueError:
        raise SettingsError(f"ADAPTERS_HUB_CACHE_GB={limit!r}: give a number") from None
    used = sum(file.stat().st_size for file in cache.glob(f"*/{WEIGHTS_FILE}"))
    if used >= allowed:
        raise LibraryError(
            f"{cache} holds {used / 1e9:.1f} GB of sums, and ADAPTERS_HUB_CACHE_GB allows "
            f"{float(limit):g}: stop the server and delete the folder, or allow more"
        )


def _check_one_class(blend: Blend, modules: Mapping[str, object]) -> None:
    """Raise `UnsupportedAdapterError` where the layers have several paths."""
    stacks = {layer.rsplit(".", 1)[0] for m in modules if (layer := layer_of(m)) is not None}
    if len(stacks) > 1:
        raise UnsupportedAdapterError(
            f"the adapters of {str(blend)!r} were saved for classes that call the layers unlike: "
            f"{', '.join(sorted(stacks))}"
        )
