"""The language-model objective: causal for decoders, masked for encoders (arXiv:1810.04805)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.tasks.base import Example, pad
from adapters_hub.tasks.bits import IGNORED, BitsTask
from adapters_hub.tasks.declaration import Declaration
from adapters_hub.tasks.declarations.language_modeling import (
    DECLARATION,
    LanguageModelingOptions,
)
from adapters_hub.text.tokenising import surroundings


@dataclass(frozen=True)
class Packed(Example[int]):
    """Several documents in one row of tokens; ``documents`` are their lengths, in order."""

    target: int = 0
    documents: tuple[int, ...] = ()


@dataclass(frozen=True)
class LanguageModeling(BitsTask[int], LanguageModelingOptions):
    """Predict the text itself; the backbone's language-model head serves, frozen.

    A text longer than ``max_length`` tokens is cut into windows, none of it lost. For encoders
    ``mask_probability`` of the tokens are targets: 80% become the mask token, 10% a random one.
    Bits per byte count every UTF-8 byte of the text; the masked loss is bits per masked token.
    """

    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name

    def pipeline_tag(self, backbone: Backbone) -> str:
        return "fill-mask" if backbone.kind == "encoder" else self.declaration.pipeline_tag

    def peft_task_type(self, backbone: Backbone) -> str | None:
        return "CAUSAL_LM" if backbone.kind == "decoder" else None

    def metric_name(self, backbone: Backbone) -> str:
        return "bits per byte" if backbone.kind == "decoder" else "bits per masked token"

    def usage(self, row: Row, backbone: Backbone) -> str | None:
        if backbone.kind != "decoder":
            return None
        return f"model.generate([{row.text[:24]!r}], max_new_tokens=24)"

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[int]]:
        if not backbone.has_lm_head:
            raise BackboneError(
                f"{backbone.name} has no language-model head in its checkpoint, so there is no "
                "language-model objective on it; train a task, or a language on pairs of texts "
                "(--objective match), or take a backbone whose checkpoint has one"
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
        limit = self.row_limit(backbone)
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
        self, examples: Sequence[Example[int]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        labels[:, 0] = IGNORED
        if any(isinstance(example, Packed) for example in examples):
            documents = [_documents(example, labels.shape[1]) for example in examples]
            for row, lengths in enumerate(documents):  # nothing comes before a first token
                labels[row, list(itertools.accumulate(lengths[:-1]))] = IGNORED
            if packing := backbone.packing(self.row_limit(backbone)):
                del batch["attention_mask"]
                batch |= packing.inputs(documents, backbone.dtype, backbone.device)
        if backbone.kind == "decoder":
            return {**batch, "labels": labels}
        return {**batch, **self._mask(batch, examples, backbone, seed)}

    def row_limit(self, backbone: Backbone) -> int:
        """The most tokens of a row."""
        return min(self.max_length, backbone.max_tokens or self.max_length)

    def counted(self, example: Example[int], backbone: Backbone) -> tuple[int | None, bool]:
        masked = backbone.kind == "encoder"
        return None if masked else example.target, example.target > 0

    def _mask(
        self,
        batch: dict[str, Tensor],
        examples: Sequence[Example[int]],
        backbone: Backbone,
        seed: int,
    ) -> dict[str, Tensor]:
        """BERT's masking, drawn a row at a time, so that it does not depend on the batch."""
        ids = batch["input_ids"].cpu()
        labels = torch.full_like(ids, IGNORED)
        special = set(backbone.tokenizer.all_special_ids)
        for row, example in enumerate(examples):
            generator = torch.Generator().manual_seed(
                (seed * 1_000_003 + hash(tuple(example.input_ids))) % 2**63
            )
            places = [i for i, token in enumerate(example.input_ids) if token not in special]
            places = places or list(range(len(example.input_ids)))
            chosen = torch.tensor(places)[
                torch.rand(len(places), generator=generator) < self.mask_probability
            ]
            if not len(chosen):
                chosen = torch.tensor(
                    [places[int(torch.randint(len(places), (), generator=generator))]]
                )
            labels[row, chosen] = ids[row, chosen]
            draw = torch.rand(len(chosen), generator=generator)
            random = torch.randint(len(backbone.tokenizer), (len(chosen),), generator=generator)
            mask = torch.full_like(random, backbone.tokenizer.mask_token_id)
            kept = ids[row, chosen]
            ids[row, chosen] = torch.where(draw < 0.8, mask, torch.where(draw < 0.9, random, kept))
        return {"input_ids": ids.to(backbone.device), "labels": labels.to(backbone.device)}


def _documents(example: Example[int], tokens: int) -> tuple[int, ...]:
    """The lengths of an example's documents; what pads its row to so many tokens is one more."""
    size = len(example.input_ids)
    lengths = example.documents if isinstance(example, Packed) else (size,)
    return (*lengths, tokens - size) if tokens > size else lengths
