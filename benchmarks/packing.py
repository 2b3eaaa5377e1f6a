"""Packed texts: the memory that a corpus takes, and how fast its rows are trained on.

    python benchmarks/packing.py --part speed
    python benchmarks/packing.py --part memory --megabytes 10 2000

The texts are the sample texts that ship, drawn and joined at random.

- ``memory``: `recipes/lora_language.py --packing` on JSON Lines of these sizes, a process each:
  ``VmHWM`` of Linux in MiB, of a first run, which tokenises, and of a second, which takes the rows
  from the cache. Pages of files that a process has mapped count, though the system may take them.
- ``speed``: tokens of texts (no padding) a second in one process, the sides in turn, after a step
  of each that is not counted: packed, the same texts unpacked in batches of about as many tokens,
  and PEFT with `Trainer` on the packed rows. ``x`` is packed over the side, the rounds' median.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from applications import plain_loop
from report import report
from ways import Ways, backbone_folder

import adapters_hub as ah
from adapters_hub.data.packing import Packer
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks.language_modeling import LanguageModeling, Packed

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("packed", "unpacked", "PEFT + Trainer, packed")
PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
fields = open("/proc/self/status").read().split("\\n")
print("\\n" + next(line for line in fields if line.startswith("VmHWM")))
"""


def sample_texts(seed: int = 0) -> Any:
    """Texts without end: one to six of the sample texts, and a number, so that no two are equal."""
    draw = random.Random(seed)
    rows = read_data(ROOT / "recipes" / "data")["train"]
    texts = [row.text for row in rows]
    number = 0
    while True:
        number += 1
        yield " ".join([*draw.choices(texts, k=draw.randint(1, 6)), str(number)])


def write_corpus(folder: Path, megabytes: float) -> None:
    """JSON Lines of this size, all said to be Danish, and a few for dev and test."""
    folder.mkdir()
    texts = sample_texts()
    for split, size in (("train", megabytes * 1e6), ("dev", 5000), ("test", 5000)):
        with open(folder / f"da.{split}.jsonl", "w", encoding="utf-8") as file:
            while size > 0:
                line = json.dumps({"text": next(texts)}, ensure_ascii=False) + "\n"
                size -= len(line.encode())
                file.write(line)


def memory(options: argparse.Namespace) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    """Header and rows of the table, and the data."""
    shown, measured = [], []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "texts"
            write_corpus(path, megabytes)
            command = [
                sys.executable, "-c", PEAK, str(ROOT / "recipes" / "lora_language.py"), "--packing",
                "--language", "da", "--data", str(path), "--backbone", options.backbone,
                "--library", f"{folder}/library", "--run-folder", f"{folder}/runs", "--replace",
                "--steps", str(options.steps), "--eval-every", "1000", "--cpu",
                "--batch-size", str(options.batch_size), "--max-length", str(options.max_length),
                "--threads", str(options.threads),
            ]  # fmt: skip
            environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
            for run in ("first", "second"):
                started = time.perf_counter()
                printed = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=environment
                ).stdout
                seconds = time.perf_counter() - started
                peak = int(printed.splitlines()[-1].split()[1]) / 1024
                packed = next(line for line in printed.splitlines() if line.startswith("packed:"))
                measured.append(
                    {"megabytes": megabytes, "run": run, "mib": peak, "seconds": seconds,
                     "rows": packed}
                )  # fmt: skip
                shown.append([f"{megabytes:,.0f} MB, {run} run", f"{peak:,.0f}", f"{seconds:,.0f}"])
    return ["", "peak, MiB", "seconds"], shown, {"memory": measured}


