"""Sequence classification: one label a text, by the architecture's own classification class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.errors import DataError, HeadError, SettingsError
from adapters_hub.tasks.base import Example, Row, Task, pad

if TYPE_CHECKING:
    from adapters_hub.adapter import Adapter
    from adapters_hub.backbone import Backbone, TaskShell
    from adapters_hub.model import AdaptedModel, Adapters, Heads

AUTO_CLASS = "AutoModelForSequenceClassification"


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

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label_names

    def shell(self, backbone: "Backbone") -> "TaskShell":
        """The classification class around the backbone."""
        return backbone.shell(AUTO_CLASS, num_labels=len(self.label_names))

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

    def logits(self, model: "AdaptedModel", batch: dict[str, Tensor], heads: "Heads") -> Tensor:
        """(rows, labels), each row by its own head."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        shell = self.shell(model.backbone)
        parts = shell(heads, inputs)
        if heads[0][1] is None:
            return parts[0]
        out = parts[0].new_empty(len(inputs["input_ids"]), len(self.label_names))
        for (_, rows), part in zip(heads, parts, strict=True):
            out = out.index_copy(0, rows, part.to(out.dtype))  # type: ignore[arg-type]
        return out


def fits(shell: "TaskShell", head: Mapping[str, Tensor]) -> bool:
    """Whether a head has just the parameters the class needs, in their shapes."""
    return {name: tensor.shape for name, tensor in head.items()} == shell.shapes


def label_names(adapter: "Adapter", backbone: "Backbone") -> tuple[str, ...]:
    """An adapter's labels; ``LABEL_0``, … as in transformers where its files name none.

    Raises `HeadError` where its head is not one of this architecture's classification class.
    """
    sizes = {len(tensor) for tensor in adapter.head.values()}
    count = next(
        (n for n in sizes if fits(backbone.shell(AUTO_CLASS, num_labels=n), adapter.head)), None
    )
    if count is None:
        have = ", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(adapter.head.items()))
        shell = backbone.shell(AUTO_CLASS, num_labels=2)
        raise HeadError(
            f"the head of {adapter.name!r} has {have or 'nothing'}; its classification class needs "
            f"{', '.join(sorted(shell.shapes))}"
        )
    if count == 1:
        raise HeadError(f"the head of {adapter.name!r} has one output, a regression: no labels")
    names = adapter.info.labels or tuple(f"LABEL_{number}" for number in range(count))
    if len(names) != count:
        raise HeadError(f"{adapter.name!r} names {len(names)} labels and its head has {count}")
    return names


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
        name: label_names(model.resident(name), model.backbone)
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


def shell_of(adapter: "Adapter", backbone: "Backbone") -> "TaskShell":
    """The classification class that an adapter's head belongs to."""
    return backbone.shell(AUTO_CLASS, num_labels=len(label_names(adapter, backbone)))


def plain_classifier(backbone: "Backbone", adapter: "Adapter") -> Any:
    """A transformers classification model, all of it a copy, with an adapter's head."""
    import copy

    import transformers

    config = copy.deepcopy(backbone.config)
    names = label_names(adapter, backbone)
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    with torch.device("meta"):
        plain = transformers.AutoModelForSequenceClassification.from_config(config)
    setattr(plain, plain.base_model_prefix, copy.deepcopy(backbone.base))
    dtype = next(backbone.base.parameters()).dtype
    head = {name: tensor.to(dtype) for name, tensor in adapter.head.items()}
    plain.load_state_dict(head, strict=False, assign=True)
    return plain.eval().requires_grad_(False)
