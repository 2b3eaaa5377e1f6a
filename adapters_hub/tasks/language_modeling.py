"""The language-model objective: causal for decoders, masked for encoders (arXiv:1810.04805)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, SettingsError
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Task, pad, per_row
from adapters_hub.text.tokenising import surroundings

if TYPE_CHECKING:
    from adapters_hub.training.settings import TrainingSettings

IGNORED = -100
_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")


class BitsTask(Task):
    """A task that predicts target tokens by the backbone's own head, measured in bits."""

    def prefix(self, backbone: Backbone) -> str:
        return backbone.prefix

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(1).float()

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        return target_nats(model, batch)

    def tallies(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        """(texts, 2): bits, and what they are counted by: bytes, or masked tokens."""
        pairs = [
            (r["nats"] / math.log(2), r["tokens"] if r["bytes"] is None else r["bytes"])
            for r in records
        ]
        texts = np.cumsum([r["first"] for r in records]) - 1  # a long text's windows go together
        found = np.zeros((int(texts[-1]) + 1, 2))
        np.add.at(found, texts, np.array(pairs, dtype=float))
        return found

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


@dataclass(frozen=True)
class LanguageModeling(BitsTask):
    """Predict the text itself; the backbone's own language-model head serves, frozen.

    A text longer than ``max_length`` tokens is cut into windows, none of it lost. For encoders
    ``mask_probability`` of the tokens are targets: 80% become the mask token, 10% a random one.
    Bits per byte count every UTF-8 byte of the text; the masked loss is bits per masked token.
    """

    max_length: int = 256
    mask_probability: float = 0.15
    metric: str = "bits"
    higher_is_better: bool = False
    name: ClassVar[str] = "language-modeling"

    @classmethod
    def from_settings(
        cls, settings: "TrainingSettings", splits: Mapping[str, Sequence[Row]]
    ) -> "LanguageModeling":
        return cls(max_length=settings.max_length, mask_probability=settings.mask_probability)

    def peft_task_type(self, backbone: Backbone) -> str | None:
        return "CAUSAL_LM" if backbone.kind == "decoder" else None

    def metric_name(self, backbone: Backbone) -> str:
        return "bits per byte" if backbone.kind == "decoder" else "bits per masked token"

    def usage(self, row: Row, backbone: Backbone) -> str | None:
        if backbone.kind != "decoder":
            return None
        return f"model.generate([{row.text[:24]!r}], max_new_tokens=24)"

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example]:
        if not backbone.has_lm_head:
            raise BackboneError(
                f"{backbone.name} has no language-model head in its checkpoint, so there is no "
                "language-model objective on it; train a task, or a language on pairs of texts "
                "(--task retrieval), or take a backbone whose checkpoint has one"
            )
        if backbone.kind == "encoder-decoder":
            raise BackboneError(
                f"{backbone.name} is an encoder-decoder: the language-model objective here is for "
                "decoders (causal) and encoders (masked); train it on pairs of texts "
                "(--task generation, or translation)"
            )
        tokenizer = backbone.tokenizer
        if backbone.kind == "encoder" and tokenizer.mask_token_id is None:
            raise BackboneError(f"{backbone.name}: the tokenizer has no mask token")
        if not rows:
            return []  # which tokenizers do not take
        limit = min(self.max_length, backbone.max_tokens or self.max_length)
        end = [tokenizer.eos_token_id] if backbone.kind == "decoder" else []
        end = [] if end == [None] else end
        before, after = surroundings(tokenizer)
        least = len(before) + len(after) + 1 if backbone.kind == "encoder" else 2
        if limit < least:
            raise SettingsError(f"max_length={limit}: must be {least} or more on {backbone.name}")
        examples = []
        texts = tokenizer([row.text for row in rows], add_special_tokens=backbone.kind == "decoder")
        for row, ids in zip(rows, texts["input_ids"], strict=True):
            size = len(row.text.encode())
            if backbone.kind == "encoder":
                room = limit - len(before) - len(after)
                windows = [ids[at : at + room] for at in range(0, len(ids), room)]
                windows = [before + window + after for window in windows]
            else:
                ids = ids + end if ids[-1:] != end else ids
                step = limit - 1  # windows share a token, so that each is predicted just once
                windows = [ids[at : at + limit] for at in range(0, max(1, len(ids) - 1), step)]
            for number, window in enumerate(windows):
                if len(window) > 1:  # the row's bytes are counted once, with its first window
                    examples.append(Example(window, row, size if number == 0 else 0))
        return examples

    def collate(
        self, examples: Sequence[Example], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        if backbone.kind == "decoder":
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
            labels[:, 0] = IGNORED
            return {**batch, "labels": labels}
        return {**batch, **self._mask(batch, examples, backbone, seed)}

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example],
    ) -> list[dict[str, Any]]:
        nats, tokens = self.loss(model, batch, heads).tolist(), self.count(batch).tolist()
        masked = model.backbone.kind == "encoder"
        return [
            {
                "nats": n,
                "tokens": t,
                "bytes": None if masked else example.target,
                "first": example.target > 0,
            }
            for n, t, example in zip(nats, tokens, examples, strict=True)
        ]

    def metrics(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        tokens = sum(record["tokens"] for record in records)
        if not tokens:
            raise DataError("no tokens to measure")
        bits = sum(record["nats"] for record in records) / math.log(2)
        out = {"bits_per_token": bits / tokens, "perplexity": 2 ** (bits / tokens)}
        if records[0]["bytes"] is None:
            return {"bits": bits / tokens, **out}
        per_byte = bits / max(1, sum(record["bytes"] for record in records))
        return {"bits": per_byte, "bits_per_byte": per_byte, **out}

    def _mask(
        self, batch: dict[str, Tensor], examples: Sequence[Example], backbone: Backbone, seed: int
    ) -> dict[str, Tensor]:
        """BERT's masking, drawn a row at a time, so that it does not depend on the batch."""
        ids = batch["input_ids"].cpu()
        labels = torch.full_like(ids, IGNORED)
        special = set(backbone.tokenizer.all_special_ids)
        for row, example in enumerate(examples):
            generator = torch.Generator().manual_seed(
                (seed * 1_000_003 + hash(tuple(example.input_ids))) % 2**63
            )
            own = [i for i, token in enumerate(example.input_ids) if token not in special]
            own = own or list(range(len(example.input_ids)))
            chosen = torch.tensor(own)[
                torch.rand(len(own), generator=generator) < self.mask_probability
            ]
            if not len(chosen):
                chosen = torch.tensor([own[int(torch.randint(len(own), (), generator=generator))]])
            labels[row, chosen] = ids[row, chosen]
            draw = torch.rand(len(chosen), generator=generator)
            random = torch.randint(len(backbone.tokenizer), (len(chosen),), generator=generator)
            mask = torch.full_like(random, backbone.tokenizer.mask_token_id)
            kept = ids[row, chosen]
            ids[row, chosen] = torch.where(draw < 0.8, mask, torch.where(draw < 0.9, random, kept))
        return {"input_ids": ids.to(backbone.device), "labels": labels.to(backbone.device)}


def target_nats(model: Runtime, batch: dict[str, Tensor]) -> Tensor:
    """Each row's nats summed over its targets (rows,), under the current plan.

    ``labels`` stand at the tokens that are to be predicted; beside ``decoder_input_ids``, at those
    that predict them. Only the positions with a target go through the vocabulary-sized head.
    """
    labels = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key in _INPUTS}
    if model.backbone.kind == "decoder":
        labels = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    at = labels != IGNORED
    plan, outer = model.bank.current(), model.backbone.head_sites
    adapted = plan is not None and any(outer & atom.factors.keys() for atom in plan.atoms)
    if model.backbone.kind == "encoder-decoder":  # whose targets are nearly all positions
        logits = model.backbone.model(**inputs, use_cache=False).logits[at]
    elif adapted:
        logits = model.backbone.model(**inputs).logits[at]  # an adapted head must see all rows
    else:
        logits = model.backbone.lm_logits(inputs, at)
    nats = functional.cross_entropy(logits.float(), labels[at], reduction="none")
    return per_row(nats, at.nonzero()[:, 0], len(labels))
