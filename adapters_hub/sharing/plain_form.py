"""The form of an adapter that every engine reads alike: one rank, one alpha that is equal to it.

Engines read one ``r`` and one ``lora_alpha``, most of them no patterns and no rsLoRA; what they do
not read they scale wrongly, without a word. Knows factors by site; does not know engines.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters_hub.runtime.products import SiteFactors

if TYPE_CHECKING:
    from adapters_hub.runtime.adapter import Adapter


def plain_form(adapter: "Adapter", shapes: Mapping[str, tuple[int, int]]) -> "Adapter":
    """The same deltas, float32, of scaling 1, with A (r, in) and B (out, r) of one rank everywhere.

    ``shapes`` (in, out) are of all sites that the result has: where the adapter does not act, its
    factors are zero. Smaller ranks get rows and columns of zeros. So B·A is each site's delta, and
    any reader's alpha / r is 1.
    """
    factors = one_rank(adapter.factors, shapes, adapter.scaling)
    config = {key: adapter.config[key] for key in ("task_type",) if key in adapter.config}
    config["fan_in_fan_out"] = adapter.config.get("fan_in_fan_out", False)
    return replace(adapter, factors=factors, scaling=dict.fromkeys(factors, 1.0), config=config)


def one_rank(
    factors: SiteFactors, shapes: Mapping[str, tuple[int, int]], scaling: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of one rank, float32, scaling in B; zeros at what has a shape and no factors."""
    rank = max(len(a) for a, _ in factors.values())
    out = {}
    for site, (fan_in, fan_out) in shapes.items():
        wide, tall = torch.zeros(rank, fan_in), torch.zeros(fan_out, rank)
        if site in factors:
            a, b = (tensor.detach().float().cpu() for tensor in factors[site])
            wide[: len(a)], tall[:, : len(a)] = a, scaling[site] * b
        out[site] = (wide, tall)
    return out


def deltas(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Site → B·A (out, in), float32."""
    return {site: b.float() @ a.float() for site, (a, b) in factors.items()}
