"""What goes through the model at once in a step, and how it is sent there.

Knows examples and tensors; does not know adapters, blends or optimizers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Task

Made = TypeVar("Made")
Inside = Callable[[Runtime, dict[str, torch.Tensor], Heads], Made]
"""What is done with the model, a batch and its heads while a plan is followed."""


@dataclass(frozen=True)
class Piece:
    """Examples of a batch that go through the model together: their places in it, their owners.

    One of ``weight`` 0 is another process's, and goes along for company. ``unaugmented`` are the
    same rows as they were read, with the same targets, where a penalty compares them.
    """

    places: list[int]
    examples: list[Example]
    inputs: dict[str, torch.Tensor]
    owners: torch.Tensor
    weight: int = 1
    unaugmented: "Piece | None" = None


def beside(piece: Piece, unaugmented: Sequence[Example], task: Task, backbone: Backbone) -> Piece:
    """The piece, and its rows as they were read; as they were drawn where targets are others."""
    inputs = task.collate(unaugmented, backbone)
    same = (task.count(inputs) == task.count(piece.inputs)).tolist()
    examples = [
        read if kept else drawn
        for kept, read, drawn in zip(same, unaugmented, piece.examples, strict=True)
    ]
    if not all(same):
        inputs = task.collate(examples, backbone)
    return replace(piece, unaugmented=replace(piece, examples=examples, inputs=inputs))


class Forward(Protocol):
    """Sends a piece through the model, each row under its blend; see `loop`."""

    def __call__(
        self,
        run: Inside[Made],
        piece: Piece,
        *,
        task: Task | None = None,
        view: int = 0,
        reference: bool = False,
    ) -> Made:
        """What ``run`` gives under the piece's plan.

        ``task`` is that of the examples, unless they are of the run's. Passes of another ``view``
        have other dropout masks. ``reference``: without the adapters that learn, but for
        their heads, and without dropout or gradients.
        """
