"""The passes of one piece through the model, each made when it is asked for and then kept.

Knows tasks by their interface and how a piece is sent through the model; does not know what is
penalised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import TrainingError
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Reading, Task
from adapters_hub.tasks.pooling import hidden_states
from adapters_hub.tasks.reader import reader
from adapters_hub.training.piece import Forward, Inside, Made, Piece

_UNAUGMENTED = 2  # beside the views 0 and 1, which rdrop compares


@dataclass(frozen=True)
class Call:
    """A call of the body: the module, what it got, and its last hidden states."""

    body: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    states: Tensor

    @property
    def mask(self) -> Tensor:
        """Which positions count (rows, tokens)."""
        mask = self.named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == self.states.shape[:2]:
            return mask
        return torch.ones(self.states.shape[:2], device=self.states.device)


@dataclass(frozen=True)
class View:
    """One pass: each row's loss, what the task read, and the body's calls that have gradients."""

    losses: Tensor
    reading: Tensor | None
    calls: list[Call]


@dataclass(frozen=True)
class States:
    """Hidden states (rows, tokens, width) with and without the adapter, and the real tokens.

    A row of it is a sequence; ``sizes`` are the sequences of each example.
    """

    states: Tensor
    reference: Tensor
    mask: Tensor
    sizes: list[int]


class Passes:
    """What a piece gives in its passes through the model.

    ``task`` is that of the piece's examples. Of a task that couples rows there are only `states`.
    """

    def __init__(self, model: Runtime, task: Task, piece: Piece, forward: Forward) -> None:
        self.model, self.task, self.piece = model, task, piece
        self._forward = forward
        self._views: list[View] = []
        self._unaugmented: View | None = None

    def within(self, run: Inside[Made], view: int = 0) -> Made:
        """What a function gives where the piece's plan is followed."""
        return self._forward(run, self.piece, task=self.task, view=view)

    def view(self, number: int = 0) -> View:
        """The pass of a number; each has dropout masks of its own."""
        while len(self._views) <= number:
            self._views.append(self.within(self._seen, len(self._views)))
        return self._views[number]

    @property
    def losses(self) -> Tensor:
        """Each row's loss (rows,), the mean over the passes that were made."""
        losses = [self.view(0).losses, *(view.losses for view in self._views[1:])]
        losses += [self._unaugmented.losses] if self._unaugmented else []
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)

    def divergence(self, one: int, other: int) -> Tensor:
        """How far two passes are apart (rows,); see `Task.divergence`."""
        first, second = self.view(one).reading, self.view(other).reading
        assert first is not None
        assert second is not None
        return self.within(
            lambda model, inputs, _: consistency(
                model, self.task, (inputs, first), (inputs, second)
            )
        )

    def from_unaugmented(self) -> Tensor:
        """How far the rows as drawn are from the rows as they were read (rows,)."""
        plain = self.piece.unaugmented
        assert plain is not None
        self._unaugmented = self._forward(self._seen, plain, task=self.task, view=_UNAUGMENTED)
        first, second = self.view(0).reading, self._unaugmented.reading
        assert first is not None
        assert second is not None
        return self.within(
            lambda model, inputs, _: consistency(
                model, self.task, (inputs, first), (plain.inputs, second)
            )
        )

    @cached_property
    def reference(self) -> Tensor:
        """What the task reads without the adapters that learn."""
        return self._forward(self.task.read, self.piece, task=self.task, reference=True)

    @cached_property
    def states(self) -> States:
        """Hidden states of each sequence, with the adapter and without.

        The former are those of the first pass, where there is one; the reference is the same call
        of the body again.
        """
        if self.task.couples:
            return self._states_alone()
        calls = self.view(0).calls
        if not calls:
            raise TrainingError(
                f"{self.task.name}: no hidden state of the body has a gradient, so there is "
                "nothing to hold near the backbone"
            )
        call = calls[-1]
        again: Tensor = self._forward(
            lambda *_: call.body(*call.inputs, **call.named).last_hidden_state,
            self.piece, task=self.task, reference=True,
        )  # fmt: skip
        return States(call.states, again, call.mask, [1] * len(call.states))

    def states_of_text(self) -> States:
        """The same of texts that no task is for."""
        return self._states_alone()

    def _states_alone(self) -> States:
        """By passes that do nothing else."""

        def run(model: Runtime, inputs: dict[str, Tensor], _: Heads) -> Tensor:
            names = ("input_ids", "attention_mask")
            return hidden_states(model.backbone, {name: inputs[name] for name in names})

        states: Tensor = self.within(run)
        again: Tensor = self._forward(run, self.piece, task=self.task, reference=True)
        sizes = [len(self.task.rows(example.row)) for example in self.piece.examples]
        return States(states, again, self.piece.inputs["attention_mask"], sizes)

    def _seen(self, model: Runtime, inputs: dict[str, Tensor], heads: Heads) -> View:
        with body_calls(model.backbone) as calls:
            if not self.task.compares:
                return View(self.task.loss(model, inputs, heads), None, calls)
            reading = self.task.read(model, inputs, heads)
            return View(self.task.loss_of(model, inputs, reading), reading, calls)


def consistency(model: Runtime, task: Task, one: Reading, other: Reading) -> Tensor:
    """½ (KL(p ‖ q) + KL(q ‖ p)) between two views of the same rows, summed over targets (rows,).

    A view is a collated batch and what ``task.read`` gave for it. The batches may differ: two
    dropout masks (R-Drop, arXiv:2106.14448, eq. 2), two segmentations (MVR, arXiv:2103.08490), or
    two augmentations (xTune, arXiv:2106.08226). Call it where the rows' plan is followed. Raises
    `SettingsError` for views that cannot be compared.
    """
    return task.divergence(model, one, other).float()


@contextmanager
def body_calls(backbone: Backbone) -> Iterator[list[Call]]:
    """The calls of the body inside the block that have gradients, in order.

    Of an encoder-decoder those of the whole body, else those of its encoder alone.
    """
    calls: list[Call] = []

    def note(body: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        states = output.last_hidden_state
        if states.requires_grad:
            calls.append(Call(body, inputs, named, states))

    bodies = dict.fromkeys((reader(backbone), backbone.base))
    handles = [body.register_forward_hook(note, with_kwargs=True) for body in bodies]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
