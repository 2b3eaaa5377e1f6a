"""Measuring blends on examples, and the tables that show it.

Knows tasks by their interface and how to spread work over processes; trains nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from adapters_hub.blend import Blend
from adapters_hub.errors import DataError
from adapters_hub.tables import markdown
from adapters_hub.tasks import Example, Row, Task

if TYPE_CHECKING:
    from adapters_hub.model import AdaptedModel

BlendOf = Callable[[Row], Blend]


@torch.no_grad()
def collect_records(
    model: "AdaptedModel",
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


def metrics_by(
    task: Task,
    examples: Sequence[Example],
    records: Sequence[dict[str, Any]],
    key: Callable[[Row], str | None],
) -> dict[str, dict[str, float]]:
    """The task's metrics over the records of each value of ``key``, such as each language."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example, record in zip(examples, records, strict=True):
        groups.setdefault(key(example.row) or "-", []).append(record)
    return {name: task.metrics(groups[name]) for name in sorted(groups)}


def compare(
    model: "AdaptedModel",
    task: Task,
    examples: Sequence[Example],
    columns: Mapping[str, BlendOf],
    accelerator: Any = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Metric → column → language → value, with the plain mean over languages as ``mean``.

    Metrics are those that the task has for tables, `Task.shown`; a language that one cannot be
    measured in is left out of it. Raises `DataError` if there is nothing to compare on.
    """
    if not examples:
        raise DataError("no examples to compare on")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for column, blend_of in columns.items():
        records = collect_records(model, task, examples, blend_of, accelerator=accelerator)
        scores = metrics_by(task, examples, records, task.language)
        for shown in task.shown(model.backbone):
            own = {
                tag: score[shown.metric] for tag, score in scores.items() if shown.metric in score
            }
            if own:
                mean = sum(own.values()) / len(own)
                results.setdefault(shown.metric, {})[column] = {**own, "mean": mean}
    return results


def table(results: Mapping[str, Mapping[str, float]], corner: str, notes: Mapping[str, str]) -> str:
    """A Markdown table of `compare`'s results; ``notes`` are set behind a language's name."""
    columns = list(results)
    languages = list(dict.fromkeys(name for column in columns for name in results[column]))
    head = [corner, *columns]
    rows = [
        [f"{name}{notes.get(name, '')}", *(_cell(results[column].get(name)) for column in columns)]
        for name in languages
    ]
    return markdown(head, rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
