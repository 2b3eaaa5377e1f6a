"""What a change costs: this checkout beside another one, in turn, in one run.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --before ../before
    python benchmarks/versions.py --before ../before --parts decode train --rounds 11

Each checkout has a process that stays, with the model loaded; they take turns, and which is first
changes from round to round. A line is the median of the rounds' ratios, seconds of this checkout
over seconds of the other one: below 1 is faster. Only names that both have are used, so the other
checkout may be of an older layout. ``train`` is the recipe's own steps, by the tokens a second that
it prints; ``import`` and ``list`` are whole processes.
"""

import argparse
import atexit
import contextlib
import io
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent.parent
BLENDS = ("de + hotel", "fr + bank", "da + 0.5*hotel", "uk", None, "es + clinic", "sv", "zh + bank")
TEXT = "The room was quiet, and the staff were friendly and helpful when we came back late. "


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, type=Path, help="the other checkout")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "import"], default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    from report import report

    from adapters_hub.metrics.tables import markdown

    checkouts = {"before": options.before.resolve(), "after": HERE}
    seconds: dict[str, dict[str, list[float]]] = {}
    for part in options.parts or [*PARTS, "import"]:
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
    workers = (
        {} if part == "import" else {n: Worker(p, part, threads) for n, p in checkouts.items()}
    )
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


def environment(checkout: Path) -> dict[str, str]:
    """The process's environment, with the package taken from a checkout."""
    return {**os.environ, "PYTHONPATH": str(checkout)}


def import_time(checkout: Path) -> float:
    """Seconds of a process that imports the package and lists its library."""
    code = "import adapters_hub as ah; ah.Library('adapters').list()"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment(checkout), check=True
    )
    return time.perf_counter() - start


class Worker:
    """A process with one checkout's package loaded, which measures a round when it is asked."""

    def __init__(self, checkout: Path, part: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", part, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment(checkout), stdin=pipe, stdout=pipe, text=True
        )

    def round(self) -> float:
        """Seconds of one round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


# ── what a worker does ───────────────────────────────────────────────────────────────────────────


def serve(part: str, threads: int) -> None:
    """Measure a round for each line of the standard input, a number a line on the output."""
    import torch

    torch.set_num_threads(threads)
    answers = os.dup(1)
    os.dup2(2, 1)  # what the package prints is no answer
    work = PARTS[part]()
    for _ in sys.stdin:
        os.write(answers, f"{work()}\n".encode())


def timed(work: Callable[[], object], times: int) -> Callable[[], float]:
    """A function that does some work and gives the seconds of one time."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times

    return run


def decode() -> Callable[[], float]:
    """16 rows of 8 blends, 32 tokens more each."""
    import adapters_hub as ah

    model = ah.load_backbone("starter", library="adapters", device="cpu")
    texts, blends = [TEXT[: 20 + 3 * n] for n in range(16)], list(BLENDS) * 2
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    return timed(lambda: model.generate(texts, blends, **options), 1)


def prefill() -> Callable[[], float]:
    """A forward of 16 rows of 128 tokens, of 8 blends."""
    import torch

    import adapters_hub as ah

    model = ah.load_backbone("starter", library="adapters", device="cpu")
    ids = torch.randint(10, 1000, (16, 128), generator=torch.Generator().manual_seed(0))
    blends = list(BLENDS) * 2

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), adapters=blends)

    return timed(forward, 3)


def swap() -> Callable[[], float]:
    """Another blend becomes the active one, 200 times."""
    import adapters_hub as ah

    model = ah.load_backbone("starter", library="adapters", device="cpu")

    def use() -> None:
        for number in range(200):
            model.use("de + hotel" if number % 2 else "fr + bank")

    return timed(use, 1)


def embed() -> Callable[[], float]:
    """Vectors of 64 texts of unlike length, of 8 blends."""
    import adapters_hub as ah

    model = ah.load_backbone("starter", library="adapters", device="cpu")
    texts = [(TEXT * 3)[: 20 + 3 * n] for n in range(64)]
    blends = list(BLENDS) * 8
    return timed(lambda: model.embed(texts, blends), 1)


def train() -> Callable[[], float]:
    """20 steps of ``recipes/lora_domain.py`` over language adapters; a step of 1,000 tokens."""
    folder = Path(tempfile.mkdtemp(prefix="versions-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree("adapters", folder / "library")
    flags = ["--steps", "20", "--eval-every", "1000", "--language", "en", "de", "fr"]
    flags += ["--over", "en", "de", "fr", "--library", str(folder / "library")]
    flags += ["--run-folder", str(folder / "runs"), "--no-resume", "--cpu"]

    def run() -> float:
        shown = io.StringIO()
        sys.argv = ["recipes/lora_domain.py", *flags]
        bar = contextlib.redirect_stderr(io.StringIO())
        with contextlib.redirect_stdout(shown), bar:
            runpy.run_path("recipes/lora_domain.py", run_name="__main__")
        found = re.search(r"([\d,]+) tokens a second", shown.getvalue())
        if found is None:
            raise SystemExit(f"the recipe printed no speed:\n{shown.getvalue()}")
        return 1000 / float(found[1].replace(",", ""))

    return run


PARTS: dict[str, Callable[[], Callable[[], float]]] = {
    "decode": decode,
    "prefill": prefill,
    "embed": embed,
    "swap": swap,
    "train": train,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
