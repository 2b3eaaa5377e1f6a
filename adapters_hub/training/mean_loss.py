"""The mean loss of a task over examples: what weights of a blend are chosen by.

Knows tasks by their interface; does not know what the examples run under.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from adapters_hub.data.batches import by_length
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Record, Target, Task

_AT_ONCE = 32  # examples

_Under = Callable[[Sequence[Example[Target]]], AbstractContextManager[Heads]]


def mean_loss(
    model: Runtime,
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    under: _Under[Target],
) -> float:
    """The loss in nats a target over all examples.

    ``under``: what some examples run under while the block lasts, and the heads they have there.
    """
    return _measured(model, task, examples, under, None)


def loss_and_metrics(
    model: Runtime,
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    under: _Under[Target],
) -> dict[str, float]:
    """`mean_loss` as ``loss``, and the task's metrics."""
    records: list[Record] = []
    return {"loss": _measured(model, task, examples, under, records), **task.metrics(records)}


@torch.no_grad()
def _measured(
    model: Runtime,
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    under: _Under[Target],
    records: list[Record] | None,
) -> float:
    """The mean loss; each example's record is put into ``records``."""
    nats, count = 0.0, 0.0
    for numbers in by_length([len(example.input_ids) for example in examples], _AT_ONCE):
        chosen = [examples[number] for number in numbers]
        batch = task.collate(chosen, model.backbone)
        with under(chosen) as heads:
            nats += task.loss(model, batch, heads).float().sum().item()
            if records is not None:
                records += task.records(model, batch, heads, chosen)
        count += task.count(batch).sum().item()
    return nats / max(1.0, count)
