"""Measuring at which weight a language adapter is best beside a domain adapter.

Knows tasks by their interface; the rule that uses what is measured is in `library.composition`.
"""

from collections.abc import Sequence

import torch

from adapters_hub.data.batches import by_length
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The weights that are tried."""


def measure_pair(
    model: Runtime, language: str, domain: str, task: Task, rows: Sequence[Row]
) -> PairWeight:
    """The weight of the adapter ``language`` beside ``domain`` with the least loss on rows.

    Both are names of adapters; of equal weights the smallest is taken, so 0 where adding does not
    help. Raises `DataError` without rows.
    """
    examples = task.encode(rows, model.backbone)
    task.check(examples)
    if not examples:
        raise DataError(f"no rows to measure {language} beside {domain} on")
    alone = Blend(((domain, 1.0),), exact=True)
    added = Blend(((language, 1.0),), exact=True)
    best = best_weight(model, added, alone, task, examples)

    def score(blend: Blend) -> float:
        return task.metrics(collect_records(model, task, examples, lambda row: blend))[task.metric]

    info = model.resident(language).info
    return PairWeight(
        weight=best,
        hash=info.hash,
        task=info.task,
        metric=task.metric_name(model.backbone),
        alone=score(alone),
        together=score(alone + added * best),
        rows=len(rows),
    )


def best_weight(
    model: Runtime, added: Blend, alone: Blend, task: Task, examples: Sequence[Example]
) -> float:
    """The weight of one resolved blend, added to another, with the least loss on examples."""
    return min(WEIGHTS, key=lambda weight: _loss(model, alone + added * weight, task, examples))


@torch.no_grad()
def _loss(model: Runtime, blend: Blend, task: Task, examples: Sequence[Example]) -> float:
    """The mean loss a target of examples under a resolved blend."""
    loss, count = 0.0, 0.0
    for numbers in by_length([len(example.input_ids) for example in examples], 32):
        chosen = [examples[number] for number in numbers]
        rows = [blend] * sum(len(task.rows(example)) for example in chosen)
        heads = model.heads(rows) if task.needs_head() else []
        batch = task.collate(chosen, model.backbone)
        with model.bank.using(model.plan(rows)):
            loss += task.loss(model, batch, heads).sum().item()
        count += task.count(batch).sum().item()
    return loss / max(1.0, count)
