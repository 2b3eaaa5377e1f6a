"""Random adapters, as controls to compare trained ones with.

Knows factors; does not know cells or scores.
"""

from dataclasses import replace

import torch

from adapters_hub.runtime.adapter import Adapter


def random_like(adapter: Adapter, seed: int, name: str) -> Adapter:
    """An adapter of random factors whose ``B A`` has the same Frobenius norm at every site."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for site, (a, b) in adapter.factors.items():
        new_a, new_b = (torch.randn(t.shape, generator=generator).to(t) for t in (a, b))
        factors[site] = (
            new_a,
            new_b * (_norm(a.float(), b.float()) / _norm(new_a.float(), new_b.float())),
        )
    return replace(adapter, info=replace(adapter.info, name=name), factors=factors, head={})


def _norm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The Frobenius norm of ``b @ a`` without forming it."""
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()
