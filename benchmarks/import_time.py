"""Time of ``import adapters_hub`` beside ``import peft`` and ``import transformers``.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --rounds 15 --json import_time.json

Columns, medians over the rounds:

- ``process - bare (ms)``: a fresh interpreter that runs the statement, less a fresh interpreter
  that runs ``pass``, both measured from outside, start to exit.
- ``statement (ms)``: the statement alone, by the clock inside that same process.
- ``/ import adapters_hub``: the first column's ratio to the first row's.

The package imports torch only when it is first needed, so the first row is what a program pays
that reads adapter files. The row ``ah.load_backbone`` is what one pays that loads a model: it
imports torch and the parts of transformers it needs, and is the one to compare with PEFT's.

Fairness: every measurement is its own process, with the same interpreter and environment. One
round runs each statement once, the bare one included, and each round starts with another one, so
that a machine that slows down slows all. A warm-up round, not counted, fills the disk cache and
writes byte code.
"""

import argparse
import statistics
import subprocess
import sys
import time

from report import report

from adapters_hub.metrics.tables import markdown

BARE = "pass"
STATEMENTS = {
    "import adapters_hub": "import adapters_hub",
    "adapters_hub.Library": "import adapters_hub as ah; ah.Library",
    "adapters_hub.load_backbone": "import adapters_hub as ah; ah.load_backbone",
    "import peft": "import peft",
    "import transformers": "import transformers",
    "import torch": "import torch",
}
_TIMED = """
import sys, time
start = time.perf_counter()
{}
sys.stdout.write(str(time.perf_counter() - start))
"""


def measure(statement: str) -> tuple[float, float]:
    """Seconds of a fresh process that runs a statement, and of the statement inside it."""
    command = [sys.executable, "-c", _TIMED.format(statement)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()

    names = ["bare", *STATEMENTS]
    outside: dict[str, list[float]] = {name: [] for name in names}
    inside: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, options.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            whole, own = measure(STATEMENTS.get(name, BARE))
            if number >= 0:
                outside[name].append(whole)
                inside[name].append(own)

    net = {
        name: statistics.median(a - b for a, b in zip(outside[name], outside["bare"], strict=True))
        for name in STATEMENTS
    }
    base = net["import adapters_hub"]
    rows = [
        [
            f"`{name}`",
            f"{net[name] * 1000:,.1f}",
            f"{statistics.median(inside[name]) * 1000:,.1f}",
            f"{net[name] / base:,.1f}" if base > 0 else "-",
        ]
        for name in STATEMENTS
    ]
    bare = statistics.median(outside["bare"])
    title = (
        f"Import time, median of {options.rounds} rounds (bare interpreter: {bare * 1000:.1f} ms)"
    )
    head = ["", "process - bare (ms)", "statement (ms)", "/ import adapters_hub"]
    data = {"rounds": options.rounds, "process_s": outside, "statement_s": inside}
    report(title, markdown(head, rows), data, options.json)


if __name__ == "__main__":
    main()
