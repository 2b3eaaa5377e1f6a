"""What a domain adapter gains by LoRA+, rsLoRA, PEFT's starts and a cut, at equal steps.

    python benchmarks/starts.py
    python benchmarks/starts.py --backbone my/model --data my/rows --domain law --steps 200

The hotel adapter of recipes/lora_domain.py, over the frozen language adapters, with few steps. Bits
of the dev rows, each under its language adapter and the trained one as it is kept at the end; means
and standard deviations over seeds, which order the batches and draw A. CPU seconds are those of
training, the start and the cut included, over those of the first way; a median of the seeds.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from report import report, spread

import adapters_hub as ah
from adapters_hub.inference.records import collect_records
from adapters_hub.metrics.tables import markdown
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved, TrainingSettings

DATA = Path(__file__).parents[1] / "recipes" / "data"
WAYS: dict[str, dict[str, object]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "lora-plus 4": {"lora_plus": 4},
    "lora-plus 16": {"lora_plus": 16},
    "init pissa": {"init": "pissa"},
    "init olora": {"init": "olora"},
    "init eva": {"init": "eva"},
    "init lora_ga": {"init": "lora_ga"},
    "init orthogonal": {"init": "orthogonal"},
    "rank 32": {"rank": 32},
    "rank 32, cut 0.95": {"rank": 32, "cut": 0.95},
}


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--domain", default="hotel")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    model = ah.load_backbone(options.backbone, device="cpu")

    def trained(way: str, seed: int) -> dict[str, float]:
        settings = TrainingSettings(
            task="language-modeling", data=options.data, domain=(options.domain,), seed=seed,
            language=("en", "de", "fr", "es", "ru", "zh"), steps=options.steps, cpu=True,
            batch_size=options.batch_size, learning_rate=options.learning_rate, resume=False,
            run_folder=runs, threads=options.threads, **WAYS[way],
        )  # fmt: skip
        origins = dict.fromkeys(settings.flat(), "benchmark")
        experiment = Experiment(Resolved(settings, origins), model=model, quiet=True)
        task, dev = experiment.task, experiment.examples["dev"]
        experiment.examples["dev"] = []  # looked at only when it is finished
        fresh = experiment.new_adapter("learnt", domain=options.domain)
        started = time.process_time()
        (adapter,), _ = experiment.train([fresh])
        seconds = time.process_time() - started
        alone = model.resolve("name:learnt")
        records = collect_records(
            model, task, dev, lambda row: alone + experiment.language_blend(row)
        )
        ranks = [len(a) for a, _ in adapter.factors.values()]
        return {
            "bits": task.metrics(records)[task.metric],
            "seconds": seconds,
            "rank": statistics.mean(ranks),
            "parameters": sum(t.numel() for t in adapter.parameters()),
        }

    with TemporaryDirectory() as runs:
        made: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            for way in options.ways:
                made[way].append(trained(way, seed))
    first = made[options.ways[0]]
    shown = []
    for way, of_way in made.items():
        bits = [run["bits"] for run in of_way]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(of_way, first, strict=True)]
        gains = [a["bits"] - b["bits"] for a, b in zip(of_way, first, strict=True)]
        shown.append(
            [
                way, f"{statistics.mean(bits):.3f}", f"{spread(bits):.3f}",
                f"{statistics.mean(gains):+.3f}", f"{statistics.median(ratios):.2f}",
                f"{statistics.mean(run['rank'] for run in of_way):.1f}",
                f"{statistics.mean(run['parameters'] for run in of_way):,.0f}",
            ]
        )  # fmt: skip
    head = ["way", "dev bits", "sd", f"- {options.ways[0]}", "CPU s, x", "rank", "parameters"]
    title = (
        f"{options.domain} on {options.backbone}: {options.steps} steps of {options.batch_size} "
        f"rows, rate {options.learning_rate:g}, {options.seeds} seeds, {options.threads} threads"
    )
    report(title, markdown(head, shown), {"runs": made}, options.json)


if __name__ == "__main__":
    main()
