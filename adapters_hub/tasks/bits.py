"""What the tasks share whose targets are tokens, predicted by the backbone's head.

Knows batches with ``labels`` and what is counted in bits; does not know where the targets come
from.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Reading, Target, Task, per_row
from adapters_hub.tasks.cross_entropy import blocked_cross_entropy
from adapters_hub.tasks.divergence import Measure, blocked_divergence, kl_from, symmetric_kl

IGNORED = -100
_INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")


class BitsRecord(TypedDict):
    """An example's nats and what they are counted by; of a text that was written more."""

    nats: float
    tokens: float
    bytes: int | None
    first: bool  # of its row
    written: NotRequired[str]
    target: NotRequired[str]
    language: NotRequired[str]  # of both


@dataclass(frozen=True)
class BitsTask(Task[Target, BitsRecord]):
    """A task that predicts target tokens by the backbone's head, measured in bits."""

    metric: str = "bits"
    higher_is_better: bool = False
    compares: ClassVar[bool] = True

    @abstractmethod
    def counted(self, example: Example[Target], backbone: Backbone) -> tuple[int | None, bool]:
        """The bytes that an example's bits are counted by (None: they are counted by tokens), and
        whether it is the first of its row.
        """

    def metric_name(self, backbone: Backbone) -> str:
        return "bits per byte"

    def prefix(self, backbone: Backbone) -> str:
        return backbone.prefix

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(1).float()

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        return self.loss_of(model, batch, self.read(model, batch, heads))

    def read(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """Hidden states (n, width) at the positions that predict a target, or, of a head that does
        more than with these, logits (n, vocabulary).
        """
        backbone = model.backbone
        inputs = {key: value for key, value in batch.items() if key in _INPUTS}
        rows, tokens, _ = _targets(backbone, batch)
        if model.splits_head:
            return backbone.hidden_states(inputs)[rows, tokens]
        logits: Tensor = backbone.model(**inputs, **backbone.lm_options).logits
        return logits[rows, tokens]

    def loss_of(self, model: Runtime, batch: dict[str, Tensor], reading: Tensor) -> Tensor:
        """Only positions with a target have logits, and only a block of them at a time."""
        rows, tokens, targets = _targets(model.backbone, batch)
        if model.splits_head:
            head, learns = _head(model, rows, tokens)
            vocabulary = model.backbone.vocabulary
            nats = blocked_cross_entropy(head, reading, targets, vocabulary, head_learns=learns)
        else:
            nats = functional.cross_entropy(reading.float(), targets, reduction="none")
        return per_row(nats, rows, len(batch["labels"]))

    def divergence(self, model: Runtime, one: Reading, other: Reading) -> Tensor:
        if one[0] is not other[0] and not torch.equal(one[0]["labels"], other[0]["labels"]):
            raise SettingsError(
                f"{self.name}: two passes have other targets, so what they predict cannot be "
                "compared; compare passes over the same tokens"
            )
        return self._apart(model, symmetric_kl, *one, other[1])

    def kl_from(
        self, model: Runtime, batch: dict[str, Tensor], reading: Tensor, reference: Tensor
    ) -> Tensor:
        """KL(reference ‖ model) summed over each row's targets (rows,), from two readings."""
        return self._apart(model, kl_from, batch, reading, reference)

    def _apart(
        self,
        model: Runtime,
        measure: Measure,
        batch: dict[str, Tensor],
        reading: Tensor,
        other: Tensor,
    ) -> Tensor:
        rows, tokens, _ = _targets(model.backbone, batch)
        if model.splits_head:
            head, learns = _head(model, rows, tokens)
            vocabulary = model.backbone.vocabulary
            nats = blocked_divergence(measure, head, reading, other, vocabulary, head_learns=learns)
        else:
            nats = measure(reading, other)
        return per_row(nats, rows, len(batch["labels"]))

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Target]],
    ) -> list[BitsRecord]:
        nats, tokens = self.loss(model, batch, heads).tolist(), self.count(batch).tolist()
        records: list[BitsRecord] = []
        for row_nats, row_tokens, example in zip(nats, tokens, examples, strict=True):
            size, first = self.counted(example, model.backbone)
            records.append({"nats": row_nats, "tokens": row_tokens, "bytes": size, "first": first})
        return records

    def metrics(self, records: Sequence[BitsRecord]) -> dict[str, float]:
        tokens = sum(record["tokens"] for record in records)
        if not tokens:
            raise DataError("no targets to measure")
        bits = sum(record["nats"] for record in records) / math.log(2)
        per_token = {"bits_per_token": bits / tokens, "perplexity": 2 ** (bits / tokens)}
        if records[0]["bytes"] is None:
            return {"bits": bits / tokens, **per_token}
        per_byte = bits / max(1, sum(record["bytes"] or 0 for record in records))
        return {"bits": per_byte, "bits_per_byte": per_byte, **per_token}

    def tallies(self, records: Sequence[BitsRecord]) -> np.ndarray:
        """(texts, 2): bits, and what they are counted by: bytes, or masked tokens."""
        pairs = [
            (r["nats"] / math.log(2), r["tokens"] if r["bytes"] is None else r["bytes"])
            for r in records
        ]
        texts = np.cumsum([r["first"] for r in records]) - 1  # a long text's windows go together
        sums = np.zeros((int(texts[-1]) + 1, 2))
        np.add.at(sums, texts, np.array(pairs, dtype=float))
        return sums

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _targets(backbone: Backbone, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The row, the position and the token of each target (n,).

    ``labels`` stand at the tokens that are to be predicted; beside ``decoder_input_ids``, at those
    that predict them, and so do the positions.
    """
    labels = batch["labels"]
    if backbone.kind == "decoder":
        labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    rows, tokens = (labels != IGNORED).nonzero(as_tuple=True)
    return rows, tokens, labels[rows, tokens]


def _head(
    model: Runtime, rows: Tensor, tokens: Tensor
) -> tuple[Callable[[Tensor, slice], Tensor], bool]:
    """What makes logits of hidden states (n, width) at positions, each under the plan of its row or
    token, and whether the head learns.
    """
    backbone, plan = model.backbone, model.bank.current()
    if plan is not None:
        acts = backbone.head_sites & plan.sites
        plan = plan.at(rows.cpu(), tokens.cpu()) if acts else None

    def logits_of(hidden: Tensor, at: slice) -> Tensor:
        with model.bank.using(plan and plan.of(at)):
            return backbone.head_logits(hidden)

    atoms = () if plan is None else plan.atoms
    learns = any(atom.trained and backbone.head_sites & atom.factors.keys() for atom in atoms)
    return logits_of, learns
