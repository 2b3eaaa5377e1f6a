"""Checks of the tensors: formats, NaN, zero effect, norms. Each tensor is read once, alone.

A delta's norm needs no delta: ‖B·A‖² is the trace of (BᵀB)(AAᵀ), two matrices of the rank's size.
"""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite, log, sqrt
from typing import TYPE_CHECKING

from adapters_hub.errors import AdapterFileError
from adapters_hub.library.adapter_file import AdapterFiles
from adapters_hub.library.safetensors_file import content_hash
from adapters_hub.sharing.doctor.findings import Finding, check, few
from adapters_hub.sharing.doctor.subject import FACTOR, Subject, Unread

if TYPE_CHECKING:
    import numpy as np

_USUAL = ("F32", "F16", "BF16")
_MOST_RANK = 1024  # a product of this size has 4 MB; the check of ranks reports larger ones
_MOST_RMS = 0.1  # weights of language models have about 0.02
_OUT_OF_LINE = 10.0  # times, and six deviations
_MIN_GROUP = 6


@dataclass
class _Numbers:
    """What one pass over the tensors says."""

    bad: list[str] = field(default_factory=list)
    zero: set[str] = field(default_factory=set)
    grams: "dict[str, np.ndarray]" = field(default_factory=dict)


@check
def dtype(subject: Subject) -> Iterator[Finding]:
    """Floating point of 16 or 32 bits, one for all."""
    if isinstance(subject.header, Unread):
        return
    dtypes = Counter(entry.dtype for entry in subject.header.tensors.values())
    if odd := sorted(dtypes.keys() - {*_USUAL, "F64"}):
        yield Finding(
            "error", "dtype", f"tensors of {few(odd)}, in which nothing can be added up",
            few([n for n, e in subject.header.tensors.items() if e.dtype in odd]),
            "ask for it in float16, bfloat16 or float32",
        )  # fmt: skip
    elif len(dtypes) > 1 or "F64" in dtypes:
        counts = ", ".join(f"{count} {name}" for name, count in dtypes.most_common())
        yield Finding("note", "dtype", f"tensors of {counts}", subject.weights.name)


@check
def tensor_values(subject: Subject) -> Iterator[Finding]:
    """No NaN or infinity, some effect, and norms in line with each other."""
    if isinstance(subject.header, Unread):
        return
    try:
        numbers = _numbers(subject)
    except (AdapterFileError, OSError) as error:
        yield Finding("error", "tensor values", str(error), subject.weights.name, "try again")
        return
    if numbers.bad:
        yield Finding(
            "error", "tensor values", f"{len(numbers.bad)} tensors hold NaN or infinity",
            few(numbers.bad), "its training diverged, or the file was damaged; do not use it",
        )  # fmt: skip
    yield from _effect(subject, numbers)
    if not numbers.bad:
        yield from _norms(subject, numbers)


@check
def content(subject: Subject) -> Iterator[Finding]:
    """The tensors are those whose hash the header has."""
    stored = subject.ours.get("hash")
    if isinstance(subject.header, Unread) or not isinstance(stored, str):
        return
    try:
        actual = content_hash(subject.weights, subject.header)
    except (AdapterFileError, OSError):
        return  # `tensor_values` reports it
    if actual != stored:
        yield Finding(
            "error", "content", "the tensors changed since this library stored them",
            subject.weights.name, "get the file again",
        )  # fmt: skip


def _numbers(subject: Subject) -> _Numbers:
    import numpy as np

    numbers = _Numbers()
    for name, tensor in subject.tensors():
        if not np.isfinite(tensor).all():
            numbers.bad.append(name)
            continue
        if not tensor.any():
            numbers.zero.add(name)
        match = FACTOR.fullmatch(name)
        if match and tensor.ndim == 2:
            rank = tensor.shape[0 if match[2] == "A" else 1]
            if rank <= _MOST_RANK and rank * rank * 8 <= max(tensor.nbytes, 1 << 20):
                with np.errstate(over="ignore", invalid="ignore"):
                    gram = tensor @ tensor.T if match[2] == "A" else tensor.T @ tensor
                numbers.grams[name] = gram.astype("<f8")
    return numbers


def _effect(subject: Subject, numbers: _Numbers) -> Iterator[Finding]:
    idle = [m for m, pair in subject.pairs.items() if not numbers.zero.isdisjoint(pair.values())]
    if not idle:
        return
    if len(idle) == len(subject.pairs):
        yield Finding(
            "error", "tensor values", "no effect: A or B is zero in every layer", few(idle, 1),
            "it was never trained, or its B was lost when it was saved (a compiled or sharded run)",
        )  # fmt: skip
    else:
        yield Finding(
            "warning", "tensor values", f"no effect in {len(idle)} of {len(subject.pairs)} layers",
            few(idle), "those may have got no gradient, or were lost when it was saved",
        )  # fmt: skip


def _norms(subject: Subject, numbers: _Numbers) -> Iterator[Finding]:
    if not isinstance(subject.adapter, AdapterFiles):
        return
    import numpy as np

    tensors, spec = subject.adapter.header.tensors, subject.adapter.spec
    norms: dict[str, float] = {}
    large: list[str] = []
    for module, (a, b) in subject.adapter.modules.items():
        if a not in numbers.grams or b not in numbers.grams:
            continue
        if numbers.grams[a].shape != numbers.grams[b].shape:
            continue  # of stacks of experts
        (rank, fan_in), fan_out = tensors[a].shape, tensors[b].shape[0]
        with np.errstate(over="ignore", invalid="ignore"):
            squared = float((numbers.grams[b] * numbers.grams[a].T).sum())
        norm = abs(spec.scaling(module, rank)) * (sqrt(squared) if squared > 0 else squared)
        if not isfinite(norm):
            large.append(module)
        elif norm > 0:
            norms[module] = norm
            if norm / sqrt(fan_in * fan_out) > _MOST_RMS:
                large.append(module)
    if large:
        yield Finding(
            "warning", "tensor values", f"deltas larger than usual weights in {len(large)} of "
            f"{len(subject.adapter.modules)} layers (root mean square above {_MOST_RMS})",
            few(large),
            "a scaling that is wrong, or a training that diverged; try it at a small weight",
        )  # fmt: skip
    odd = [f"{m} ({norms[m]:.3g}, usual {usual:.3g})" for m, usual in _outliers(norms)]
    if odd:
        yield Finding(
            "warning", "tensor values", f"the norms of {len(odd)} deltas are out of line", few(odd),
            "look at these layers: a damaged file, or one that was tampered with",
        )  # fmt: skip


def _outliers(norms: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Modules whose norm is far from the others' of the same last name, and what is usual there."""
    groups: dict[str, list[str]] = {}
    for module in norms:
        groups.setdefault(module.rpartition(".")[2], []).append(module)
    if any(len(group) < _MIN_GROUP for group in groups.values()):
        groups = {"": [*norms]}
    for group in groups.values():
        if len(group) < _MIN_GROUP:
            continue
        logs = {module: log(norms[module]) for module in group}
        middle = statistics.median(logs.values())
        spread = 1.4826 * statistics.median(abs(value - middle) for value in logs.values())
        for module, value in logs.items():
            if abs(value - middle) > max(6 * spread, log(_OUT_OF_LINE)):
                yield module, 2.718281828459045**middle
