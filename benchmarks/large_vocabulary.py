"""What a vocabulary of 150,000 and more costs in training, here and by PEFT with `Trainer`.

    python benchmarks/large_vocabulary.py --backbone qwen3
    python benchmarks/large_vocabulary.py --backbone my/gemma-3-270m
    python benchmarks/large_vocabulary.py --backbone gemma3-270m --part time --padding

``qwen3`` is a Qwen3 of width 256 with 151,936 tokens and random weights, made in a folder that does
not stay. Any other backbone is a folder, or one in ``$ADAPTERS_HUB_TEST_BACKBONES``. A LoRA of all
linear layers is trained for language modelling: the same rows of random tokens in the same batches,
float32. With ``--padding`` every other row has a third of the length, so that a third of the batch
has no target.

- ``memory``: a process each, ``VmHWM`` of Linux in MiB. ``process``: its peak, with training, and a
  look at ``--test`` rows; theirs in batches as in training, ours in those of the recipes (64).
  ``activations``: the peak of training less what was resident once the model was loaded.
- ``time``: seconds a step in one process, the two in turn, after a step of each that is not
  counted; of the clock, and of the CPU over all threads, which other work changes less.

``x`` is ours over theirs, of ``time`` the median of the rounds'.
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
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from applications import plain_loop
from report import report
from ways import Ways, backbone_folder

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.language_modeling import LanguageModeling

QWEN3 = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 151936,
}  # fmt: skip
SIDES = ("adapters_hub", "PEFT + Trainer")


class Modelling(Ways):
    """Language modelling on rows of random tokens, a model loaded only where its side is asked."""

    name = "language-modeling"
    scores: ClassVar = {"nats_per_token": "nats a token"}

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trained = options, 0
        self.resident = self.started = 0.0
        self.folder = str(backbone_folder(options.backbone))
        self.task = LanguageModeling(max_length=options.max_length)
        self.settings = ah.TrainingSettings(
            task=self.name, batch_size=options.batch_size, learning_rate=options.learning_rate,
            schedule="linear", warmup=0.0, clip=1.0, max_length=options.max_length, cpu=True,
        )  # fmt: skip
        self.examples = self.rows(options.batch_size * (options.steps + 1), seed=0)
        self.test = self.rows(options.test, seed=1)

    def rows(self, count: int, seed: int) -> list[Example]:
        """Rows of random tokens; with ``--padding`` every other one is a third as long."""
        draw, length = random.Random(seed), self.options.max_length
        short = length // 3 if self.options.padding else length
        sizes = [short if number % 2 else length for number in range(count)]
        return [
            Example([draw.randrange(5, 5000) for _ in range(size)], Row("-"), size)
            for size in sizes
        ]

    @cached_property
    def model(self) -> Any:
        """Ours around the backbone."""
        model = ah.load_backbone(self.folder, device="cpu", bits=32)
        self.loaded(model.backbone.model)
        return model

    def plain(self) -> Any:
        """PEFT around the backbone."""
        model = self.peft_model(transformers.AutoModelForCausalLM)
        self.loaded(model)
        return model

    def loaded(self, model: torch.nn.Module) -> None:
        """Note what is resident now that every weight was read, and measure peaks from here on."""
        for parameter in model.parameters():
            parameter.sum()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self.resident = _status("VmRSS")

    def batches(self, steps: int, seed: int) -> list[list[int]]:
        """Rows in their order; both sides ask for them right before they train."""
        size, self.started = self.options.batch_size, time.process_time()
        return [list(range(step * size, (step + 1) * size)) for step in range(steps)]

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        """The trainer on the same rows."""
        rows = [{"input_ids": e.input_ids, "labels": e.input_ids} for e in self.examples]
        collator = transformers.DataCollatorForSeq2Seq(self.tokenizer())
        return plain_loop(model, arguments, rows, collator)

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        """The loss that the class itself computes, a batch as in training at a time."""
        collator = transformers.DataCollatorForSeq2Seq(self.tokenizer())
        losses = []
        for start in range(0, len(self.test), self.options.batch_size):
            rows = [e.input_ids for e in self.test[start : start + self.options.batch_size]]
            batch = collator([{"input_ids": ids, "labels": ids} for ids in rows])
            losses.append(float(model(**batch).loss))
        return {"nats_per_token": statistics.mean(losses)}

    def run(self, side: str, steps: int, seed: int) -> Any:
        """One training on a side."""
        return self.ours(steps, seed) if side == SIDES[0] else self.trainer("same", steps, seed)


def _status(field: str) -> float:
    """A field of this process's status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system's /proc/self/status has no {field}")


