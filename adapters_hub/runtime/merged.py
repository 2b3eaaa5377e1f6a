"""A model with a blend in its weights, sharing all else, for a long run of one blend.

Knows modules and factors; does not know names, rows of a mixed batch or tasks.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.copies import with_weights
from adapters_hub.compose.core_space import Piece
from adapters_hub.compose.methods import concatenate, delta
from adapters_hub.runtime.moe import add_deltas
from adapters_hub.runtime.products import COSTS, cost, stacked_slices

MERGE_COST = 1.0
"""Nanoseconds to merge one weight, fitted as `Costs`."""


def wrapped(model: nn.Module) -> bool:
    """Whether a module's forward was replaced, as accelerate's hooks do: a copy would run it."""
    return any("forward" in vars(module) for module in model.modules())


def merging_pays(
    layers: Collection[str], pieces: Mapping[str, Sequence[Piece]], runs: Sequence[int]
) -> bool:
    """Whether to merge first is cheaper than to add the deltas in each of the coming forwards.

    ``layers``: the sites that are layers; others are merged in each forward otherwise. ``runs``:
    how many positions (rows × tokens) each of them has.
    """
    merge = saved = 0.0
    for site, of_site in pieces.items():
        (_, a, b), *_ = of_site
        fan_in, fan_out = a.shape[1], len(b)
        once = fan_in * fan_out * MERGE_COST
        work = sum(len(a) for _, a, _ in of_site) * (fan_in + fan_out)
        merge += once
        if site in layers:
            saved += sum(cost(COSTS.whole, (1, positions * work, work)) for positions in runs)
        else:
            saved += once * len(runs)
    return saved > merge


def merged_weight(module: nn.Module, pieces: Sequence[Piece]) -> Tensor:
    """W + Σ wᵢ·Bᵢ·Aᵢ of a site, in the precision of W, computed in float32."""
    change = delta(pieces)
    change = change.t() if isinstance(module, Conv1D) else change
    weight = module.get_parameter("weight")
    return (weight.float() + change).to(weight.dtype)


@torch.no_grad()
def merged_weights(
    backbone: Backbone, pieces: Mapping[str, Sequence[Piece]]
) -> Iterator[tuple[str, str, Tensor]]:
    """The same of each weight that has some of the sites: its module's path, its name, its sum."""
    for site, layer in backbone.sites.items():
        if site in pieces:
            yield site, "weight", merged_weight(layer, pieces[site])
    for path, module in backbone.moe.items():
        for name, sites in module.parameters.items():
            if not pieces.keys().isdisjoint(sites):
                sums = [concatenate(pieces[site]) if site in pieces else None for site in sites]
                weight = module.module.get_parameter(name)
                merged = add_deltas(module, weight.float(), [(1.0, stacked_slices(sums))])
                yield path, name, merged.to(weight.dtype)


def merged_view(
    backbone: Backbone, pieces: Mapping[str, Sequence[Piece]], hooks: Collection[int]
) -> nn.Module:
    """The model with the blend in its weights: new weights at the sites, everything else shared.

    ``hooks``: ids of those it must not have, since they would add the deltas once more.
    """
    weights: dict[int, dict[str, Tensor]] = {}
    for path, name, weight in merged_weights(backbone, pieces):
        weights.setdefault(id(backbone.module(path)), {})[name] = weight
    return with_weights(backbone.model, weights, without_hooks=hooks)
