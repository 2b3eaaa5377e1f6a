"""Which backbone a checkpoint is: a short text, equal for equal weights, made without torch.

It reads a little of the checkpoint's files: the structural part of the configuration, every
tensor's name and shape, and values sampled from each, rounded to bfloat16. So it is the same at
whatever precision the model is loaded, the same for a float32 checkpoint and its bfloat16 copy,
however it is cut into shards, and takes well under a second for tens of gigabytes.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from adapters_hub.errors import BackboneError
from adapters_hub.library import safetensors_file as tensorfile

_STRUCTURE = (
    "model_type", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "num_layers",
    "hidden_size", "d_model", "n_head", "n_layer", "n_embd", "num_heads", "vocab_size",
)  # fmt: skip
_SAMPLES = 64  # tensors sampled in the first version
MOST_SAMPLES = 8192
"""Tensors sampled."""
_VERSION = "-v2-"
_FIRST: dict[str, str] = {}  # fingerprint → the same backbone's of the first version
VALUES = 32
"""Consecutive values from the middle of each."""


@dataclass(frozen=True)
class Sampled:
    """What a fingerprint looks at in one tensor.

    ``values`` reads up to `VALUES` of it as bfloat16, if it is ``floating``.
    """

    shape: Sequence[int]
    floating: bool
    values: Callable[[], bytes]


def fingerprint(folder: str | Path) -> str:
    """The fingerprint of a checkpoint folder, such as ``qwen3-6L-256-v2-9f3c51d2a07be614``.

    Raises `BackboneError` if the folder has no ``config.json`` or no safetensors weights.
    """
    folder = Path(folder)
    files = weight_files(folder)
    try:
        parts = [(str(file), file.stat()) for file in (*files, folder / "config.json")]
        state = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in parts)
        return _fingerprint(folder, state)
    except OSError as error:
        raise BackboneError(f"{error.filename or folder}: {error.strerror or error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards its index names."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder}: no config.json, so this is not a model folder")
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise BackboneError(f"{index}: no weight_map in it")
        return [folder / name for name in sorted(set(names.values()))]
    raise BackboneError(
        f"{folder}: no model.safetensors; pickled weights (.bin) are not read: load them with "
        "transformers where you trust them and save_pretrained them as safetensors"
    )


def misfit(folder: str | Path, modules: Mapping[str, tuple[int, int]]) -> str | None:
    """What speaks against an adapter of these modules, path → (in, out), on a checkpoint.

    Only layers with a number are looked for, by their path from there on, because a checkpoint may
    be stored under another class's names; one weight of the right shape is enough.
    """
    shapes: dict[str, list[list[int]]] = {}
    for file in weight_files(Path(folder)):
        for name, entry in tensorfile.read_header(file).tensors.items():
            if entry.dtype in ("U8", "I8"):
                return None  # quantised: its shapes are not the layers'
            shapes.setdefault(_numbered(name.removesuffix(".weight")), []).append(
                sorted(entry.shape)
            )
    there = {module: shapes.get(_numbered(module)) for module in modules if _numbered(module)}
    for module, stored in there.items():
        if stored and sorted(modules[module]) not in stored:  # Conv1D is stored transposed
            fan_in, fan_out = modules[module]
            return (
                f"{module} has {fan_in} inputs and {fan_out} outputs, the weight there {stored[0]}"
            )
    return (
        f"it has no weight for {next(iter(there))}" if there and not any(there.values()) else None
    )


def _numbered(path: str) -> str:
    """A module's path from just before its first number on; empty without one."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[first - 1 :]) if first else ""


