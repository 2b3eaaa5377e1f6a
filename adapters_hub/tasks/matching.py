"""Matching: a text's states under an adapter become those of its translation without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.pairs import checked_pairs
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Record, pad
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.matching import DECLARATION, MatchingOptions
from adapters_hub.tasks.reader import ReaderTask, reader
from adapters_hub.text.tokenising import encode_texts


@dataclass(frozen=True)
class Matching(ReaderTask, MatchingOptions):
    """Multilingual distillation (arXiv:2004.09813) of the frozen backbone into a language adapter.

    A row is a text and its ``positive``, the translation into a language that the backbone knows.
    The bare backbone reads the translation; its states are the target of the text's states under
    the adapter. Compared are the mean over tokens and the one token that heads read (the first of
    an encoder, the last of a decoder), at the last layer and at ``depths`` - 1 layers below. The
    loss of a row is the mean over these of ‖state - target‖² / ‖target‖².

    So the space in which domain adapters were trained stays where it is, and they can be added.
    The metric is the same number on other rows. There is no head.
    """

    metric: str = "mismatch"
    higher_is_better: bool = False
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    across: ClassVar[bool] = True

    @classmethod
    def prepare(
        cls, rows: Sequence[Row], columns: Mapping[str, str], options: TaskOptions
    ) -> list[Row]:
        """Pairs: a row without a ``positive`` gets the text of its ``id`` in the pivot language.

        Rows in that language are left out, where other rows are matched to them.
        """
        assert isinstance(options, MatchingOptions)
        rows = checked_pairs(rows, columns)
        pivots = {row.key: row for row in rows if row.key and row.language == options.pivot}
        paired = []
        for row in rows:
            if "positive" not in row.fields and row.key in pivots:
                if row.language == options.pivot:
                    continue
                pair = {
                    "positive": pivots[row.key].text,
                    "positive_language": options.pivot,
                }
                row = replace(row, fields={**row.fields, **pair})
            paired.append(row)
        return paired

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example]:
        """``target`` has the tokens of the translation."""
        texts = [text for row in rows for text in (row.text, _translation(row))]
        ids = encode_texts(texts, backbone, self.max_length)
        pairs = zip(ids[::2], ids[1::2], strict=True)
        return [Example(text, row, target) for row, (text, target) in zip(rows, pairs, strict=True)]

    def collate(
        self, examples: Sequence[Example], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        targets = padded([example.target for example in examples], backbone)
        return {
            **pad(examples, backbone),
            **{f"target_{name}": tensor for name, tensor in targets.items()},
        }

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["input_ids"]))

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        with torch.no_grad(), model.bank.using(None):
            targets = self._states(model.backbone, batch, "target_")
        states = self._states(model.backbone, batch)
        return ((states - targets).square().sum(-1) / targets.square().sum(-1)).mean(-1)

    def _states(self, backbone: Backbone, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
        """What is matched of each text (rows, 2 · depths, width), float32."""
        names = ("input_ids", "attention_mask")
        inputs = {name: batch[prefix + name] for name in names}
        outputs = reader(backbone)(**inputs, **backbone.call_options, output_hidden_states=True)
        layers = outputs.hidden_states
        top = len(layers) - 1
        depths = min(self.depths, top)
        chosen = [layers[round(top * (number + 1) / depths)] for number in range(depths)]
        states = torch.stack(chosen, 1).float()  # (rows, depths, tokens, width)
        mask = inputs["attention_mask"].to(states)
        weights = mask / mask.sum(1, keepdim=True)
        mean = (states * weights[:, None, :, None]).sum(2)  # not a product, which autocast rounds
        rows = torch.arange(len(mask), device=mask.device)
        read = states[rows, :, mask.sum(1).long() - 1 if backbone.kind == "decoder" else rows * 0]
        return torch.cat((mean, read), 1)

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example],
    ) -> list[Record]:
        return [{"mismatch": value} for value in self.loss(model, batch, heads).tolist()]

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        if not records:
            raise DataError("no rows to measure")
        return {"mismatch": float(np.mean([record["mismatch"] for record in records]))}

    def tallies(self, records: Sequence[Record]) -> np.ndarray:
        """Each row's mismatch, and 1."""
        return np.array([(record["mismatch"], 1.0) for record in records])

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


def _translation(row: Row) -> str:
    positive = row.fields.get("positive")
    if not isinstance(positive, str):
        lacking = row.columns.lacking(
            "positive",
            ", the translation into a language that the backbone knows, and no row in --pivot's "
            "language has the same id",
        )
        raise DataError(f"{row.where}: {lacking}")
    return positive
