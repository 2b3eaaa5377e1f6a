"""Measuring at which weight a language adapter is best beside a domain adapter.

Knows tasks by their interface; the rule that uses what is measured is in `library.composition`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Task
from adapters_hub.training.mean_loss import mean_loss

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

    def loss(weight: float) -> float:
        under = partial(_under, model, task, alone + added * weight)
        return mean_loss(model, task, examples, under)

    return min(WEIGHTS, key=loss)


@contextmanager
def _under(
    model: Runtime, task: Task, blend: Blend, examples: Sequence[Example]
) -> Iterator[Heads]:
    """Forwards inside the block run the examples' rows under a resolved blend."""
    rows = [blend] * sum(len(task.rows(example.row)) for example in examples)
    with model.bank.using(model.plan(rows)):
        yield model.heads(rows) if task.needs_head() else []
