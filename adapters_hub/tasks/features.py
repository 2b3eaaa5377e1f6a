"""What a frozen body makes of examples, kept for heads that learn on it or are measured on it.

Knows tasks by their interface; does not know how anything is trained.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Task

_BYTES = 2**30


class Features:
    """The features of examples, each computed once, as long as they fit into ``limit`` bytes.

    They lie in the CPU's memory, in the body's precision, without padding. An example is known by
    its identity, and must be under the same adapters with factors each time. What does not fit is
    computed each time.
    """

    def __init__(self, model: Runtime, task: Task, limit: int = _BYTES) -> None:
        self.model = model
        self.task = task
        self.room = limit
        self._kept: dict[int, tuple[Example, dict[str, Tensor]]] = {}

    def added(
        self, batch: dict[str, Tensor], heads: Heads, examples: Sequence[Example]
    ) -> dict[str, Tensor]:
        """A batch of these examples with their features; under the current plan."""
        new = [row for row, example in enumerate(examples) if id(example) not in self._kept]
        fresh = self._compute(batch, heads, examples, new) if new else {}
        if fresh is None:
            return batch
        rows = [
            fresh[row] if row in fresh else self._kept[id(example)][1]
            for row, example in enumerate(examples)
        ]
        tokens, device = batch["input_ids"].shape[1], batch["input_ids"].device
        return batch | {
            name: _stacked([row[name] for row in rows], tokens).to(device) for name in rows[0]
        }

    def _compute(
        self,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example],
        new: Sequence[int],
    ) -> dict[int, dict[str, Tensor]] | None:
        """The features of some rows of a batch by their places; None if the task has none."""
        chosen, plan = [examples[row] for row in new], self.model.bank.current()
        if len(new) < len(examples):
            batch = self.task.collate(chosen, self.model.backbone)
            plan = plan and plan.of(torch.tensor(new))
        with self.model.bank.using(plan):
            features = self.task.features(self.model, batch, heads)
        fresh = {}
        for place, (row, example) in enumerate(zip(new, chosen, strict=True)):
            length = len(example.input_ids)
            fresh[row] = {
                name: (tensor[place, :length] if tensor.dim() == 3 else tensor[place]).to(
                    "cpu", copy=True
                )
                for name, tensor in features.items()
            }
            size = sum(tensor.nbytes for tensor in fresh[row].values())
            if size <= self.room:
                self.room -= size
                self._kept[id(example)] = example, fresh[row]
        return fresh if features else None


def _stacked(rows: Sequence[Tensor], tokens: int) -> Tensor:
    """Rows (tokens of each, width), padded with zeros, or (width,), as one tensor."""
    if rows[0].dim() == 1:
        return torch.stack(list(rows))
    out = rows[0].new_zeros(len(rows), tokens, rows[0].shape[1])
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out
