"""The part of a sharded backbone's weights that one process holds, and how the rest is gathered.

Knows FSDP's groups; what they are made of, and when they are called, is `sharding`'s to know.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Shards:
    """The parts of a backbone's weights that this process holds, and how they are gathered.

    ``differentiable`` makes a backward pass through every layer in all processes alike, whichever
    adapters their rows have; switch it off where nothing below the heads learns.
    """

    def __init__(self, layers: list[Any], beside: Any) -> None:
        self._layers, self._beside = layers, beside
        self.differentiable = True

    def gather(self) -> None:
        """Have what is beside the layers whole in this process; all processes must come here."""
        with torch.inference_mode(False), torch.no_grad():
            self._beside.unshard()

    def release(self) -> None:
        """Let that go again; after the backward that needs it."""
        self._beside.reshard()

    def local_parameters(self) -> Iterator[tuple[Tensor, int]]:
        """The part of each weight that is held here, and how many numbers the whole has."""
        for module in (*self._layers, self._beside):
            for parameter in module.parameters():
                local = getattr(parameter, "to_local", None)
                yield parameter if local is None else local(), parameter.numel()

    def before(self, module: nn.Module, inputs: object) -> None:
        """A hook before the call of what is beside the layers."""
        self.gather()

    def after_embedding(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """A hook after the call of the embedding."""
        if self.differentiable and torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
