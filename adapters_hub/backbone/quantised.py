"""Embeddings and output layer of a quantised backbone: stored in 16 bits, used in 32.

Knows torch modules only. Quantisation leaves these layers whole, and in a small model with a large
vocabulary they are most of what is left. Float16 keeps 11 bits of each number, where the linear
layers beside them keep 8.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHUNK = 8192  # tokens of the vocabulary that are widened at a time


class NarrowEmbedding(nn.Embedding):
    """An embedding whose weight is float16 and whose output is float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(…,) → (…, width)."""
        return super().forward(input).float()


class NarrowLinear(nn.Linear):
    """A linear layer whose weight is float16; products and sums are float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out), a part of the outputs at a time."""
        parts = [functional.linear(input, part.float()) for part in self.weight.split(_CHUNK)]
        out = torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias


def narrow_embeddings(model: Any) -> None:
    """Put the above in place of a model's float32 embeddings and output layer; ties stay ties."""
    head = model.get_output_embeddings()
    narrowed: dict[int, nn.Parameter] = {}
    made: dict[int, nn.Module] = {}
    for path, module in [*model.named_modules(remove_duplicate=False)]:
        whole = type(module) is nn.Embedding or (module is head and type(module) is nn.Linear)
        if not whole or module.weight.dtype != torch.float32:
            continue
        weight = narrowed.get(id(module.weight))
        if weight is None:
            half = module.weight.half()
            if not half.isfinite().all():
                continue  # beyond what float16 can hold
            weight = narrowed[id(module.weight)] = nn.Parameter(half, requires_grad=False)
        if id(module) not in made:
            own: nn.Module
            if type(module) is nn.Embedding:
                size = module.num_embeddings, module.embedding_dim
                own = NarrowEmbedding(*size, padding_idx=module.padding_idx, device="meta")
            else:
                own = NarrowLinear(module.in_features, module.out_features, False, device="meta")
                own.bias = module.bias
            own.weight = weight
            made[id(module)] = own.train(module.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(module)])
