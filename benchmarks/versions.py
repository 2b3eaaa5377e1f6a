"""What a change costs: this checkout beside another one, in turn, in one run.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --before ../before
    python benchmarks/versions.py --before ../before --parts decode train --rounds 11

Each checkout has a process that stays, with the model loaded; they take turns, and which is first
changes from round to round. A line is the median of the rounds' ratios, seconds of this checkout
over seconds of the other one: below 1 is faster. Only names that both have are used, so the other
checkout may be of an older layout. ``train`` is the recipe's own steps, by the tokens a second that
it prints; ``import`` is a whole process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from workers import HERE, Worker

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHANGES = ("decode", "prefill", "embed", "swap", "train", "import")


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, type=Path, help="the other checkout")
    parser.add_argument("--parts", nargs="+", choices=CHANGES, default=CHANGES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    from report import report

    from adapters_hub.metrics.tables import markdown

    checkouts = {"before": options.before.resolve(), "after": HERE}
    seconds: dict[str, dict[str, list[float]]] = {}
    for part in options.parts:
        seconds[part] = measure(part, checkouts, options.rounds, options.threads)
    rows = []
    for part, took in seconds.items():
        ratios = [a / b for a, b in zip(took["after"], took["before"], strict=True)]
        medians = [f"{statistics.median(took[name]) * 1e3:,.1f}" for name in ("before", "after")]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([part, *medians, f"{statistics.median(ratios):.3f}", spread])
    shown = markdown(["part", "before, ms", "after, ms", "after / before", "all rounds"], rows)
    title = f"This checkout beside {options.before.name}, {options.rounds} rounds in turn"
    report(title, shown, {"seconds": seconds}, options.json)


def measure(
    part: str, checkouts: dict[str, Path], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Checkout → seconds of each round, after one round that does not count."""
    took: dict[str, list[float]] = {name: [] for name in checkouts}
    workers = {}
    if part != "import":
        workers = {n: Worker(part, threads, os.environ, p) for n, p in checkouts.items()}
    try:
        for number in range(rounds + 1):
            for name in [*checkouts][:: 1 if number % 2 else -1]:
                seconds = workers[name].round() if workers else import_time(checkouts[name])
                if number:
                    took[name].append(seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return took


def import_time(checkout: Path) -> float:
    """Seconds of a process that imports the package and lists its library."""
    code = "import adapters_hub as ah; ah.Library('adapters').list()"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
