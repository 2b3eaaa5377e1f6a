"""Train a domain adapter over frozen language adapters, and show what it brings.

    accelerate launch recipes/lora_domain.py
    accelerate launch recipes/lora_domain.py --task classification --data my/reviews --domain hotel
    accelerate launch recipes/lora_domain.py --task question-answering
    accelerate launch recipes/lora_domain.py --task token-classification --learning-rate 5e-3
    accelerate launch recipes/lora_domain.py --task retrieval
    accelerate launch recipes/lora_domain.py --task generation
    accelerate launch recipes/lora_domain.py --task translation --language en --target-language de
    accelerate launch recipes/lora_domain.py --domain bank clinic --name services --language de fr
    accelerate launch --multi_gpu --num_processes 2 recipes/lora_domain.py --cpu

The objective is the backbone's own (bits, lower is better), a labelled task (macro-F1, F1 of
answers, F1 of spans), retrieval (nDCG@10), where a text finds its ``positive``, without one a
translation of its ``id`` (in the sample, a question its text), or writing a ``target`` (bits, then
chrF of what is written): generation (in the sample, the answer to a question), and translation,
without a target into the other texts of an ``id``. The one shared adapter learns from rows of many
languages; below it each text has the frozen adapter of its own language, in translation of the
language that is written, where the library has one (--over). At use time the language is swapped,
also for languages that were not trained on. Everything else is a flag: see --help.
On a CPU too it is --multi_gpu (or torchrun) that starts several processes; accelerate's own --cpu
starts one.
"""

from dataclasses import replace
from pathlib import Path

from adapters_hub.metrics.tables import table
from adapters_hub.tasks import declaration_of
from adapters_hub.training.recipe import main
from adapters_hub.training.settings import WITHOUT_PENALTIES, parse_settings

RECIPE = {
    "task": "language-modeling",
    "data": str(Path(__file__).parent / "data"),
    "rank": 8,
    "steps": 120,
    "learning_rate": 2e-3,
}
# The sample text, unless told otherwise: two of its languages are kept for the test, and the
# result goes beside the hotel adapter that ships, again and again.
SAMPLE = {"language": ("en", "de", "fr", "es", "ru", "zh")}


def run() -> None:
    """Settings, data, train, save, show."""
    resolved = parse_settings(recipe=RECIPE, description=__doc__)
    if resolved.origins["data"] == "recipe":
        sample = declaration_of(resolved.settings.task).sample
        data = str(Path(__file__).parent / sample.folder)
        resolved = replace(resolved, settings=resolved.settings.changed(data=data))
        resolved = resolved.defaults(**{**SAMPLE, **sample.settings})
        if {resolved.origins["domain"], resolved.origins["name"]} == {"default"}:
            resolved = resolved.defaults(domain=("hotel",), name=sample.name, replace=True)
    from adapters_hub.evaluation.scores import scores_by_language  # which bring in torch
    from adapters_hub.training.run import Experiment

    experiment = Experiment(resolved, other_languages=True)
    settings, model, task = experiment.settings, experiment.model, experiment.task
    name = experiment.domain_name()
    experiment.check_can_train(name)
    counts = {split: len(rows) for split, rows in experiment.splits.items()}
    labels = f"; labels: {', '.join(task.labels)}" if task.labels else ""
    experiment.print(f"rows: {counts}{labels}")
    over = experiment.languages_with_adapters()
    experiment.print(f"frozen language adapters below: {' '.join(over) or 'none'}\n")

    columns = {}
    if task.needs_head():
        experiment.print("the bare backbone, a head only:")
        head = experiment.new_adapter(f"{name}.head", head_only=True)
        experiment.train([head], over=False, **WITHOUT_PENALTIES)
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
    if test := experiment.examples["test"]:
        final = task.final()
        scores = scores_by_language(model, final, test, columns, experiment.accelerator)
        trained_on = {task.language(row) or "-" for row in experiment.splits["train"]}
        texts = len(experiment.splits["test"])
        metrics = {}
        for shown in (s for s in final.shown(model.backbone) if s.metric in scores):
            results = scores[shown.metric]
            notes = {lang: " (not trained on)" for lang in results[name] if lang not in trained_on}
            better = "higher" if shown.higher_is_better else "lower"
            experiment.print(f"\n{shown.name} on {texts} test texts ({better} is better):\n")
            experiment.print(table(results, "language", {**notes, "mean": ""}))
            experiment.print(shown.note and f"\n{shown.note}")
            metrics |= {
                f"{shown.name}, {column}": by_language["mean"]
                for column, by_language in results.items()
            }
        saved = experiment.save(adapter, metrics)
    else:
        experiment.print("\nno test rows, so there is no table")
    if saved:
        rate = progress.tokens / max(progress.seconds, 1e-9)
        root = str(experiment.library.root)
        row = (experiment.splits["test"] or experiment.splits["train"])[0]
        language = task.language(row)
        blend = f"{language} + {name}" if language in over else name
        print(
            f"\nsaved {saved.path} ({saved.bytes / 1024:.0f} KiB); "
            f"{progress.steps} steps, {rate:,.0f} tokens a second. Use it:\n\n"
            f"    import adapters_hub as ah\n"
            f"    model = ah.load_backbone({settings.backbone!r}, library={root!r})\n"
            f"    model.use({blend!r})"
        )
        if call := task.usage(row, model.backbone):
            print(f"    {call}")
    experiment.close()


if __name__ == "__main__":
    main(run)
