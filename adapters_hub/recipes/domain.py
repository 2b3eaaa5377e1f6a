"""Train a domain adapter over frozen language adapters, and show what it brings.

    adapters-hub train domain
    adapters-hub train domain --task classification --data my/reviews --domain hotel
    adapters-hub train domain --task question-answering
    adapters-hub train domain --task token-classification --learning-rate 5e-3
    adapters-hub train domain --task retrieval
    adapters-hub train domain --task generation
    adapters-hub train domain --task translation --language en --target-language de
    adapters-hub train domain --domain bank clinic --name services --language de fr

The objective is the backbone's own (bits, lower is better), a labelled task (macro-F1, F1 of
answers, F1 of spans), retrieval (nDCG@10), where a text finds its ``positive``, without one a
translation of its ``id`` (in the sample, a question its text), or writing a ``target`` (bits, then
chrF of what is written): generation (in the sample, the answer to a question), and translation,
without a target into the other texts of an ``id``. The one shared adapter learns from rows of many
languages; below it each text has the frozen adapter of its own language, in translation of the
language that is written, where the library has one (--over). At use time the language is swapped,
also for languages that were not trained on. Everything else is a flag.
Several processes, also on a CPU: --processes 2, or by accelerate, whose own --cpu starts one:

    accelerate launch --multi_gpu --num_processes 2 -m adapters_hub.recipes.domain --cpu
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.metrics.tables import table
from adapters_hub.recipes.recipe import Recipe, Result
from adapters_hub.tasks import declaration_of
from adapters_hub.training.settings import WITHOUT_PENALTIES, Resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adapters_hub.data.rows import Row
    from adapters_hub.library.blend import Blend
    from adapters_hub.training.run import Experiment

SAMPLE = {"language": ("en", "de", "fr", "es", "ru", "zh")}
"""Of the sample text, unless told otherwise: two of its languages are kept for the test."""


def train_domain(resolved: Resolved, command: str, silent: bool) -> Result:
    """Settings, data, train, save, show; raises what `Experiment` raises.

    On the sample text the result goes beside the hotel adapter that ships, again and again.
    """
    if resolved.origins["data"] == "default":
        sample = declaration_of(resolved.settings.task).sample
        resolved = resolved.defaults(**{**SAMPLE, **sample.settings})
        if {resolved.origins["domain"], resolved.origins["name"]} == {"default"}:
            resolved = resolved.defaults(domain=("hotel",), name=sample.name, replace=True)
    from adapters_hub.training.run import Experiment  # which brings in torch

    experiment = Experiment(resolved, other_languages=True, command=command, quiet=silent)
    model, task = experiment.model, experiment.task
    name = experiment.domain_name()
    experiment.check_can_train(name)
    counts = {split: len(rows) for split, rows in experiment.splits.items()}
    labels = f"; labels: {', '.join(task.labels)}" if task.labels else ""
    experiment.print(f"rows: {counts}{labels}")
    over = experiment.languages_with_adapters()
    experiment.print(f"frozen language adapters below: {' '.join(over) or 'none'}\n")

    columns: dict[str, Callable[[Row], Blend]] = {}
    if task.needs_head():
        experiment.print("the bare backbone, a head only:")
        head = experiment.new_adapter(f"{name}.head", head_only=True)
        experiment.train([head], lambda row: 0, over=False, **WITHOUT_PENALTIES)
        bare = model.resolve(head.name)
    else:
        bare = model.resolve(None)
    columns["bare backbone (head only)"] = lambda row: bare
    experiment.print("the domain adapter:")
    fresh = experiment.new_adapter(name, domain=experiment.domain(name))
    (adapter,), progress = experiment.train([fresh])
    adapter = model.add(experiment.with_pair_weights(adapter))
    alone = model.resolve(name)
    columns[name] = lambda row: alone
    if over:
        columns[f"language + {name}"] = lambda row: experiment.in_use(row, alone)

    saved = experiment.save(adapter)  # before anything else can fail
    shown = _Shown()
    if experiment.examples["test"]:
        shown = _measured(experiment, name, columns)
        saved = experiment.save(adapter, shown.metrics)
    else:
        experiment.print("\nno test rows, so there is no table")
    if saved:
        rate = progress.tokens / max(progress.seconds, 1e-9)
        experiment.print(
            f"\nsaved {saved.path} ({saved.bytes / 1024:.0f} KiB); "
            f"{progress.steps} steps, {rate:,.0f} tokens a second. Use it:\n\n"
            f"{_usage(experiment, name, over)}"
        )
    experiment.close()
    if not saved:
        return {}  # only the main process reports
    return {
        "written": [str(saved.path), *map(str, shown.pictures)],
        "metrics": {name: shown.metrics},
        "steps": progress.steps,
        "seconds": round(progress.seconds, 1),
    }


@dataclass
class _Shown:
    """What was measured, for the adapter's card, and the pictures of it."""

    metrics: "dict[str, float]" = field(default_factory=dict)
    pictures: "list[Path]" = field(default_factory=list)


def _measured(
    experiment: "Experiment", name: str, columns: "Mapping[str, Callable[[Row], Blend]]"
) -> _Shown:
    """Show every column on the test rows, as tables and as a picture of each."""
    from adapters_hub.evaluation.scores import scores_by_language
    from adapters_hub.recipes.picture import draw_table

    model, task, test = experiment.model, experiment.task, experiment.examples["test"]
    final = task.final()
    scores = scores_by_language(model, final, test, columns, experiment.accelerator)
    trained_on = {task.language(row) or "-" for row in experiment.splits["train"]}
    texts = len(experiment.splits["test"])
    measured = _Shown()
    for shown in (s for s in final.shown(model.backbone) if s.metric in scores):
        results = scores[shown.metric]
        notes = {lang: " (not trained on)" for lang in results[name] if lang not in trained_on}
        better = "higher" if shown.higher_is_better else "lower"
        title = f"{shown.name} on {texts} test texts ({better} is better)"
        experiment.print(f"\n{title}:\n")
        experiment.print(table(results, "language", {**notes, "mean": ""}))
        experiment.print(shown.note and f"\n{shown.note}")
        measured.metrics |= {
            f"{shown.name}, {column}": by_language["mean"]
            for column, by_language in results.items()
        }
        if experiment.accelerator.is_main_process:
            path = Path(experiment.settings.run_folder) / f"{name}.{shown.metric}.png"
            if said := draw_table(path, results, title, notes):
                experiment.print(f"\n{said}")
            else:
                measured.pictures.append(path)
                experiment.print(f"\nas a picture: {path}")
    return measured


def _usage(experiment: "Experiment", name: str, over: "list[str]") -> str:
    """The lines of Python that use the new adapter."""
    row = (experiment.splits["test"] or experiment.splits["train"])[0]
    language = experiment.task.language(row)
    blend = f"{language} + {name}" if language in over else name
    root = str(experiment.library.root)
    lines = [
        "import adapters_hub as ah",
        f"model = ah.load_backbone({experiment.settings.backbone!r}, library={root!r})",
        f"model.use({blend!r})",
    ]
    if call := experiment.task.usage(row, experiment.model.backbone):
        lines.append(call)
    return "\n".join(f"    {line}" for line in lines)


RECIPE = Recipe(
    command="train domain",
    description=__doc__,
    values={"task": "language-modeling", "rank": 8, "steps": 120, "learning_rate": 2e-3},
    run=train_domain,
)

if __name__ == "__main__":
    RECIPE.main()
