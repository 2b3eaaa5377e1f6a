"""Train language adapters: text in a language in, a LoRA adapter per language out.

    accelerate launch recipes/lora_language.py --language da --data my/danish.jsonl
    accelerate launch recipes/lora_language.py --language da uk --steps 500     # two at once
    accelerate launch recipes/lora_language.py --language da sv --name nordic   # one for both
    accelerate launch --multi_gpu --num_processes 2 recipes/lora_language.py --language da --cpu

The objective is the backbone's own: the next token for a decoder, masked tokens for an encoder.
Several languages are trained in the same batches, each adapter on its own rows; with --name one
adapter learns from all, drawn with p ~ n^alpha. Everything else is a flag: see --help.
On a CPU too it is --multi_gpu (or torchrun) that starts several processes; accelerate's own --cpu
starts one.
"""

from pathlib import Path

from adapters_hub import languages
from adapters_hub.errors import SettingsError
from adapters_hub.evaluation import compare, table
from adapters_hub.experiment import Experiment, main
from adapters_hub.settings import parse_settings

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
    settings = resolved.settings
    if not settings.language:
        raise SettingsError("say which language: --language da (or several)")
    tags = [languages.canonical(tag) for tag in settings.language]
    experiment = Experiment(resolved)
    if settings.name:
        names, owner = [settings.name], lambda row: 0
    else:
        names, owner = tags, lambda row: tags.index(row.language)
    for name in names:
        experiment.check_can_save(name)
    one = tags[0] if len(tags) == 1 else None
    adapters, progress = experiment.train(
        [experiment.new_adapter(name, language=one if settings.name else name) for name in names],
        owner,
    )
    rows = [row for row in experiment.splits["test"] if row.language in tags]
    examples = experiment.task.encode(rows, experiment.model.backbone)
    resolve = {name: experiment.model.resolve(name) for name in names}
    bare = experiment.model.resolve(None)
    results = compare(
        experiment.model,
        experiment.task,
        examples,
        {"bare backbone": lambda row: bare, "adapter": lambda row: resolve[names[owner(row)]]},
        experiment.accelerator,
    )
    unit = experiment.task.metric_name(experiment.model.backbone)
    experiment.print(f"\n{unit} on {len(rows)} test texts (lower is better):\n")
    experiment.print(table(results, "language", {}))
    for adapter in adapters:
        own = adapter.info.language or "mean"
        scores = {c: results[c].get(own, results[c]["mean"]) for c in results}
        saved = experiment.save(
            adapter,
            {f"{unit}, bare": scores["bare backbone"], f"{unit}, adapted": scores["adapter"]},
        )
        if saved:
            experiment.print(f"\nsaved {saved.path} ({saved.bytes / 1024:.0f} KiB)")
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
