"""What augmentation costs: CPU milliseconds to make a batch, and of a whole step, for each method.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --backbone ../e5-small --json augmentation.json

Classification of the sample texts' domains in one process, in one language, on the CPU. ``batch``:
rows are drawn, changed, encoded again where they are to be, and collated; for none they are
collated alone. ``step``: a step of `train_adapters` with a LoRA adapter on all layers. The ways are
measured in turn, in another order each round; shown are medians of the process's CPU time, which
other work on the machine does not add to, and ``x`` is the median over that of none. The lexicon is
made up, one translation for each word of the texts; the translations are the sample's own.
"""

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import Accelerator
from peft import LoraConfig
from report import report

import adapters_hub as ah
from adapters_hub.data.reading import read_data
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks.classification import Classification
from adapters_hub.text.words import split_words
from adapters_hub.training.augmentation import Augmenter, augmenter_of
from adapters_hub.training.loop import train_adapters

ROOT = Path(__file__).resolve().parents[1]
WAYS: dict[str, dict[str, float]] = {
    "none": {},
    "subword": {"subword": 0.1},
    "span": {"span": 0.15},
    "codeswitch": {"codeswitch": 0.3},
    "mixup": {"mixup": 0.2},
    "translate": {"translate": 0.5},
    "subword codeswitch mixup": {"subword": 0.1, "codeswitch": 0.3, "mixup": 0.2},
}


class Costs:
    """One backbone, one task, and an augmenter for each way."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.model = ah.load_backbone(options.backbone, library=folder / "library", device="cpu")
        rows = [r for r in read_data(ROOT / "recipes" / "data")["train"] if r.language == "en"]
        self.rows = [
            type(row)(row.text, row.domain, row.language, key=row.key, where=row.where)
            for row in rows
        ]
        self.task = Classification(tuple(sorted({str(row.label) for row in self.rows})))
        self.examples = self.task.encode(self.rows, self.model.backbone)
        words = sorted({word for row in self.rows for word in split_words(row.text)})
        dictionary = folder / "words.tsv"
        lines = [f"{word}\t{word[::-1]}x\tyo" for word in words if word.isalpha()]
        dictionary.write_text("\n".join(["word\ttranslation\tlanguage", *lines]), encoding="utf-8")
        self.settings = ah.TrainingSettings(task="classification", cpu=True, warmup=0.0)
        self.augmenters: dict[str, Augmenter | None] = {}
        for way, augment in WAYS.items():
            data = {"translate": str(ROOT / "recipes" / "data")}.get(way, str(dictionary))
            reads = {"translate", "codeswitch"} & augment.keys()
            chosen = self.settings.changed(augment=augment, augment_data=data if reads else None)
            backbone = self.model.backbone
            self.augmenters[way] = augmenter_of(chosen, self.task, backbone, self.rows)
        self.accelerator = Accelerator(cpu=True)

    def batches(self, count: int, seed: int) -> list[list[int]]:
        """Batches of any rows."""
        draw, size = random.Random(seed), self.options.batch_size
        return [draw.choices(range(len(self.rows)), k=size) for _ in range(count)]

    def batch(self, way: str, seed: int) -> float:
        """CPU milliseconds to make a batch."""
        augmenter, backbone = self.augmenters[way], self.model.backbone
        owners = [0] * len(self.rows)
        batches = self.batches(self.options.batches, seed)
        started = time.process_time()
        for step, batch in enumerate(batches):
            places = range(len(batch))
            draw = augmenter and augmenter.draw(step, batch, self.examples, owners, seed)
            chosen = draw.taken(places) if draw else [self.examples[number] for number in batch]
            inputs = self.task.collate(chosen, backbone)
            if draw:
                draw.mixed(inputs, places)
        return (time.process_time() - started) / len(batches) * 1e3

    def step(self, way: str, seed: int) -> float:
        """CPU milliseconds of a step."""
        info = AdapterInfo(name="a", labels=self.task.labels, task=self.task.name)
        lora = LoraConfig(r=8, target_modules="all-linear")
        adapter = self.task.new_adapter(info, self.model.backbone, lora, 0)
        batches = self.batches(self.options.steps, seed)
        started = time.process_time()
        train_adapters(
            self.model, self.task, [adapter], self.examples, [0] * len(self.rows), batches,
            self.settings, self.accelerator, augmenter=self.augmenters[way],
        )  # fmt: skip
        spent = time.process_time() - started
        self.model.drop("a")
        return spent / len(batches) * 1e3


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", default="starter", help="starter, or a folder")
    add("--batch-size", type=int, default=32)
    add("--batches", type=int, default=10, help="made in each round")
    add("--steps", type=int, default=4, help="trained in each round; 0: batches alone")
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=1)
    add("--json", help="write the numbers here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured: dict[str, dict[str, list[float]]] = {way: {"batch": [], "step": []} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        costs = Costs(options, Path(folder))
        parts = {"batch": costs.batch, "step": costs.step} if options.steps else {
            "batch": costs.batch
        }  # fmt: skip
        for way in WAYS:
            costs.batch(way, 0)
        for number in range(options.rounds):
            for way in random.Random(number).sample([*WAYS], k=len(WAYS)):
                for part, measure in parts.items():
                    gc.collect()
                    measured[way][part].append(measure(way, 1 + number))
    shown, data = [], {}
    for way, of_part in measured.items():
        data[way] = {part: statistics.median(of_part[part]) for part in parts}
        name = " ".join(f"{method}={amount:g}" for method, amount in WAYS[way].items()) or way
        cells = [name]
        for part, value in data[way].items():
            cells += [f"{value:.1f}", f"{value / data['none'][part]:.2f}"]
        shown.append(cells)
    header = ["", *(name for part in parts for name in (f"{part}, ms", "x"))]
    title = f"Augmentation: {options.backbone}, {options.batch_size} rows a batch"
    found = {"options": vars(options), "milliseconds": data, "rounds": measured}
    report(title, markdown(header, shown), found, options.json)


if __name__ == "__main__":
    main()
