"""Factors of a few adapters at one site, and their products in float64."""

import numpy as np
import torch


def make(ranks, weights, shape, seed=0):
    outputs, inputs = shape
    source = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=source)
    return [(w, draw(r, inputs), draw(outputs, r)) for w, r in zip(weights, ranks, strict=True)]


def dense(piece):
    weight, a, b = piece
    return weight * b.double().numpy() @ a.double().numpy()


def size_of(pieces):
    return sum(np.linalg.norm(dense(piece)) for piece in pieces) or 1.0


def product(factors):
    a, b = factors
    assert a.dtype == b.dtype == torch.float32
    assert len(a) == b.shape[1]
    return (b.double() @ a.double()).numpy()


def close(got, want, size, tolerance=1e-6):
    assert np.linalg.norm(got - want) <= tolerance * size