class Packing(Ways):
    """Language modelling on texts that are packed, or not, with about as many tokens a step."""

    name = "language-modeling"
    scores: ClassVar = {"bits": "bits"}

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trained = options, 0
        self.folder = str(backbone_folder(options.backbone))
        self.model = ah.load_backbone(self.folder, device="cpu")
        self.task = LanguageModeling(max_length=options.max_length)
        backbone = self.model.backbone
        texts = sample_texts(1)
        rows = [Row(next(texts), None, "da") for _ in range(options.texts)]
        unpacked = self.task.encode(rows, backbone)
        packer = Packer(self.task.row_limit(backbone))
        full = [row for e in unpacked for row in packer.add(e.input_ids)] + [*packer.rest()]
        packed = [
            Packed([t for part in row for t in part], rows[0], documents=tuple(map(len, row)))
            for row in full
        ]
        tokens = sum(len(example.input_ids) for example in unpacked)
        self.kinds = {SIDES[0]: packed, SIDES[1]: unpacked, SIDES[2]: packed}
        mean = tokens / len(unpacked)
        alike = round(options.batch_size * tokens / len(packed) / mean)
        self.sizes = {SIDES[0]: options.batch_size, SIDES[1]: alike, SIDES[2]: options.batch_size}
        self.full = tokens / (len(packed) * self.task.row_limit(backbone))
        self.settings = ah.TrainingSettings(
            task=self.name, learning_rate=options.learning_rate, schedule="linear", warmup=0.0,
            clip=1.0, max_length=options.max_length, cpu=True,
        )  # fmt: skip

    def plain(self) -> Any:
        """PEFT around the backbone."""
        return self.peft_model(transformers.AutoModelForCausalLM)

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        """The trainer on the same rows, whose texts see each other."""
        rows = [{"input_ids": e.input_ids, "labels": e.input_ids} for e in self.examples]
        return plain_loop(
            model, arguments, rows, transformers.DataCollatorForSeq2Seq(self.tokenizer())
        )

    def score_plain(self, model: Any) -> dict[str, float]:
        """Nothing is scored here."""
        raise NotImplementedError

    def run(self, side: str, steps: int, seed: int) -> float:
        """Tokens of texts a second on a side."""
        self.examples, self.options.batch_size = self.kinds[side], self.sizes[side]
        self.settings = self.settings.changed(batch_size=self.sizes[side])
        run = self.trainer("same", steps, seed) if side == SIDES[2] else self.ours(steps, seed)
        return run.real / run.seconds


def speed(options: argparse.Namespace) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    """Header and rows of the table, and the data."""
    ways = Packing(options)
    for side in SIDES:
        ways.run(side, 1, 0)
    runs: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES if number % 2 else SIDES[::-1]:
            gc.collect()
            runs[side].append(ways.run(side, options.steps, number))
    shown = []
    for side, rates in runs.items():
        ratio = statistics.median(a / b for a, b in zip(runs[SIDES[0]], rates, strict=True))
        rows = f"{ways.sizes[side]} rows a step"
        shown.append([f"{side}, {rows}", f"{statistics.median(rates):,.0f}", f"{ratio:.2f}"])
    return ["", "tokens a second", "x"], shown, {"speed": runs, "full": ways.full}


PARTS = {"memory": memory, "speed": speed}


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", default="starter", help="starter, or a folder")
    add("--part", choices=PARTS, help="only this one")
    add("--megabytes", type=float, nargs="+", default=[10, 2000], help="sizes of the corpora")
    add("--batch-size", type=int, default=8)
    add("--max-length", type=int, default=256)
    add("--texts", type=int, default=4000)
    add("--rank", type=int, default=16)
    add("--alpha", type=float, default=32)
    add("--learning-rate", type=float, default=1e-3)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--steps", type=int, default=10)
    add("--rounds", type=int, default=5)
    add("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    options.backbone_dropout = False
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in [options.part] if options.part else PARTS:
        header, rows, data = PARTS[name](options)
        title = f"{name}, {Path(options.backbone).name}, rows of {options.max_length} tokens"
        title += f", {options.threads} threads"
        report(title, markdown(header, rows), data, options.json)


if __name__ == "__main__":
    main()
