"""A model with a blend in its weights, sharing all else, for a long run of one blend.

Knows modules and factors; does not know names, rows of a mixed batch or tasks.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_hub.backbone.backbone import site_shape
from adapters_hub.backbone.copies import with_weights
from adapters_hub.compose.core_space import Piece
from adapters_hub.compose.methods import delta
from adapters_hub.runtime.products import COSTS, cost

MERGE_COST = 1.0
"""Nanoseconds to merge one weight, fitted as `Costs`."""


def wrapped(model: nn.Module) -> bool:
    """Whether a module's forward was replaced, as accelerate's hooks do: a copy would run it."""
    return any("forward" in vars(module) for module in model.modules())


def merging_pays(
    sites: Mapping[str, nn.Module], pieces: Mapping[str, Sequence[Piece]], runs: Sequence[int]
) -> bool:
    """Whether to merge first is cheaper than to add the deltas in each of the coming forwards.

    ``runs``: how many positions (rows × tokens) each of them has.
    """
    merge = saved = 0.0
    for site, of_site in pieces.items():
        fan_in, fan_out = site_shape(sites[site])
        work = sum(len(a) for _, a, _ in of_site) * (fan_in + fan_out)
        merge += fan_in * fan_out * MERGE_COST
        saved += sum(cost(COSTS.whole, (1, positions * work, work)) for positions in runs)
    return saved > merge


def merged_weight(module: nn.Module, pieces: Sequence[Piece]) -> Tensor:
    """W + Σ wᵢ·Bᵢ·Aᵢ of a site, in the precision of W, computed in float32."""
    change = delta(pieces)
    change = change.t() if isinstance(module, Conv1D) else change
    weight = module.get_parameter("weight")
    return (weight.float() + change).to(weight.dtype)


def merged_view(
    model: nn.Module,
    sites: Mapping[str, nn.Module],
    pieces: Mapping[str, Sequence[Piece]],
    hooks: Collection[int],
) -> nn.Module:
    """The model with the blend in its weights: new weights at the sites, everything else shared.

    ``hooks``: ids of those it must not have, since they would add the deltas once more.
    """
    weights = {}
    with torch.no_grad():
        for site, of_site in pieces.items():
            weights[id(sites[site])] = merged_weight(sites[site], of_site)
    return with_weights(model, weights, without_hooks=hooks)
