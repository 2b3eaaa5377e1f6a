"""A task's records of examples, each example under a blend: what every metric is made from.

Knows tasks by their interface and how to spread work over processes.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from adapters_hub.data.batches import by_length
from adapters_hub.data.rows import Row
from adapters_hub.library.blend import Blend
from adapters_hub.progress import over
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Record, Target, Task
from adapters_hub.tasks.features import Features

if TYPE_CHECKING:
    from accelerate import Accelerator

BlendOf = Callable[[Row], Blend]


@torch.no_grad()
def collect_records(
    model: Runtime,
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    blend_of: BlendOf,
    *,
    batch_size: int = 64,
    accelerator: "Accelerator | None" = None,
    features: Features | None = None,
) -> list[Record]:
    """A task's record for every example, in order; each example under a resolved blend.

    With an `accelerate.Accelerator` the work is done at its precision, spread over its processes,
    and every one of them gets all records. ``features`` keep what a frozen body makes of examples
    that are seen again. Where the backbone is sharded, all processes run as many batches.
    """
    process, processes = (
        (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    )
    lengths = [len(example.input_ids) for example in examples]
    numbered: list[tuple[int, Record]] = []
    shards = model.backbone.shards
    batches = by_length(lengths, batch_size, process, processes, even=shards is not None)
    shown = over(batches, "measuring", "batches", show=process == 0)
    for place, numbers in enumerate(shown):
        chosen = [examples[number] for number in numbers]
        blends = [blend_of(row) for example in chosen for row in task.rows(example.row)]
        heads = model.heads(blends) if task.needs_head() else []
        batch = task.collate(chosen, model.backbone)
        precision = accelerator.autocast() if accelerator else nullcontext()
        with model.bank.using(model.plan(blends)), precision:
            if features is not None:
                batch = features.added(batch, heads, chosen)
            records = task.records(model, batch, heads, chosen)
        if place * batch_size < len(lengths[process::processes]):  # else it is just for company
            numbered += zip(numbers, records, strict=True)
    if shards is not None:
        shards.release()
    if processes > 1:
        from accelerate.utils import gather_object

        numbered = gather_object(numbered)
    return [record for _, record in sorted(numbered, key=lambda pair: pair[0])]
