"""Training here beside plain PEFT with `transformers.Trainer`: speed, and what is learned.

    python benchmarks/training.py --part speed
    python benchmarks/training.py --part quality --steps 150 --seeds 0 1 2
    python benchmarks/training.py --part speed --backbone minilm --data my/reviews --domain hotel
    python benchmarks/training.py --task question-answering --backbone minilm --data my/squad.jsonl
    python benchmarks/training.py --task retrieval --backbone minilm --data my/lines
    python benchmarks/training.py --task translation --data my/lines --language en fr

For retrieval the plain side is `SentenceTransformerTrainer` with its in-batch InfoNCE
(MultipleNegativesRankingLoss, scale 1 / temperature): pip install sentence-transformers; the data
are files of parallel lines, LANGUAGE.txt, of which the last 400 are the test, as in translation
(by a decoder; lower is better). For question answering they are SQuAD-like rows, all answerable,
cut into train and test by context.

Four ways train one adapter: ``adapters_hub.training.loop.train_adapters``; the Trainer with its
defaults, ``random`` sampling; (speed only) the Trainer with ``group_by_length``, which
retrieval's has not; and with the ``same`` batches as ours, to tell how much of a difference is the
choice of batches and how much the step itself. ``quality`` takes ours and the Trainer's
``--sampling``.

Columns of ``speed``, medians over the rounds:

- ``tokens/s`` real tokens, without padding, of the training rows a second.
- ``padded/s`` all tokens the model was given a second, padding included: the bare step.
- ``padding`` the share of those that was padding. ``rows/s`` training rows a second.
- ``x`` tokens/s as a ratio to the Trainer's with ``random`` sampling; the median of the rounds'.
- ``wall-clock`` the Trainer's seconds with ``random`` sampling over this way's, the same.

Columns of ``quality``, mean ± standard deviation over the seeds: the task's metrics on the test
rows; the last row is the difference, seed by seed. Its title has the median ratio of seconds.

Fairness: one process; the same backbone folder, float32, threads, rows in the same token ids, rows
a step, cut-off length, LoRA (rank, alpha, all linear layers, no dropout, PEFT's initialisation),
head initialisation, fused AdamW, linear schedule without warm-up, clipping, and number of steps.
The number of trained parameters is checked to be equal. The Trainer pads each batch only to its
longest row and keeps its tokenised rows in memory; the frozen backbone's own dropout, which is off
here, is off there too unless ``--backbone-dropout`` asks for it. Nothing is evaluated, logged or
saved while the clock runs, which is from the first batch to the end of training for all, so that
set-up does not count; only sentence-transformers tokenises inside it, as it does for everyone. In
question answering its class takes the softmax over all of a row, ours over the context. Every run
has a fresh adapter; a short warm-up of each way is not counted; rounds take the ways in turn, each
round starting with the next one. For ``quality`` both draw rows in proportion, without replacement
within an epoch, from the same training rows, and the same function scores both on the same test
rows.
"""

import argparse
import gc
import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from applications import APPLICATIONS
from report import report, spread
from ways import Run, Ways

from adapters_hub.metrics.tables import markdown


