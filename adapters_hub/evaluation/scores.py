"""Measuring blends on examples, and the tables that show it.

Knows tasks by their interface and how to spread work over processes; trains nothing.
"""

from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator

from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.inference.records import BlendOf, collect_records
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Record, Target, Task


def metrics_by(
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    records: Sequence[Record],
    key: Callable[[Row], str | None],
) -> dict[str, dict[str, float]]:
    """The task's metrics over the records of each value of ``key``, such as each language."""
    groups: dict[str, list[Record]] = {}
    for example, record in zip(examples, records, strict=True):
        groups.setdefault(key(example.row) or "-", []).append(record)
    return {name: task.metrics(groups[name]) for name in sorted(groups)}


def scores_by_language(
    model: Runtime,
    task: Task[Target, Record],
    examples: Sequence[Example[Target]],
    columns: Mapping[str, BlendOf],
    accelerator: Accelerator | None = None,
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
            by_language = {
                tag: score[shown.metric] for tag, score in scores.items() if shown.metric in score
            }
            if by_language:
                mean = sum(by_language.values()) / len(by_language)
                results.setdefault(shown.metric, {})[column] = {**by_language, "mean": mean}
    return results
