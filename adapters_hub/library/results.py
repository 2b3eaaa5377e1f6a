"""Results of an adapter on named data, and how the Hub reads them.

The Hub has two forms. ``.eval_results/*.yaml`` is for data sets that are registered as benchmarks,
which name their tasks (https://huggingface.co/docs/hub/eval-results); ``model-index`` in the card
takes any other data. Knows these forms; does not know how anything is measured.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters_hub.library.json_fields import Fields, as_count, as_line, as_number

EVAL_FOLDER = ".eval_results"


@dataclass(frozen=True)
class Result:
    """One number: a metric on the rows of a language and a domain of some data."""

    metric: str
    value: float
    data: str
    """A data set's id on the Hub, or a file or folder."""

    language: str | None = None
    domain: str | None = None
    split: str = "test"
    rows: int | None = None
    blend: str | None = None
    """What was measured, where it is not the adapter alone."""

    benchmark: str | None = None
    """The task's id in the data set, which is a benchmark on the Hub."""

    @classmethod
    def from_json(cls, data: object) -> "Result":
        """From an object of its fields; raises `TypeError` that names what is wrong."""
        fields = Fields(data)
        return cls(
            metric=fields.need("metric", as_line),
            value=fields.need("value", as_number),
            data=fields.need("data", as_line),
            language=fields.get("language", as_line),
            domain=fields.get("domain", as_line),
            split=fields.get("split", as_line) or "test",
            rows=fields.get("rows", as_count),
            blend=fields.get("blend", as_line),
            benchmark=fields.get("benchmark", as_line),
        )

    @property
    def on(self) -> str:
        """The data and the part of it, in words."""
        part = ", ".join(part for part in (self.language, self.domain) if part)
        return f"{self.data} ({part})" if part else self.data


def model_index(name: str, task: str, results: Iterable[Result]) -> list[dict[str, object]]:
    """The card's ``model-index`` of results that are of no benchmark; empty without any.

    ``task`` is the Hub's tag for what the adapter does, such as ``text-classification``.
    """
    metrics: dict[tuple[str, str | None, str, str], list[dict[str, object]]] = {}
    for result in results:
        if result.benchmark is None:
            label = f"{result.metric} of {result.blend}" if result.blend else result.metric
            key = (result.on, result.language, result.data, result.split)
            entry = {"type": result.metric, "value": result.value, "name": label}
            metrics.setdefault(key, []).append(entry)
    entries = [
        {
            "task": {"type": task},
            "dataset": {"name": on, "type": data, "split": split}
            | ({"config": language} if language else {}),
            "metrics": numbers,
        }
        for (on, language, data, split), numbers in metrics.items()
    ]
    return [{"name": name, "results": entries}] if entries else []


def eval_files(results: Iterable[Result]) -> dict[str, str]:
    """Path in the repository → content, for results of benchmarks; one file a result."""
    import yaml

    files: dict[str, str] = {}
    for result in results:
        if result.benchmark is None:
            continue
        parts = (result.data, result.benchmark, result.language, result.domain, result.metric,
                 result.blend)  # fmt: skip
        stem = re.sub(r"[^\w.-]+", "-", "_".join(part for part in parts if part)).strip("-_.")
        entry: Mapping[str, object] = {
            "dataset": {"id": result.data, "task_id": result.benchmark},
            "value": result.value,
            "notes": _notes(result),
        }
        files[f"{EVAL_FOLDER}/{stem}.yaml"] = yaml.safe_dump(
            [entry], sort_keys=False, allow_unicode=True
        )
    return files


def _notes(result: Result) -> str:
    facts = [result.metric, result.language, result.domain]
    facts += [f"{result.rows} {result.split} rows" if result.rows else f"{result.split} rows"]
    facts += [f"the blend {result.blend}" if result.blend else None]
    return ", ".join(fact for fact in facts if fact)
