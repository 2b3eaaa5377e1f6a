"""Train language adapters: text in a language in, a LoRA adapter per language out.

    adapters-hub train language --language da --data my/danish.jsonl
    adapters-hub train language --language da uk --steps 500     # two at once
    adapters-hub train language --language da sv --name nordic   # one for both
    adapters-hub train language --language da --objective match --data my/pairs.jsonl

The objective (--objective) is chosen by what the data and the backbone allow, and printed with the
reason. match: rows are pairs, a text and its translation into a language the backbone knows
(``positive``, or the text of the same ``id`` in --pivot's language); the text's states become those
of its translation, and its words' those of the words they mean, so the adapter can be added to
domain adapters. masked, causal: text alone, with the backbone's head. contrastive: a text finds
its ``positive``, for retrieval; measure it before you add it to other tasks. Ids that are shared
count as translations only without a head.
Several languages are trained in the same batches, each adapter on its own rows; with --name one
adapter learns from all, drawn with p ~ n^alpha. Where just one language is asked for, rows that
name none are in it. Everything else is a flag.
Several processes, also on a CPU: --processes 2, or by accelerate, whose own --cpu starts one:

    accelerate launch --multi_gpu --num_processes 2 -m adapters_hub.recipes.language --cpu …
"""

from typing import TYPE_CHECKING

from adapters_hub.errors import SettingsError
from adapters_hub.metrics.tables import table
from adapters_hub.recipes.recipe import Recipe, Result
from adapters_hub.training.settings import Resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapters_hub.data.rows import Row
    from adapters_hub.runtime.adapter import Adapter
    from adapters_hub.training.run import Experiment


def train_language(resolved: Resolved, command: str, silent: bool) -> Result:
    """Settings, data, train, save, show; raises what `Experiment` raises."""
    if not resolved.settings.language:
        raise SettingsError("say which language: --language da (or several)")
    if resolved.settings.language == ("auto",) and not resolved.settings.name:
        raise SettingsError("--language auto: say among which (auto da sv), or give one --name")
    if resolved.settings.dev_language and not resolved.settings.name:
        raise SettingsError("--dev-language: each adapter has its language's dev rows; give --name")
    from adapters_hub.training.objectives import with_objective  # which brings in torch
    from adapters_hub.training.rows import read_rows
    from adapters_hub.training.run import Experiment

    read = read_rows(resolved.settings)
    experiment = Experiment(
        with_objective(resolved, read), rows=read, command=command, quiet=silent
    )
    settings, tags = experiment.settings, experiment.languages
    experiment.require_languages()
    names = [settings.name] if settings.name else list(tags)
    owner = (lambda row: 0) if settings.name else (lambda row: tags.index(row.language))
    for name in names:
        experiment.check_can_train(name)
    one = tags[0] if len(tags) == 1 else None
    adapters, progress = experiment.train(
        [experiment.new_adapter(name, language=one if settings.name else name) for name in names],
        owner,
    )
    saved = [experiment.save(adapter) for adapter in adapters]  # before anything else can fail
    if experiment.examples["test"]:
        for number, metrics in enumerate(_measured(experiment, adapters, owner)):
            saved[number] = experiment.save(adapters[number], metrics)
    else:
        experiment.print("\nno test rows, so there is no table")
    infos = [info for info in saved if info]
    for info in infos:
        experiment.print(f"\nsaved {info.path} ({info.bytes / 1024:.0f} KiB)")
    root = str(experiment.library.root)
    rate = progress.tokens / max(progress.seconds, 1e-9)
    experiment.print(
        f"{progress.steps} steps, {rate:,.0f} tokens a second\n\n"
        f"    import adapters_hub as ah\n"
        f"    model = ah.load_backbone({settings.backbone!r}, library={root!r})\n"
        f"    model.use({names[0]!r})"
    )
    experiment.close()
    if not infos:
        return {}  # only the main process reports
    return {
        "written": [info.path for info in infos],
        "metrics": {info.name: dict(info.metrics) for info in infos},
        "steps": progress.steps,
        "seconds": round(progress.seconds, 1),
    }


def _measured(
    experiment: "Experiment", adapters: "Sequence[Adapter]", owner: "Callable[[Row], int]"
) -> list[dict[str, float]]:
    """Show the bare backbone and each adapter on its own test rows; the metrics of each."""
    from adapters_hub.evaluation.scores import scores_by_language

    model, task, test = experiment.model, experiment.task, experiment.examples["test"]
    results: dict[str, dict[str, float]] = {"bare backbone": {}, "adapter": {}}
    for number, adapter in enumerate(adapters):  # all of its texts under it
        its_examples = [example for example in test if owner(example.row) == number]
        blends = zip(results, (model.resolve(None), model.resolve(adapter.name)), strict=True)
        columns = {column: lambda row, blend=blend: blend for column, blend in blends}
        if its_examples:
            compared = scores_by_language(
                model, task, its_examples, columns, experiment.accelerator
            )
            for column, scores in compared[task.metric].items():
                results[column] |= {tag: scores[tag] for tag in scores if tag != "mean"}
    for scores in results.values():
        scores["mean"] = sum(scores.values()) / len(scores)
    unit = task.metric_name(model.backbone)
    better = "higher" if task.higher_is_better else "lower"
    texts = len(experiment.splits["test"])
    experiment.print(f"\n{unit} on {texts} test texts ({better} is better):\n")
    experiment.print(table(results, "language", {}))
    words = {"bare backbone": "bare", "adapter": "adapted"}
    measured = []
    for adapter in adapters:
        tag = adapter.info.language or "mean"
        scores = {column: results[column][tag] for column in results if tag in results[column]}
        measured.append({f"{unit}, {words[column]}": score for column, score in scores.items()})
    return measured


RECIPE = Recipe(
    command="train language",
    description=__doc__,
    values={
        "task": "language-modeling",
        "over": ("none",),
        "rank": 16,
        "steps": 300,
        "learning_rate": 2e-3,
    },
    run=train_language,
)

if __name__ == "__main__":
    RECIPE.main()
