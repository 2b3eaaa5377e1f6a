"""The mean loss of a task over examples: what weights of a blend are chosen by.

Knows tasks by their interface; does not know what the examples run under.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from adapters_hub.data.batches import by_length
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Record, Task

_AT_ONCE = 32  # examples

Under = Callable[[Sequence[Example]], AbstractContextManager[Heads]]
"""What some examples run under while the block lasts, and the heads they have there."""


@torch.no_grad()
def mean_loss(
    model: Runtime,
    task: Task,
    examples: Sequence[Example],
    under: Under,
    records: list[Record] | None = None,
) -> float:
    """The loss in nats a target over all examples; their records are put into ``records``."""
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
