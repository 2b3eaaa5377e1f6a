"""Sequence classification: one label a text, or several, by the class of the architecture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.mixing import mixed_embeddings
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.library.adapter_file import MULTI_LABEL, AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, pad
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.classification import DECLARATION, ClassificationOptions
from adapters_hub.tasks.divergence import Distributions
from adapters_hub.tasks.heads import LabelledTask, multi_label, row_logits
from adapters_hub.tasks.mixing import mixed_batch
from adapters_hub.text.tokenising import encode_texts

if TYPE_CHECKING:
    from peft import LoraConfig


LabelNumbers = tuple[int, ...] | None
"""A row's labels as numbers of ``label_names``; None where none are known."""


class LabelRecord(TypedDict):
    """A row's label, as it should be and as predicted; lists where there may be several."""

    label: str | list[str]
    predicted: str | list[str]


@dataclass(frozen=True)
class Classification(LabelledTask[LabelNumbers, LabelRecord], ClassificationOptions):
    """Cross-entropy over ``label_names``; accuracy and macro-F1 (of the labels that occur).

    With ``multi_label`` a row has any number of them, or none: the mean of the labels' binary
    cross-entropies; micro-F1, macro-F1 (of the labels that occur or are predicted) and exact match
    (of all the labels of a row), where a label is predicted from a probability of 0.5 on.
    ``label_smoothing`` gives that share of a target evenly to all labels, or to a label's yes and
    no.
    """

    multi_label: bool = False
    metric: str = "macro_f1"
    higher_is_better: bool = True
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    method: ClassVar[str] = "classify"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.label_names)) < 2:
            raise SettingsError(f"classification needs two labels or more, not {self.label_names}")

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        field = columns.get("label", "label")
        several = any(isinstance(row.label, tuple) for row in splits["train"])
        known = sorted({label for row in splits["train"] for label in row.labels})
        for split, rows in splits.items():
            for row in rows:
                where = f"{row.where}: field {field!r}"
                if row.label is None:
                    none = " (an empty list is none of the labels)" if several else ""
                    lacking = row.columns.lacking("label", f", and {cls.name} needs it{none}")
                    raise DataError(f"{row.where}: {lacking}")
                if isinstance(row.label, tuple) and not several:
                    raise DataError(
                        f"{where} of this {split} row is a list, and no train row's is; let some "
                        "be, or give each row one label"
                    )
                for label in row.labels:
                    if label not in known:
                        raise DataError(
                            f"{where}: no train row has the label {label!r} of this {split} row "
                            f"(they have {', '.join(known)}); add some, or take it out"
                        )
        return cls(tuple(known), multi_label=several, **vars(options))

    @classmethod
    def of_blend(cls, model: Runtime, blend: Blend, max_length: int) -> Self:
        owner = model.resident(model.head_owner(blend))
        again = super().of_blend(model, blend, max_length)
        return replace(again, multi_label=multi_label(owner))

    def metric_name(self, backbone: Backbone) -> str:
        return "macro-F1"

    def new_adapter(
        self, info: AdapterInfo, backbone: Backbone, lora: "LoraConfig | None", seed: int = 0
    ) -> Adapter:
        kept = replace(info, problem_type=MULTI_LABEL if self.multi_label else None)
        return super().new_adapter(kept, backbone, lora, seed)

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[LabelNumbers]]:
        known = {label: number for number, label in enumerate(self.label_names)}
        targets: list[LabelNumbers] = []
        for row in rows:
            if isinstance(row.label, tuple) and not self.multi_label:
                raise DataError(
                    f"{row.where}: field 'label' is a list, and a row has just one of the labels "
                    f"{list(self.label_names)}"
                )
            for label in row.labels:
                if label not in known:
                    raise DataError(
                        f"{row.where}: field 'label': {label!r} is not one of the labels "
                        f"{list(self.label_names)}"
                    )
            numbers = tuple(known[label] for label in row.labels)
            targets.append(None if row.label is None else numbers)
        encoded = encode_texts([row.text for row in rows], backbone, self.max_length)
        return [Example(*parts) for parts in zip(encoded, rows, targets, strict=True)]

    def check(self, examples: Sequence[Example[LabelNumbers]]) -> None:
        for example in examples:
            if example.target is None:
                raise DataError(f"{example.row.where}: {example.row.columns.lacking('label')}")

    def collate(
        self, examples: Sequence[Example[LabelNumbers]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        known = [example.target for example in examples if example.target is not None]
        if len(known) < len(examples):
            return batch
        if self.multi_label:
            targets = torch.zeros(len(examples), len(self.label_names))
            for target, numbers in zip(targets, known, strict=True):
                target[list(numbers)] = 1.0
        else:
            targets = torch.tensor([number for (number,) in known])
        return {**batch, "labels": targets.to(backbone.device)}

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["input_ids"]), device=batch["input_ids"].device)

    def mixed(
        self,
        batch: dict[str, Tensor],
        others: dict[str, Tensor],
        shares: Tensor,
        backbone: Backbone,
    ) -> dict[str, Tensor]:
        return mixed_batch(batch, others, shares, len(self.label_names), backbone.pad_token_id)

    def read(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        with mixed_embeddings(model.backbone, batch):
            return self.logits(model, batch, heads)

    def loss_of(self, model: Runtime, batch: dict[str, Tensor], reading: Tensor) -> Tensor:
        logits, targets = reading.float(), batch["labels"]
        if self.multi_label:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            return losses.mean(1)
        return functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def distributions(self, batch: dict[str, Tensor], logits: Tensor) -> Distributions:
        """One a row; with ``multi_label`` the yes and no of each label, as shares of a row."""
        rows = torch.arange(len(logits), device=logits.device)
        if not self.multi_label:
            return Distributions(logits, rows)
        labels = logits.shape[1]
        both = torch.stack((torch.zeros_like(logits), logits), -1).flatten(0, 1)
        return Distributions(both, rows.repeat_interleave(labels), 1 / labels)

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[LabelNumbers]],
    ) -> list[LabelRecord]:
        logits = self.logits(model, batch, heads)
        if self.multi_label:
            chosen = [[self.label_names[n] for n in row.nonzero()[:, 0]] for row in logits >= 0]
            return [
                {"label": list(example.row.labels), "predicted": predicted}
                for example, predicted in zip(examples, chosen, strict=True)
            ]
        return [
            {"label": str(example.row.label), "predicted": self.label_names[number]}
            for example, number in zip(examples, logits.argmax(-1).tolist(), strict=True)
        ]

    def metrics(self, records: Sequence[LabelRecord]) -> dict[str, float]:
        if not records:
            raise DataError("no rows to measure")
        if self.multi_label:
            return multi_label_metrics(records)
        pairs = [*map(_sets, records)]
        scores = []
        for label in sorted({label for gold, _ in pairs for label in gold}):
            hit = sum(label in gold & predicted for gold, predicted in pairs)
            involved = sum((label in gold) + (label in predicted) for gold, predicted in pairs)
            scores.append(2 * hit / involved)
        accuracy = sum(gold == predicted for gold, predicted in pairs) / len(pairs)
        return {"accuracy": accuracy, "macro_f1": sum(scores) / len(scores)}

    def tallies(self, records: Sequence[LabelRecord]) -> np.ndarray:
        """Of each label: hits, rows that have it, rows that were given it."""
        gold, predicted = (
            np.array([[label in labels for label in self.label_names] for labels in sets])
            for sets in zip(*map(_sets, records), strict=True)
        )
        return np.concatenate([gold & predicted, gold, predicted], axis=1).astype(float)

    def score(self, sums: np.ndarray) -> np.ndarray:
        hits, gold, predicted = np.split(sums, 3, axis=-1)
        counts = (gold + predicted if self.multi_label else gold) > 0
        scores = np.where(counts, 2 * hits / np.maximum(gold + predicted, 1), 0.0)
        nothing = 1.0 if self.multi_label else 0.0
        of = counts.sum(-1)
        return np.where(of > 0, scores.sum(-1) / np.maximum(of, 1), nothing)

    def logits(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """(rows, labels), each row by the head of its blend."""
        return row_logits(self.shell(model.backbone), batch, heads)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(rows, labels), float32: of one label among all, or of each label by itself."""
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)


def multi_label_metrics(records: Sequence[LabelRecord]) -> dict[str, float]:
    """Micro-F1, macro-F1 and exact match of sets of labels; where no label is right, and
    none is predicted, F1 is 1.
    """
    pairs = [*map(_sets, records)]
    hits, involved = Counter[str](), Counter[str]()
    for gold, predicted in pairs:
        hits.update(gold & predicted)
        involved.update([*gold, *predicted])
    scores = [2 * hits[label] / count for label, count in involved.items()]
    return {
        "micro_f1": 2 * hits.total() / involved.total() if involved else 1.0,
        "macro_f1": sum(scores) / len(scores) if scores else 1.0,
        "exact_match": sum(gold == predicted for gold, predicted in pairs) / len(pairs),
    }


def _sets(record: LabelRecord) -> tuple[set[str], set[str]]:
    """The labels of a record, and those that were predicted."""
    gold, predicted = (
        {labels} if isinstance(labels, str) else set(labels)
        for labels in (record["label"], record["predicted"])
    )
    return gold, predicted
