"""What OpenMP's spinning costs beside other work, and what it brings without: threads by setting.

    python benchmarks/threads.py
    python benchmarks/threads.py --parts chain --rounds 15 --json threads.json

At a barrier a thread of torch's OpenMP first spins, then sleeps. GNU's (Linux) spins 300,000 times
unless told otherwise, milliseconds in which a thread that waits for a core does not get it. Each
setting is a process that stays, with its variables set before torch is loaded: ``nothing set``,
``OMP_WAIT_POLICY=PASSIVE`` (no spinning), some counts in ``GOMP_SPINCOUNT`` (GNU's alone), and one
thread. Parts are those of ``workers.py``: ``chain`` is 64 small layers, forward and
backward; ``step`` a training step of the starter.

Columns, of the rounds' times: ``alone``, and ``beside`` busy processes, which this program starts
and ends (``--busy 0``: just alone); the medians, the best, and the medians of the rounds' ratios to
one thread in the same conditions. Settings take turns, and the first one changes from round to
round. On a machine with other work the best of many rounds is what is nearest to alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from report import report
from workers import PARTS, Worker

from adapters_hub.metrics.tables import markdown

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ONE = "one thread"
PASSIVE = "OMP_WAIT_POLICY=PASSIVE"
SPINS = ("GOMP_SPINCOUNT=100", "GOMP_SPINCOUNT=1000", "GOMP_SPINCOUNT=10000")
NOTHING = "nothing set"
Times = dict[str, dict[str, list[float]]]
"""Condition → setting → seconds of each round."""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other work on the machine while the block runs."""
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(part: str, settings: list[str], options: argparse.Namespace) -> Times:
    """Times of a part, after one round that does not count."""
    conditions = {"alone": 0, "beside": options.busy} if options.busy else {"alone": 0}
    times: Times = {condition: {name: [] for name in settings} for condition in conditions}
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    with ExitStack() as stack:
        workers = {}
        for name in settings:
            variable, _, value = name.partition("=")
            environment = plain | ({variable: value} if value else {})
            threads = 1 if name == ONE else options.threads
            workers[name] = stack.enter_context(closing(Worker(part, threads, environment)))
        for number in range(-1, options.rounds):
            first = number % len(settings)
            for condition, processes in conditions.items():
                with busy(processes):
                    for name in settings[first:] + settings[:first]:
                        seconds = workers[name].round()
                        if number >= 0:
                            times[condition][name].append(seconds)
    return times


def rows(part: str, times: Times) -> list[list[str]]:
    """A line of the table for each setting."""
    shown = []
    for name in times["alone"]:
        line = [part, name]
        for of_condition in times.values():
            seconds, one = of_condition[name], of_condition[ONE]
            ratio = statistics.median(a / b for a, b in zip(seconds, one, strict=True))
            line += [f"{min(seconds) * 1e3:,.1f}", f"{statistics.median(seconds) * 1e3:,.1f}"]
            line.append(f"{ratio:.2f}")
        shown.append(line)
    return shown


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=["chain", "step"])
    add("--settings", nargs="+", default=[NOTHING, PASSIVE, *SPINS], help="beside one thread")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--busy", type=int, default=1, help="processes beside")
    add("--rounds", type=int, default=7)
    add("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    settings = [*options.settings, ONE]
    times = {part: measure(part, settings, options) for part in options.parts}
    head = ["", ""]
    for condition in times[options.parts[0]]:
        head += [f"{condition}: best, ms", "median, ms", "/ one thread"]
    shown = markdown(head, [line for part in times for line in rows(part, times[part])], 2)
    title = f"{options.threads} threads, alone and beside {options.busy} busy process(es)"
    report(f"{title}, {options.rounds} rounds", shown, {"seconds": times}, options.json)


if __name__ == "__main__":
    main()
