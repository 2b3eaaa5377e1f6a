"""The small space that a sum of LoRA deltas lives in: bases by QR, an R×R matrix between them.

Every wᵢ·Bᵢ·Aᵢ of a site equals leftᵀ · coreᵢ · right, with orthonormal bases of all B and of all A
(Core Space, arXiv:2509.17786): for R, the sum of the ranks, all work is O((out + in)·R²) and no
delta is ever formed. Float64 inside. Factors may have dimensions before these, for sites of one
shape at once. Knows tensors only; what is done with the cores is a method's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Piece = tuple[float, Tensor, Tensor]
"""A weight with the scaling folded in, A (r, in) and B (out, r); r is 0 where it does not act."""

TINY = torch.finfo(torch.float32).eps
"""Singular values below this share of the largest are rounding of float32 factors: no direction."""


class Basis(NamedTuple):
    """An orthonormal basis turn · rows (p, n) of rows (R, n), multiplied out when it is used."""

    turn: Tensor
    rows: Tensor

    def lift(self, small: Tensor) -> Tensor:
        """What ``small`` (k, p) is in the full space (k, n)."""
        return small @ self.turn @ self.rows


class CoreSpace(NamedTuple):
    """Bases left (p, out) and right (q, in), and for each piece the core (p, q) between them."""

    left: Basis
    cores: list[Tensor]
    right: Basis


def core_space(pieces: Sequence[Piece], reference: bool = False) -> CoreSpace:
    """The core space of a site's pieces; p ≤ min(R, out), q ≤ min(R, in).

    ``reference``: with the paper's bases, the singular vectors of the stacked factors, for rules on
    entries, which depend on the basis. They are fixed but for signs, which such rules do not see,
    and are those of the factors as stored, so that no weight turns them. What all factors leave
    empty is no direction and is left out.
    """
    small_a, right = rows_to_basis(torch.cat([a.double() for _, a, _ in pieces], dim=-2))
    small_b, left = rows_to_basis(torch.cat([b.mT for _, _, b in pieces], dim=-2).double())
    if reference:
        turn_a, turn_b = directions(small_a)[2], directions(small_b)[2]
        small_a, right = small_a @ turn_a.mT, Basis(turn_a @ right.turn, right.rows)
        small_b, left = small_b @ turn_b.mT, Basis(turn_b @ left.turn, left.rows)
    ranks = [a.shape[-2] for _, a, _ in pieces]
    parts = zip(pieces, small_b.split(ranks, -2), small_a.split(ranks, -2), strict=True)
    return CoreSpace(left, [weight * b.mT @ a for (weight, _, _), b, a in parts], right)


def rows_to_basis(rows: Tensor) -> tuple[Tensor, Basis]:
    """Small factors (R, p) and a basis (p, n) whose product is ``rows`` (R, n), float64.

    By Cholesky of the Gram matrix where that loses nothing, several times faster; by Householder QR
    where rows are nearly dependent (the same adapter twice) or more than n.
    """
    if 0 < rows.shape[-2] <= rows.shape[-1]:
        lower, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
        if not failed.any():
            inverse = torch.linalg.solve_triangular(lower, _identity(lower), upper=False)
            condition = lower.norm(dim=(-2, -1)) * inverse.norm(dim=(-2, -1))
            if condition.max() < 1e4:  # its square times 1e-16 is what is lost
                return lower, Basis(inverse, rows)
    basis, upper = torch.linalg.qr(rows.mT)
    return upper.mT, Basis(_identity(upper), basis.mT)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)


def directions(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition u (m, k), s (k,), vh (k, n), k the numerical rank."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > TINY * s[:1]).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def expand(space: CoreSpace, core: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Factors A (r, in), with orthonormal rows, and B (out, r) of leftᵀ · core · right.

    It is the best approximation of that rank (Eckart and Young); exact if ``rank`` is None, and
    then r = min(p, q). Singular values go into B, as in PEFT. Float32.

    From the eigenvectors of coreᵀ · core, or of core · coreᵀ if that is smaller, which takes a half
    of the time of a singular value decomposition: what is lost to squaring is 1e-8 of the largest
    singular value, below what float32 can hold.
    """
    if core.shape[-2] < core.shape[-1]:
        u = torch.linalg.eigh(core @ core.mT)[1].flip(-1)[..., :rank]
        vh = u.mT @ core
        norms = vh.norm(dim=-1, keepdim=True)
        vh = vh / norms.clamp_min(torch.finfo(core.dtype).tiny)
        return space.right.lift(vh).float(), space.left.lift((u * norms.mT).mT).mT.float()
    vh = torch.linalg.eigh(core.mT @ core)[1].flip(-1)[..., :rank].mT
    return space.right.lift(vh).float(), space.left.lift((core @ vh.mT).mT).mT.float()


def energy_of(piece: Piece) -> float:
    """‖w·B·A‖_F², the sum of the squared singular values, from r × r products."""
    weight, a, b = piece[0], piece[1].double(), piece[2].double()
    return weight**2 * ((a @ a.mT) * (b.mT @ b)).sum().item()


def rank_that_keeps(energy: float, b: Tensor) -> int:
    """The smallest rank from 1 on that keeps a share of ‖B·A‖_F²; factors as `expand` gives them.

    A has orthonormal rows, so the columns of B (out, r) are as long as the singular values.
    """
    sums = b.double().square().sum(0).cumsum(0)
    return min(len(sums), int((sums < energy * sums[-1:]).sum()) + 1)


def orthogonal_sum(cores: Sequence[Tensor]) -> Tensor:
    """Σ Uᵢ·Σᵢ·Vᵢᵀ with all Uᵢ together, and all Vᵢ, replaced by the nearest orthonormal ones."""
    parts = [directions(core) for core in cores]
    left = nearest_orthonormal(torch.cat([u for u, _, _ in parts], dim=1))
    right = nearest_orthonormal(torch.cat([vh for _, _, vh in parts]))
    return left * torch.cat([s for _, s, _ in parts]) @ right


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The orthogonal factor of the polar decomposition, zero where the matrix has no direction."""
    u, _, vh = directions(matrix)
    return u @ vh