def speed(ways: Ways) -> tuple[str, str, dict[str, Any]]:
    """Title, table and data of the part ``speed``."""
    options = ways.options
    random_ = "Trainer, random"
    calls: dict[str, Callable[[int, int], Run]] = {
        "adapters_hub": ways.ours,
        **{f"Trainer, {name}": partial(ways.trainer, name) for name in ways.samplings},
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call(options.warm_up, 0)
    names = list(calls)
    for number in range(options.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            run = calls[name](options.steps, options.seeds[0] + number)
            runs[name].append({key: getattr(run, key) for key in ("seconds", "rows", "real")})
            runs[name][-1]["padded"] = run.padded
            if torch.get_num_threads() != options.threads:
                raise SystemExit(f"{name} changed the number of threads")
    rate = {name: [run["real"] / run["seconds"] for run in own] for name, own in runs.items()}
    shown = []
    for name, own in runs.items():
        ratio = statistics.median(a / b for a, b in zip(rate[name], rate[random_], strict=True))
        time = statistics.median(
            b["seconds"] / a["seconds"] for a, b in zip(own, runs[random_], strict=True)
        )
        middle = [
            statistics.median(run[key] / run["seconds"] for run in own)
            for key in ("padded", "rows")
        ]
        padding = 1 - sum(run["real"] for run in own) / sum(run["padded"] for run in own)
        shown.append(
            [
                name,
                f"{statistics.median(rate[name]):,.0f}",
                f"{middle[0]:,.0f}",
                f"{padding:.0%}",
                f"{middle[1]:,.1f}",
                f"{ratio:.2f}",
                f"{time:.2f}",
            ]
        )
    head = ["", "tokens/s", "padded/s", "padding", "rows/s", "x", "wall-clock"]
    title = f"Training speed, {options.rounds} rounds of {options.steps} steps"
    return title, markdown(head, shown), {"runs": runs}


def quality(ways: Ways) -> tuple[str, str, dict[str, Any]]:
    """Title, table and data of the part ``quality``."""
    options = ways.options
    plain = f"Trainer, {options.sampling}"
    calls = {"adapters_hub": ways.ours, plain: partial(ways.trainer, options.sampling)}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for seed in options.seeds:
        for name, call in calls.items():
            run = call(options.steps, seed)
            runs[name].append({**run.score(), "seconds": run.seconds})
    ours, theirs = runs.values()
    pairs = list(zip(ours, theirs, strict=True))
    change = [{key: a[key] - b[key] for key in a} for a, b in pairs]
    faster = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
    shown = []
    for name, own in {**runs, "difference": change}.items():
        sign = "+" if name == "difference" else ""
        shown.append([name])
        for key in ways.scores:
            values = [scores[key] for scores in own]
            shown[-1].append(f"{statistics.mean(values):{sign}.3f} ± {spread(values):.3f}")
    title = f"Quality after {options.steps} steps on {len(ways.test_rows)} test rows, seeds "
    title += f"{' '.join(map(str, options.seeds))}; the Trainer took {faster:.2f} x our seconds"
    return title, markdown(["", *ways.scores.values()], shown), {"runs": runs}


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    data = Path(__file__).resolve().parent.parent / "recipes" / "data"
    add("--part", choices=("speed", "quality"), default="speed")
    add("--task", choices=APPLICATIONS, default="classification")
    add("--backbone", default="starter", help="starter, minilm, a folder or a hub id")
    add("--data", default=str(data), help="what adapters_hub.data.reading reads: text, label, …")
    add("--language", nargs="+", help="only these languages")
    add("--domain", help="only this domain")
    add("--limit", type=int, help="at most so many training and so many test rows")
    add("--batch-size", type=int, default=32)
    add("--max-length", type=int, default=256)
    add("--stride", type=int, default=64, help="question answering: as in the recipe")
    add("--temperature", type=float, default=0.05, help="retrieval: as in the recipe")
    add("--rank", type=int, default=8)
    add("--alpha", type=float, default=16)
    add("--learning-rate", type=float, default=1e-3)
    add("--backbone-dropout", action="store_true", help="the Trainer's backbone keeps its dropout")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--rounds", type=int, default=3, help="speed: times each way is measured")
    add("--warm-up", type=int, default=3, help="speed: steps of each way before")
    add("--steps", type=int, help="20 for speed, 150 for quality")
    add("--sampling", choices=("random", "same"), default="random", help="quality: the Trainer's")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    options.steps = options.steps or {"speed": 20, "quality": 150}[options.part]
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)

    ways = APPLICATIONS[options.task](options)
    title, shown, found = (speed if options.part == "speed" else quality)(ways)
    names = {key: Path(getattr(options, key)).name for key in ("backbone", "data")}
    title += (
        f"; {names['backbone']}, {ways.trained:,} trained parameters, "
        f"{len(ways.examples):,} training rows, {options.batch_size} a step, "
        f"{options.threads} threads"
    )
    used = {key: value for key, value in vars(options).items() if key != "json"} | names
    report(title, shown, {"options": used, **found}, options.json)


if __name__ == "__main__":
    main()
