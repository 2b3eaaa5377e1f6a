"""How alike embeddings are, by the four functions that sentence-transformers names.

Knows vectors; does not know models or texts.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.errors import SettingsError

Embeddings = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]
"""Vectors (n, width), or one vector (width,)."""


def of_all(name: str, one: Embeddings, two: Embeddings) -> Tensor:
    """How alike each of (n, width) is to each of (m, width): (n, m), the greater the more alike.

    A distance has a minus sign. Raises `SettingsError` for vectors of different widths.
    """
    left, right = _vectors(one, two)
    return _OF_ALL[name](left, right)


def of_pairs(name: str, one: Embeddings, two: Embeddings) -> Tensor:
    """How alike each of (n, width) is to the one beside it of (n, width): (n,); see `of_all`."""
    left, right = _vectors(one, two)
    if len(left) != len(right):
        raise SettingsError(f"{len(left)} embeddings beside {len(right)}: pairs need as many")
    return _OF_PAIRS[name](left, right)


_OF_ALL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -torch.cdist(a, b),
    "manhattan": lambda a, b: -torch.cdist(a, b, p=1.0),
}
_OF_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: functional.cosine_similarity(a, b, dim=-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "euclidean": lambda a, b: -(a - b).norm(dim=-1),
    "manhattan": lambda a, b: -(a - b).abs().sum(-1),
}
SIMILARITIES = tuple(_OF_ALL)


def _vectors(one: Embeddings, two: Embeddings) -> tuple[Tensor, Tensor]:
    """Both as float tensors (rows, width) on the first's device."""
    left, right = (_matrix(embeddings) for embeddings in (one, two))
    if left.shape[-1] != right.shape[-1]:
        raise SettingsError(
            f"embeddings of {left.shape[-1]} and of {right.shape[-1]} dimensions: they are of two "
            "models, or one was truncated"
        )
    return left, right.to(left)


def _matrix(embeddings: Embeddings) -> Tensor:
    if not isinstance(embeddings, Tensor | np.ndarray):
        parts = [torch.as_tensor(vector) for vector in embeddings]
        embeddings = torch.stack(parts) if parts else torch.empty(0, 0)
    tensor = torch.as_tensor(embeddings)
    return torch.atleast_2d(tensor if tensor.is_floating_point() else tensor.float())
