"""A task's records of examples, each example under its own blend: what every metric is made from.

Knows tasks by their interface and how to spread work over processes.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from adapters_hub.data.rows import Row
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task

BlendOf = Callable[[Row], Blend]


@torch.no_grad()
def collect_records(
    model: Runtime,
    task: Task,
    examples: Sequence[Example],
    blend_of: BlendOf,
    *,
    batch_size: int = 64,
    accelerator: Any = None,
) -> list[dict[str, Any]]:
    """A task's record for every example, in order; each example under its own resolved blend.

    With an `accelerate.Accelerator` the work is done at its precision, spread over its processes,
    and every one of them gets all records.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    process, processes = (
        (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    )
    mine = order[process::processes]
    found: list[tuple[int, dict[str, Any]]] = []
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        chosen = [examples[i] for i in numbers]
        blends = [blend_of(row) for example in chosen for row in task.rows(example)]
        heads = model.heads(blends) if task.needs_head() else []
        batch = task.collate(chosen, model.backbone)
        precision = accelerator.autocast() if accelerator else nullcontext()
        with model.bank.using(model.plan(blends)), precision:
            records = task.records(model, batch, heads, chosen)
        found += zip(numbers, records, strict=True)
    if processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]
