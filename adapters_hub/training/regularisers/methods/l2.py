"""The squared distance of the adapted weights from the backbone's."""

from typing import ClassVar

import torch
from torch import Tensor

from adapters_hub.training.checkpoint import Trainee
from adapters_hub.training.regularisers.base import OfFactors
from adapters_hub.training.regularisers.factors import deltas


class L2(OfFactors):
    """Σ over sites ‖ΔW‖²_F, with ΔW = s·B·A.

    L2-SP (arXiv:1802.01483, eq. 2) with the backbone as the starting point w⁰, of which the delta
    is the distance; of what is not adapted it is 0. The sum is over sites, not a mean, so it does
    not hang on which sites are adapted beside; the paper's α/2 is the weight here. It is of the
    delta and not of A and B, as weight decay is, and is computed without it:
    ‖B·A‖²_F = tr((A·Aᵀ)(Bᵀ·B)), of matrices (rank, rank).

    For every task and backbone; not for an adapter that is only a head.
    """

    name: ClassVar[str] = "l2"

    def value(self, number: int, trainee: Trainee) -> Tensor:
        return torch.stack([squared_norm(a, b) for _, a, b in deltas(trainee)]).sum()


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """‖B·A‖²_F of A (r, in) and B (out, r)."""
    return ((a @ a.t()) * (b.t() @ b)).sum()


METHOD = L2