def peaks(options: argparse.Namespace) -> dict[str, float]:
    """What one side takes in this process."""
    ways = Modelling(options)
    run = ways.run(options.side, options.steps, 0)
    training = _status("VmHWM")
    run.score()
    return {"activations": training - ways.resident, "process": _status("VmHWM")}


def memory(options: argparse.Namespace) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and the data."""
    measured = {}
    for side in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        command += ["--backbone", options.backbone]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured[side] = json.loads(printed.splitlines()[-1])
    ours, theirs = measured.values()
    shown = [
        [
            f"{key}, MiB",
            f"{ours[key]:,.0f}",
            f"{theirs[key]:,.0f}",
            f"{ours[key] / theirs[key]:.2f}",
        ]
        for key in ours
    ]
    return shown, {"memory": measured}


def seconds(options: argparse.Namespace) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and the data."""
    ways = Modelling(options)
    for side in SIDES:
        ways.run(side, 1, 0)
    clocks = ("seconds a step", "CPU seconds a step")
    runs: dict[str, dict[str, list[float]]] = {c: {side: [] for side in SIDES} for c in clocks}
    for number in range(options.rounds):
        for side in SIDES if number % 2 else SIDES[::-1]:
            gc.collect()
            run = ways.run(side, options.steps, number)
            spent = run.seconds, time.process_time() - ways.started
            for clock, value in zip(clocks, spent, strict=True):
                runs[clock][side].append(value / options.steps)
    shown = []
    for clock, of_side in runs.items():
        ratio = statistics.median(a / b for a, b in zip(*of_side.values(), strict=True))
        middle = [f"{statistics.median(values):.2f}" for values in of_side.values()]
        shown.append([clock, *middle, f"{ratio:.2f}"])
    return shown, {"seconds": runs}


PARTS = {"memory": memory, "time": seconds}


def make_qwen3(folder: Path) -> None:
    """A random model, and the starter's tokenizer, whose ids are below its vocabulary's size."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**QWEN3, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(backbone_folder("starter")).save_pretrained(folder)


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", default="qwen3", help="qwen3, or a folder")
    add("--part", choices=PARTS, help="only this one")
    add("--padding", action="store_true", help="a third of each batch is padding")
    add("--batch-size", type=int, default=16)
    add("--max-length", type=int, default=64)
    add("--test", type=int, default=64, help="rows of the look at test")
    add("--rank", type=int, default=16)
    add("--alpha", type=float, default=32)
    add("--learning-rate", type=float, default=1e-3)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--steps", type=int, default=3)
    add("--rounds", type=int, default=5)
    add("--json", metavar="PATH", help="write the measurements here")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.backbone_dropout = False
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.side:
        print(json.dumps(peaks(options)))
        return
    with tempfile.TemporaryDirectory() as made:
        name = Path(options.backbone).name
        if options.backbone == "qwen3":
            options.backbone = made
            make_qwen3(Path(made))
        elif known := os.environ.get("ADAPTERS_HUB_TEST_BACKBONES"):
            options.backbone = str(Path(known) / options.backbone)
        parts = [PARTS[options.part]] if options.part else [*PARTS.values()]
        shown: list[list[str]] = []
        data: dict[str, Any] = {"backbone": name, "padding": options.padding}
        for part in parts:
            rows, measured = part(options)
            shown, data = shown + rows, data | measured
    title = f"{name}, {options.batch_size} rows of {options.max_length} tokens a step"
    title += ", a third of them padding" if options.padding else ""
    title += f", {options.steps} steps, {options.threads} threads"
    report(title, markdown(["", *SIDES, "x"], shown), data, options.json)


if __name__ == "__main__":
    main()
