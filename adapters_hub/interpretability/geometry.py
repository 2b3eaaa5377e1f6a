"""How two LoRA deltas lie to each other at one site, from their factors.

Knows tensors only. Everything but the signs comes from the singular vectors of each delta, made
through QR of its factors and an r × r matrix, in float64; the signs from a block of rows of the
true deltas at a time. No delta is ever held whole.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adapters_hub.compose.core_space import Piece, core_space, directions, energy_of
from adapters_hub.compose.entrywise import blocks, generator

SAMPLE = 1 << 20
"""Entries of a site whose signs are compared; of a larger one a fixed sample of its rows."""


class Spectrum(NamedTuple):
    """A delta's singular vectors and values: left (r, out), values (r,), right (r, in), float64.

    r is the numerical rank, 0 for a delta of zero.
    """

    left: Tensor
    values: Tensor
    right: Tensor


@dataclass(frozen=True)
class SitePair:
    """What is known of two deltas at one site, so that it can be added up over sites.

    Squared Frobenius norms, and their inner product. ``overlaps``: left and right, above random;
    None where one of them does not act. ``entries`` of the site where both are not zero, and how
    many of them are ``opposite``, scaled up from the sample. ``moved``: squared norms of what
    either adds to the site's inputs; None without texts.
    """

    first: float = 0.0
    second: float = 0.0
    inner: float = 0.0
    overlaps: tuple[float, float] | None = None
    entries: float = 0.0
    opposite: float = 0.0
    moved: tuple[float, float] | None = None


@dataclass(frozen=True)
class Measures:
    """How two deltas lie to each other at one site, or over the sites of a layer or of a model.

    - ``energy_first``, ``energy_second``: ‖ΔW‖_F, over several sites the root of the sum of
      squares, in the unit of the weights; ``log2_energy_ratio``: log2(first / second).
    - ``cosine``: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖), of all entries of the sites as one vector.
    - ``overlap_left``, ``overlap_right``: ‖U₁·U₂ᵀ‖_F² / min(r₁, r₂), φ of arXiv:2106.09685, §7.2,
      over all directions of the output (columns of B) or of the input (rows of A), less its mean
      for random subspaces of d dimensions, r₁·r₂ / (d·min(r₁, r₂)). 0 is random, and equal
      subspaces have 1 - r/d. Over several sites the mean of those where both act.
    - ``sign_conflict``: the share of entries, of those where neither delta is 0, that have opposite
      signs (interference in arXiv:2306.01708, here untrimmed). Unrelated deltas have 0.5.
    - ``interference``: ‖ΔW₂·h₁‖ / ‖ΔW₁·h₁‖, where h₁ are a site's inputs with the first adapter
      active; norms over all tokens of the texts, and over the sites. None without texts.

    A number that is not defined, such as a cosine where one delta is zero, is None.
    """

    energy_first: float
    energy_second: float
    log2_energy_ratio: float | None
    cosine: float | None
    overlap_left: float | None
    overlap_right: float | None
    sign_conflict: float | None
    interference: float | None = None

    @classmethod
    def of(cls, sites: Iterable[SitePair]) -> "Measures":
        """The measures over some sites."""
        pairs = list(sites)
        first, second = (sum(getattr(p, name) for p in pairs) for name in ("first", "second"))
        both = [pair.overlaps for pair in pairs if pair.overlaps is not None]
        left, right = (_mean([overlap[side] for overlap in both]) for side in (0, 1))
        moved = [pair.moved for pair in pairs if pair.moved is not None]
        by_first, by_second = (sum(norms[which] for norms in moved) for which in (0, 1))
        ratio = _ratio(first, second)
        return cls(
            energy_first=first**0.5,
            energy_second=second**0.5,
            log2_energy_ratio=math.log2(ratio) / 2 if ratio else None,
            cosine=_ratio(sum(pair.inner for pair in pairs), (first * second) ** 0.5),
            overlap_left=left,
            overlap_right=right,
            sign_conflict=_ratio(sum(p.opposite for p in pairs), sum(p.entries for p in pairs)),
            interference=None if (share := _ratio(by_second, by_first)) is None else share**0.5,
        )


def spectrum(piece: Piece) -> Spectrum:
    """The singular value decomposition of w·B·A, in O((out + in)·r²)."""
    space = core_space([piece])
    u, values, vh = directions(space.cores[0])
    return Spectrum(space.left.lift(u.mT), values, space.right.lift(vh))


def compare_site(first: Piece | None, second: Piece | None, seed: str = "") -> SitePair:
    """Two deltas w·B·A of one site of the same shape; None where an adapter does not act.

    ``seed`` chooses the sample of rows: the site's path.
    """
    if first is None or second is None:
        return SitePair(*_energies(first, second))
    one, two = spectrum(first), spectrum(second)
    if not (len(one.values) and len(two.values)):
        return SitePair(*_energies(first, second))
    left, right = one.left @ two.left.mT, one.right @ two.right.mT
    opposite, entries = opposite_signs(first, second, seed)
    return SitePair(
        first=one.values.square().sum().item(),
        second=two.values.square().sum().item(),
        inner=(one.values[:, None] * left * right * two.values).sum().item(),
        overlaps=(_overlap(left, one.left.shape[1]), _overlap(right, one.right.shape[1])),
        entries=entries,
        opposite=opposite,
    )


def _energies(first: Piece | None, second: Piece | None) -> tuple[float, float]:
    return 0.0 if first is None else energy_of(first), 0.0 if second is None else energy_of(second)


def _overlap(products: Tensor, dimensions: int) -> float:
    """φ above that of random subspaces, from the products of two orthonormal bases (r₁, r₂)."""
    smaller = min(products.shape)
    random = products.numel() / (dimensions * smaller)
    return products.square().sum().item() / smaller - random


def opposite_signs(first: Piece, second: Piece, seed: str = "") -> tuple[float, float]:
    """How many entries have opposite signs, and how many are not zero in either delta.

    Both are scaled up from the rows that were looked at, `SAMPLE` entries of them.
    """
    outputs, inputs = first[2].shape[0], first[1].shape[1]
    rows = min(outputs, max(1, SAMPLE // inputs))
    chosen = torch.arange(outputs)
    if rows < outputs:
        chosen = torch.randperm(outputs, generator=generator(0, seed))[:rows].sort().values
    chosen = chosen.to(first[2].device)
    opposite = entries = 0
    for _, (one, two) in blocks([(weight, a, b[chosen]) for weight, a, b in (first, second)]):
        signs = one.sign() * two.sign()
        opposite += int((signs < 0).sum())
        entries += int((signs != 0).sum())
    return opposite * outputs / rows, entries * outputs / rows


def moved(piece: Piece | None, inputs: Tensor) -> float:
    """‖ΔW·h‖² summed over inputs h (…, in), as a sum over r × r."""
    if piece is None:
        return 0.0
    weight, a, b = piece
    hidden = inputs.reshape(-1, inputs.shape[-1]).double() @ a.double().mT
    gram = weight**2 * b.double().mT @ b.double()
    return ((hidden @ gram) * hidden).sum().item()


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
