"""Processes that stay and measure a round when they are asked, and the work they measure.

Shared by the benchmarks whose sides cannot live in one process: ``versions.py`` has a checkout a
process, ``threads.py`` an environment. ``train`` is the recipe's own steps, by the tokens a second
that it prints.
"""

import atexit
import contextlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BLENDS = ("de + hotel", "fr + bank", "da + 0.5*hotel", "uk", None, "es + clinic", "sv", "zh + bank")
TEXT = "The room was quiet, and the staff were friendly and helpful when we came back late. "


class Worker:
    """A process with one part's work ready, which measures a round when it is asked."""

    def __init__(
        self, part: str, threads: int, environment: Mapping[str, str], checkout: Path = HERE
    ) -> None:
        command = [sys.executable, __file__, part, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            cwd=checkout,
            env={**environment, "PYTHONPATH": str(checkout)},
            stdin=pipe,
            stdout=pipe,
            text=True,
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
        speed = re.search(r"([\d,]+) tokens a second", shown.getvalue())
        if speed is None:
            raise SystemExit(f"the recipe printed no speed:\n{shown.getvalue()}")
        return 1000 / float(speed[1].replace(",", ""))

    return run


def step() -> Callable[[], float]:
    """A step of the loop: a new adapter on 8 rows of the sample text, over no other."""
    from accelerate import Accelerator
    from peft import LoraConfig

    import adapters_hub as ah
    from adapters_hub.data.reading import read_data
    from adapters_hub.tasks import make_task
    from adapters_hub.training.loop import train_adapters

    model = ah.load_backbone("starter", library="adapters", device="cpu")
    task = make_task("language-modeling", max_length=64)
    rows = read_data("recipes/data")["train"][:8]
    examples = task.encode(rows, model.backbone)
    settings = ah.TrainingSettings(batch_size=len(examples), resume=False)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter = task.new_adapter(ah.AdapterInfo(name="new"), model.backbone, lora)
    owners, batches = [0] * len(examples), [range(len(examples))]
    accelerator = Accelerator(cpu=True)

    def run() -> float:
        given = model, task, [adapter], examples, owners, batches, settings, accelerator
        with contextlib.redirect_stderr(io.StringIO()):
            _, progress = train_adapters(*given)
        return progress.seconds / progress.steps

    return run


def chain() -> Callable[[], float]:
    """Forward and backward of 64 small layers of torch alone, on 128 rows of width 256."""
    import torch
    from torch import nn

    layers = [layer for _ in range(64) for layer in (nn.Linear(256, 256), nn.GELU())]
    model, rows = nn.Sequential(*layers), torch.randn(128, 256)
    return timed(lambda: model(rows).sum().backward(), 1)


PARTS: dict[str, Callable[[], Callable[[], float]]] = {
    "decode": decode,
    "prefill": prefill,
    "embed": embed,
    "swap": swap,
    "train": train,
    "step": step,
    "chain": chain,
}


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
