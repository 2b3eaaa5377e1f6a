"""Train language adapters: text in a language in, a LoRA adapter per language out.

    accelerate launch recipes/lora_language.py --language da --data my/danish.jsonl
    accelerate launch recipes/lora_language.py --language da uk --steps 500     # two at once
    accelerate launch recipes/lora_language.py --language da sv --name nordic   # one for both
    accelerate launch recipes/lora_language.py --language da --objective match --data my/pairs.jsonl
    accelerate launch --multi_gpu --num_processes 2 recipes/lora_language.py --language da --cpu

The objective (--objective) is chosen by what the data and the backbone allow, and printed with the
reason. match: rows are pairs, a text and its translation into a language the backbone knows
(``positive``, or the text of the same ``id`` in --pivot's language); the text's states become those
of its translation, and its words' those of the words they mean, so the adapter can be added to
domain adapters. masked, causal: text alone, with the backbone's head. contrastive: a text finds
its ``positive``, for retrieval; measure it before you add it to other tasks. Ids that are shared
count as translations only without a head.
Several languages are trained in the same batches, each adapter on its own rows; with --name one
adapter learns from all, drawn with p ~ n^alpha. Where just one language is asked for, rows that
name none are in it. Everything else is a flag: see --help.
On a CPU too it is --multi_gpu (or torchrun) that starts several processes; accelerate's own --cpu
starts one.
"""

from pathlib import Path

from adapters_hub.errors import SettingsError
from adapters_hub.metrics.tables import table
from adapters_hub.training.recipe import main
from adapters_hub.training.settings import parse_settings

RECIPE = {
    "task": "language-modeling",
    "data": str(Path(__file__).parent / "data"),
    "over": ("none",),
    "rank": 16,
    "steps": 300,
    "learning_rate": 2e-3,
}


def run() -> None:
    """Settings, data, train, save, show."""
    resolved = parse_settings(recipe=RECIPE, description=__doc__)
    if not resolved.settings.language:
        raise SettingsError("say which language: --language da (or several)")
    if resolved.settings.language == ("auto",) and not resolved.settings.name:
        raise SettingsError("--language auto: say among which (auto da sv), or give one --name")
    if resolved.settings.dev_language and not resolved.settings.name:
        raise SettingsError("--dev-language: each adapter has its language's dev rows; give --name")
    from adapters_hub.evaluation.scores import scores_by_language  # which bring in torch
    from adapters_hub.training.objectives import with_objective
    from adapters_hub.training.rows import read_rows
    from adapters_hub.training.run import Experiment

    read = read_rows(resolved.settings)
    experiment = Experiment(with_objective(resolved, read), rows=read)
    settings, model, tags = experiment.settings, experiment.model, experiment.languages
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
    if examples := experiment.examples["test"]:
        results: dict[str, dict[str, float]] = {"bare backbone": {}, "adapter": {}}
        for number, name in enumerate(names):  # each on its own rows, all of their texts under it
            its_examples = [example for example in examples if owner(example.row) == number]
            blends = dict(zip(results, (model.resolve(None), model.resolve(name)), strict=True))
            columns = {column: lambda row, blend=blend: blend for column, blend in blends.items()}
            if its_examples:
                compared = scores_by_language(
                    model, experiment.task, its_examples, columns, experiment.accelerator
                )
                for column, scores in compared[experiment.task.metric].items():
                    results[column] |= {tag: scores[tag] for tag in scores if tag != "mean"}
        for scores in results.values():
            scores["mean"] = sum(scores.values()) / len(scores)
        unit = experiment.task.metric_name(model.backbone)
        texts = len(experiment.splits["test"])
        better = "higher" if experiment.task.higher_is_better else "lower"
        experiment.print(f"\n{unit} on {texts} test texts ({better} is better):\n")
        experiment.print(table(results, "language", {}))
        for number, adapter in enumerate(adapters):
            tag = adapter.info.language or "mean"
            scores = {c: results[c][tag] for c in results if tag in results[c]}
            words = {"bare backbone": "bare", "adapter": "adapted"}
            metrics = {f"{unit}, {words[column]}": score for column, score in scores.items()}
            saved[number] = experiment.save(adapter, metrics)
    else:
        experiment.print("\nno test rows, so there is no table")
    for info in saved:
        if info:
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


if __name__ == "__main__":
    main(run)
