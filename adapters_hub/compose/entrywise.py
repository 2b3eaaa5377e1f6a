"""Rules on the entries of matrices: of small cores, and of the true deltas a block at a time.

A delta (out, in) is never held whole: the largest tensors are a block of its rows and a Gram matrix
of its smaller side, so the peak is O(min(out, in)²) in place of several out·in. Knows tensors only.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters_hub.compose.core_space import TINY, Piece

BLOCK = 1 << 17
"""Entries of one delta in a block."""

Rule = Callable[[Tensor, int], Tensor]
"""Weighted deltas (pieces, rows, in) of a block, and its first row → the merged (rows, in)."""


def merge_entries(
    pieces: Sequence[Piece], rule_for: Callable[[Sequence[Piece]], Rule], rank: int | None
) -> tuple[Tensor, Tensor]:
    """The rule's result cut to ``rank``: A (r, in) and B (out, r), the best there are of that rank.

    Without a rank, that of the sum: min(Σ rᵢ, out, in). Two passes: the first adds up the Gram
    matrix of the smaller side in float64, whose leading eigenvectors V are the right singular
    vectors; the second multiplies by V. Works on the transpose where out < in, and pieces that do
    not act are left out; ``rule_for`` gets the pieces as they are then.
    """
    outputs, inputs = pieces[0][2].shape[0], pieces[0][1].shape[1]
    if outputs < inputs:
        b, a = merge_entries([(w, b.mT, a.mT) for w, a, b in pieces], rule_for, rank)
        return a.mT.contiguous(), b.mT.contiguous()
    if not any(len(a) for _, a, _ in pieces):
        return pieces[0][1].float(), pieces[0][2].float()
    pieces = [piece for piece in pieces if len(piece[1])]
    rank = min(rank or sum(len(a) for _, a, _ in pieces), inputs)
    rule = rule_for(pieces)
    basis = torch.eye(inputs, dtype=torch.float64, device=pieces[0][1].device)
    if rank < inputs:
        gram = torch.zeros_like(basis)
        for row, deltas in blocks(pieces):
            merged = rule(deltas, row).double()
            gram.addmm_(merged.mT, merged)
        basis = torch.linalg.eigh(gram)[1][:, -rank:].flip(1)
    parts = [(rule(deltas, row).double() @ basis).float() for row, deltas in blocks(pieces)]
    return basis.mT.float().contiguous(), torch.cat(parts)


def blocks(pieces: Sequence[Piece]) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block and the weighted deltas (pieces, rows, in) in it, float32.

    Every pass gives the same bits, so a threshold from one holds in the next.
    """
    rows = max(1, BLOCK // pieces[0][1].shape[1])
    scaled = [(a.float(), weight * b.float()) for weight, a, b in pieces]
    for row in range(0, pieces[0][2].shape[0], rows):
        yield row, torch.stack([b[row : row + rows] @ a for a, b in scaled])


def kth_largest(pieces: Sequence[Piece], count: int) -> Tensor:
    """The ``count``-th largest magnitude of each piece's weighted delta (pieces,), exactly.

    Non-negative floats are ordered as their bits are, so two histograms find it: of the upper 16
    bits, then of the lower 16 where the upper are those of the answer. Infinity if count is 0.
    """
    device = pieces[0][1].device
    if count == 0:
        return torch.full((len(pieces),), torch.inf, device=device)
    histogram = torch.zeros(len(pieces), 1 << 16, dtype=torch.int64, device=device)
    for _, deltas in blocks(pieces):
        for n, bits in enumerate(deltas.abs().view(torch.int32).flatten(1)):
            histogram[n] += torch.bincount(bits >> 16, minlength=1 << 16)
    upper, left = _from_top(histogram, torch.full((len(pieces),), count, device=device))
    histogram.zero_()
    for _, deltas in blocks(pieces):
        for n, bits in enumerate(deltas.abs().view(torch.int32).flatten(1)):
            within = bits[bits >> 16 == upper[n]] & 0xFFFF
            histogram[n] += torch.bincount(within, minlength=1 << 16)
    lower, _ = _from_top(histogram, left)
    return (upper << 16 | lower).to(torch.int32).view(torch.float32)


def _from_top(histogram: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """In each row (n, bins) the bin of the ``count``-th largest (n,), and its place within it."""
    descending = histogram.flip(1)
    total = descending.cumsum(1)
    place = (total < count[:, None]).sum(1, keepdim=True)
    above = (total - descending).gather(1, place).squeeze(1)
    return histogram.shape[1] - 1 - place.squeeze(1), count - above


def thresholds(pieces: Sequence[Piece], density: float) -> Tensor:
    """What `trim` keeps of whole deltas, as a least magnitude for each (pieces, 1, 1).

    Entries that are equal to it are all kept, where a sort would draw the line among them.
    """
    entries = pieces[0][2].shape[0] * pieces[0][1].shape[1]
    return kth_largest(pieces, int(density * entries))[:, None, None]


def trim(matrix: Tensor, density: float) -> Tensor:
    """A small matrix with zeros for all but its ⌊density · entries⌋ largest magnitudes.

    What is only rounding next to the largest is zero, too: it would have a vote.
    """
    sizes = matrix.abs().flatten()
    count = int(density * len(sizes))
    if count == 0:
        return torch.zeros_like(matrix)
    least = sizes.kthvalue(len(sizes) - count + 1).values.clamp(min=TINY * sizes.max())
    return matrix.where(matrix.abs() >= least, 0.0)


def disjoint_mean(stacked: Tensor) -> Tensor:
    """The mean (…) over those of (n, …) whose sign is that of their sum, entry by entry.

    TIES's election and disjoint merge. Zeros do not count; a sum of zero elects plus, as in PEFT.
    """
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == elected
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def drop(stacked: Tensor, density: float, source: torch.Generator) -> Tensor:
    """Each entry kept with probability ``density`` and divided by it, else zero."""
    kept = torch.rand(stacked.shape, generator=source).to(stacked.device) < density
    return stacked * kept / density


def generator(seed: int, *place: str | int) -> torch.Generator:
    """A generator for one place: what it draws there depends on no other place."""
    digest = hashlib.sha256(repr((int(seed), *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
