"""What it brings that a head that learns alone has its texts' states computed once.

    python benchmarks/head_alone.py
    python benchmarks/head_alone.py --task token-classification --steps 60 --backbone my/model

The recipe's baseline, a head on the bare backbone, on the sample text of its task with ten looks at
dev: ``once``, as it is trained, and ``every step``, where the body runs for each batch and each
look. Both in one process, in turn; medians of the seconds (of the process on all cores, and of the
clock), of the rounds' ratios, and the largest distance of the two heads, in the parameters' own
size.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from report import report
from torch import Tensor

import adapters_hub as ah
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks import declaration_of
from adapters_hub.training import loop
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
WAYS = ("once", "every step")


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    tasks = ("classification", "token-classification", "question-answering")
    add("--task", choices=tasks, default=tasks[0])
    add("--backbone", default="starter")
    add("--data", help="the task's sample, unless it is given")
    add("--domain", default="hotel")
    add("--steps", type=int, default=120)
    add("--batch-size", type=int, default=32)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--rounds", type=int, default=3)
    add("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    data = options.data or str(RECIPES / declaration_of(options.task).sample.folder)
    folder = tempfile.TemporaryDirectory(prefix="head-alone-")
    chosen = ah.TrainingSettings(
        task=options.task, backbone=options.backbone, data=data, over=("none",), resume=False,
        steps=options.steps, batch_size=options.batch_size, threads=options.threads, cpu=True,
        domain=(options.domain,) if options.domain else None, run_folder=folder.name,
    )  # fmt: skip
    experiment = Experiment(Resolved(chosen, dict.fromkeys(chosen.flat(), "")), quiet=True)
    counts = {split: len(examples) for split, examples in experiment.examples.items()}

    def run(way: str) -> tuple[float, float, dict[str, Tensor]]:
        head = experiment.new_adapter("head", head_only=True)
        alone = (lambda *given: False) if way == "every step" else loop._heads_alone
        process, clock = time.process_time(), time.perf_counter()
        shown = contextlib.redirect_stderr(io.StringIO())
        with patch.object(loop, "_heads_alone", alone), shown:
            (trained,), _ = experiment.train([head], over=False)
        return time.process_time() - process, time.perf_counter() - clock, trained.head

    seconds: dict[str, dict[str, list[float]]] = {way: {"process": [], "clock": []} for way in WAYS}
    distance = 0.0
    for number in range(options.rounds):
        heads = {}
        for way in WAYS[:: 1 if number % 2 else -1]:
            process, clock, heads[way] = run(way)
            seconds[way]["process"].append(process)
            seconds[way]["clock"].append(clock)
        for name, tensor in heads["once"].items():
            change = (tensor - heads["every step"][name]).abs().max() / tensor.abs().max()
            distance = max(distance, float(change))
    shown = []
    for way, by_clock in seconds.items():
        line = [way]
        for kind, values in by_clock.items():
            pairs = zip(seconds["every step"][kind], values, strict=True)
            ratio = statistics.median(always / value for always, value in pairs)
            line += [f"{statistics.median(values):.1f}", f"{ratio:.2f}"]
        shown.append(line)
    head = ["", "s of the process", "every step / this", "s of the clock", "every step / this"]
    title = (
        f"A head alone, {options.task}, {options.steps} steps of {options.batch_size}, "
        f"{counts['train']} train and {counts['dev']} dev texts, {Path(options.backbone).name}, "
        f"{options.threads} threads, {options.rounds} rounds; the heads differ by {distance:.0e}"
    )
    measured = {"seconds": seconds, "distance": distance, "options": vars(options)}
    report(title, markdown(head, shown), measured, options.json)
    folder.cleanup()


if __name__ == "__main__":
    main()
