"""Making one adapter out of several: plain functions on the factors of one site, in one table.

A method takes the site's ``(weight, A, B)`` with scaling already folded into the weight (α/r, or
α/√r for rsLoRA), A (r_i, in), B (out, r_i), and returns A (r, in) and B (out, r) of scaling 1.
Knows tensors only; not names, files or models. Task heads are never averaged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters_hub.errors import SettingsError

Piece = tuple[float, Tensor, Tensor]
Method = Callable[[Sequence[Piece]], tuple[Tensor, Tensor]]


def concatenate(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Σ wᵢ·Bᵢ·Aᵢ exactly, as one adapter whose rank is the sum of the ranks.

    The weights go into B, in float32. PEFT calls this ``cat``; its ``linear`` mixes A and B apart
    and adds cross terms.
    """
    return (
        torch.cat([a.float() for _, a, _ in pieces]),
        torch.cat([weight * b.float() for weight, _, b in pieces], dim=1),
    )


METHODS: dict[str, Method] = {"sum": concatenate}


def compose(pieces: Sequence[Piece], method: str = "sum") -> tuple[Tensor, Tensor]:
    """Apply a method by name; `SettingsError` lists the names."""
    if method not in METHODS:
        raise SettingsError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    return METHODS[method](pieces)


def delta(pieces: Sequence[Piece]) -> Tensor:
    """The dense Σ wᵢ·Bᵢ·Aᵢ (out, in), summed in float32, for merging into a weight."""
    a, b = concatenate(pieces)
    return b @ a
