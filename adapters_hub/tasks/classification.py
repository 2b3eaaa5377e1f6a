"""Sequence classification: one label a text, by the architecture's own classification class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.errors import DataError, SettingsError
from adapters_hub.tasks.base import Example, Row, Task, pad
from adapters_hub.tasks.heads import label_names, row_logits, task_shell

if TYPE_CHECKING:
    from adapters_hub.backbone import Backbone, TaskShell
    from adapters_hub.model import AdaptedModel, Adapters, Heads
    from adapters_hub.settings import TrainingSettings


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy over ``label_names``; accuracy and macro-F1 (of the labels that occur)."""

    label_names: tuple[str, ...]
    max_length: int = 256
    smoothing: float = 0.0
    metric: str = "macro_f1"
    higher_is_better: bool = True
    name: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        if len(set(self.label_names)) < 2:
            raise SettingsError(f"classification needs two labels or more, not {self.label_names}")

    @classmethod
    def from_settings(
        cls, settings: "TrainingSettings", splits: Mapping[str, Sequence[Row]]
    ) -> "Classification":
        field = settings.columns.get("label", "label")
        known = sorted({row.label for row in splits["train"] if row.label is not None})
        for split, rows in splits.items():
            for row in rows:
                if row.label is None:
                    raise DataError(
                        f"{row.where}: field {field!r} is missing, and classification needs it"
                    )
                if row.label not in known:
                    raise DataError(
                        f"{row.where}: field {field!r}: no train row has the label {row.label!r} "
                        f"of this {split} row (they have {', '.join(known)}); add some, or take it "
                        "out"
                    )
        return cls(tuple(known), max_length=settings.max_length, smoothing=settings.label_smoothing)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label_names

    def shell(self, backbone: "Backbone") -> "TaskShell":
        """The classification class around the backbone."""
        return task_shell(backbone, self.name, len(self.label_names))

    def prefix(self, backbone: "Backbone") -> str:
        return self.shell(backbone).prefix

    def sites(self, backbone: "Backbone") -> list[str]:
        return self.shell(backbone).sites

    def peft_task_type(self, backbone: "Backbone") -> str:
        return "SEQ_CLS"

    def metric_name(self, backbone: "Backbone") -> str:
        return "macro-F1"

    def new_head(self, backbone: "Backbone", seed: int) -> dict[str, Tensor]:
        return self.shell(backbone).initial_head(seed)

    def usage(self, row: Row, backbone: "Backbone") -> str:
        return f"model.classify([{row.text!r}])"

    def encode(self, rows: Sequence[Row], backbone: "Backbone") -> list[Example]:
        known = {label: number for number, label in enumerate(self.label_names)}
        for row in rows:
            if row.label is not None and row.label not in known:
                raise DataError(
                    f"{row.where}: field 'label': {row.label!r} is not one of the labels "
                    f"{list(self.label_names)}"
                )
        encoded = encode_texts([row.text for row in rows], backbone, self.max_length)
        return [
            Example(ids, row, known[row.label] if row.label is not None else None)
            for ids, row in zip(encoded, rows, strict=True)
        ]

    def check(self, examples: Sequence[Example]) -> None:
        for example in examples:
            if example.target is None:
                raise DataError(f"{example.row.where}: field 'label' is missing")

    def collate(
        self, examples: Sequence[Example], backbone: "Backbone", seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        if all(example.target is not None for example in examples):
            targets = torch.tensor([example.target for example in examples])
            batch["labels"] = targets.to(backbone.device)
        return batch

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["input_ids"]), device=batch["input_ids"].device)

    def loss(self, model: "AdaptedModel", batch: dict[str, Tensor], heads: "Heads") -> Tensor:
        logits = self.logits(model, batch, heads)
        return functional.cross_entropy(
            logits.float(), batch["labels"], reduction="none", label_smoothing=self.smoothing
        )

    def records(
        self,
        model: "AdaptedModel",
        batch: dict[str, Tensor],
        heads: "Heads",
        examples: Sequence[Example],
    ) -> list[dict[str, Any]]:
        best = self.logits(model, batch, heads).argmax(-1).tolist()
        return [
            {"label": example.row.label, "predicted": self.label_names[number]}
            for example, number in zip(examples, best, strict=True)
        ]

    def metrics(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        if not records:
            raise DataError("no rows to measure")
        pairs = [(record["label"], record["predicted"]) for record in records]
        scores = []
        for label in sorted({gold for gold, _ in pairs}):
            hit = sum(gold == label == predicted for gold, predicted in pairs)
            involved = sum((gold == label) + (predicted == label) for gold, predicted in pairs)
            scores.append(2 * hit / involved)
        accuracy = sum(gold == predicted for gold, predicted in pairs) / len(pairs)
        return {"accuracy": accuracy, "macro_f1": sum(scores) / len(scores)}

    def tallies(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        """Of each label: hits, rows that have it, rows that were given it."""
        gold, predicted = (
            np.array([[record[field] == label for label in self.label_names] for record in records])
            for field in ("label", "predicted")
        )
        return np.concatenate([gold & predicted, gold, predicted], axis=1).astype(float)

    def score(self, sums: np.ndarray) -> np.ndarray:
        hits, gold, predicted = np.split(sums, 3, axis=-1)
        occurs = gold > 0
        scores = np.where(occurs, 2 * hits / np.maximum(gold + predicted, 1), 0.0)
        return scores.sum(-1) / np.maximum(occurs.sum(-1), 1)

    def logits(self, model: "AdaptedModel", batch: dict[str, Tensor], heads: "Heads") -> Tensor:
        """(rows, labels), each row by its own head."""
        return row_logits(self.shell(model.backbone), batch, heads)


def encode_texts(texts: Sequence[str], backbone: "Backbone", max_length: int) -> list[list[int]]:
    """Token ids of each text, cut at ``max_length`` or the backbone's own limit."""
    if not texts:
        return []  # which tokenizers do not take
    limit = min(max_length, backbone.max_tokens or max_length)
    return backbone.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]


@torch.no_grad()
def classify(
    model: "AdaptedModel", texts: Sequence[str], adapters: "Adapters", batch_size: int
) -> list[dict[str, float]]:
    """See `AdaptedModel.classify`. Rows may use heads with different labels."""
    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    blends = model.blends(len(texts), adapters)
    labels = {
        name: label_names(model.resident(name), model.backbone, Classification.name)
        for name in set(map(model.head_owner, blends))
    }
    encoded = encode_texts(texts, model.backbone, 10**9)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    found: dict[int, dict[str, float]] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for names in set(labels.values()):
            mine = [i for i in rows if labels[model.head_owner(blends[i])] == names]
            if not mine:
                continue
            task = Classification(names)
            batch = task.collate([Example(encoded[i], Row(texts[i])) for i in mine], model.backbone)
            own = [blends[i] for i in mine]
            with model.bank.using(model.plan(own)):
                logits = task.logits(model, batch, model.heads(own))
            for i, scores in zip(mine, logits.float().softmax(-1).tolist(), strict=True):
                ranked = sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1])
                found[i] = dict(ranked)
    return [found[i] for i in range(len(texts))]