def lacking(folder: str | Path, targets: Sequence[str], modules: Collection[str]) -> list[str]:
    """Layers with a number whose weights a checkpoint has and ``targets`` name, without modules.

    ``targets`` are names as in PEFT: a layer's path, or its last parts.
    """
    there = {_numbered(module) for module in modules}
    missing = []
    for file in weight_files(Path(folder)):
        for name, entry in tensorfile.read_header(file).tensors.items():
            path = name.removesuffix(".weight")
            named = any(path == target or path.endswith(f".{target}") for target in targets)
            layer = _numbered(path) if name != path and len(entry.shape) == 2 else ""
            if layer and named and layer not in there:
                missing.append(path)
    return missing


def belongs(stored: str | None, current: str | None) -> bool:
    """Whether an adapter's stored fingerprint may be that of a backbone; None fits all.

    A fingerprint of the first version, which sampled fewer tensors, is compared with the first
    version's of the same backbone. Where that backbone was not looked at in this process, the
    architecture alone can be compared; loading will compare the rest.
    """
    if stored is None or current is None or stored == current:
        return True
    if (_VERSION in stored) == (_VERSION in current):
        return False
    old, new = (current, stored) if _VERSION in stored else (stored, current)
    if new in _FIRST:
        return _FIRST[new] == old
    return old.rpartition("-")[0] == new.partition(_VERSION)[0]


def sampled_tensors(folder: str | Path) -> dict[str, Sampled]:
    """What a fingerprint looks at in a checkpoint folder, by the tensors' names there.

    Raises `BackboneError` if the folder has no ``config.json`` or no safetensors weights.
    """
    tensors: dict[str, Sampled] = {}
    for file in weight_files(Path(folder)):
        header = tensorfile.read_header(file)
        for name, entry in header.tensors.items():
            floating = entry.dtype in ("F32", "F16", "BF16")
            values = partial(_sample, str(file), header, entry)
            tensors[name] = Sampled(entry.shape, floating, values)
    return tensors


def fingerprint_of(config: Mapping[str, object], tensors: Mapping[str, Sampled]) -> str:
    """The fingerprint of a checkpoint with this ``config.json`` and these tensors."""
    digest = hashlib.sha256(json.dumps([config.get(key) for key in _STRUCTURE]).encode())
    for name in sorted(tensors):
        digest.update(json.dumps([name, tensors[name].shape]).encode())
    floating = [name for name in sorted(tensors) if tensors[name].floating]
    first = digest.copy()
    for name in floating[:: max(1, len(floating) // _SAMPLES)]:
        first.update(tensors[name].values())
    digest.update(b"2")
    # by digests of names, so that what is left out of a huge one follows no pattern of layers
    floating.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in sorted(floating[:MOST_SAMPLES]):
        digest.update(tensors[name].values())
    layers = next(
        (config[k] for k in ("num_hidden_layers", "num_layers", "n_layer") if k in config), "?"
    )
    width = next((config[k] for k in ("hidden_size", "d_model", "n_embd") if k in config), "?")
    stem = f"{config.get('model_type', 'model')}-{layers}L-{width}"
    current = f"{stem}{_VERSION}{digest.hexdigest()[:16]}"
    _FIRST[current] = f"{stem}-{first.hexdigest()[:16]}"
    return current


@lru_cache(maxsize=64)
def _fingerprint(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    return fingerprint_of(_json(folder / "config.json"), sampled_tensors(folder))


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise BackboneError(f"{path}: not a JSON object")
    return data


def _sample(file: str, header: tensorfile.Header, entry: tensorfile.TensorEntry) -> bytes:
    """Values from the middle of a tensor, as bfloat16 (rounded to nearest even)."""
    import numpy as np

    size = 4 if entry.dtype == "F32" else 2
    count = (entry.end - entry.start) // size
    first = max(0, count // 2 - VALUES // 2)
    with open(file, "rb") as stream:
        stream.seek(header.data_start + entry.start + first * size)
        raw = stream.read(min(VALUES, count) * size)
    if entry.dtype == "BF16":
        return raw
    values = np.frombuffer(raw, "<f4" if size == 4 else "<f2").astype("<f4")
    bits = values.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
