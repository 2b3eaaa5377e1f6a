"""Matching: a text's states under an adapter become those of its translation without it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.pairs import checked_pairs
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, pad
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.matching import DECLARATION, MatchingOptions
from adapters_hub.tasks.reader import ReaderTask, reader
from adapters_hub.text.alignment import WordAligner
from adapters_hub.text.tokenising import encode_texts, encode_with_words
from adapters_hub.text.words import split_words

log = logging.getLogger(__name__)
_LEAST = 1e-9  # what is divided by


class _Links(NamedTuple):
    """Which words of a text and of its translation mean each other.

    Kept by words: by tokens, of which there are more, it is several times as large.
    """

    weights: np.ndarray  # (words, words of the translation), float32
    owners: list[int]  # each token's word, -1 of none
    owners_there: list[int]

    @classmethod
    def of(cls, weights: np.ndarray, owners: list[int], owners_there: list[int]) -> Self:
        """Without the words that were cut off with their tokens."""
        kept = weights[: max(owners) + 1, : max(owners_there) + 1]
        return cls(kept.astype(np.float32), owners, owners_there)

    def by_tokens(self) -> Tensor:
        """(tokens, tokens of the translation): a word's weights, spread evenly over its tokens."""
        words, others = self.weights.shape
        ours, theirs = _shares(self.owners, words), _shares(self.owners_there, others)
        return ours @ torch.from_numpy(self.weights) @ theirs.T


class _Translation(NamedTuple):
    """A translation's tokens, and which words mean those of the text, where that is asked for."""

    ids: list[int]
    links: _Links | None


class _Mismatch(TypedDict):
    mismatch: float


@dataclass(frozen=True)
class Matching(ReaderTask[_Translation, _Mismatch], MatchingOptions):
    """Multilingual distillation (arXiv:2004.09813) of the frozen backbone into a language adapter.

    A row is a text and its ``positive``, the translation into a language that the backbone knows.
    The bare backbone reads the translation; its states are the target of the text's states under
    the adapter. Compared are the mean over tokens and the one token that heads read (the first of
    an encoder, the last of a decoder), at the last layer and at ``depths`` - 1 layers below. The
    loss of a row is the mean over these of ‖state - target‖² / ‖target‖², and ``words`` times the
    same of tokens at the last layer, whose target is the mean of the tokens that they mean: by an
    alignment of words that is learnt from the train rows (`WordAligner`).

    So the space in which domain adapters were trained stays where it is, and they can be added.
    The metric is the same number on other rows. There is no head.
    """

    metric: str = "mismatch"
    higher_is_better: bool = False
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    across: ClassVar[bool] = True
    aligner: WordAligner | None = field(default=None, repr=False, compare=False)

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

    def finished(self, adapter: Adapter) -> Adapter:
        """With ``strength`` times its delta.

        What was learnt from one kind of text pulls others to it; less of it keeps more of what the
        backbone knows, and is better beside domain adapters.
        """
        scaling = {site: self.strength * value for site, value in adapter.scaling.items()}
        return replace(adapter, scaling=scaling)

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        """The task that has learnt from the train rows which words mean each other."""
        task = cls(**vars(options))
        if not task.words:
            return task
        texts = ((row.text, _translation(row)) for row in splits.get("train", ()))
        words = ((split_words(text), split_words(translation)) for text, translation in texts)
        return replace(task, aligner=WordAligner.learn(words))

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[_Translation]]:
        """``target`` has the tokens of the translation, and which words mean each other."""
        texts, translations = [row.text for row in rows], [_translation(row) for row in rows]
        aligner = self._aligner_on(backbone)
        links: list[_Links | None] = [None] * len(rows)
        if aligner is None:
            ids = encode_texts(texts, backbone, self.max_length)
            ids_there = encode_texts(translations, backbone, self.max_length)
        else:
            words, others = ([*map(split_words, side)] for side in (texts, translations))
            ids, owners = encode_with_words(texts, words, backbone, self.max_length)
            ids_there, owners_there = encode_with_words(
                translations, others, backbone, self.max_length
            )
            links = [*map(_Links.of, map(aligner.weights, words, others), owners, owners_there)]
        return [
            Example(ids[number], row, _Translation(ids_there[number], links[number]))
            for number, row in enumerate(rows)
        ]

    def _aligner_on(self, backbone: Backbone) -> WordAligner | None:
        """What aligns words, where they are matched and the tokenizer says where its tokens are."""
        if self.aligner is None or not self.words:
            return None
        if backbone.tokenizer.is_fast:
            return self.aligner
        log.warning(
            "the tokenizer of %s does not say where its tokens are, so only whole texts are "
            "matched, not words",
            backbone.name,
        )
        return None

    def collate(
        self, examples: Sequence[Example[_Translation]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        """``aligned`` (rows, tokens, tokens of the translation) where words are matched."""
        targets = [example.target for example in examples]
        batch = pad(examples, backbone)
        translations = padded([target.ids for target in targets], backbone)
        batch |= {f"target_{name}": tensor for name, tensor in translations.items()}
        if any(target.links is not None for target in targets):
            shape = (*batch["input_ids"].shape, translations["input_ids"].shape[1])
            aligned = torch.zeros(shape)
            for number, target in enumerate(targets):
                if target.links is not None:
                    ours, theirs = len(target.links.owners), len(target.links.owners_there)
                    aligned[number, :ours, :theirs] = target.links.by_tokens()
            batch["aligned"] = aligned.to(backbone.device)
        return batch

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["input_ids"]))

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        with torch.no_grad(), model.bank.using(None):
            targets, theirs = self._states(model.backbone, batch, "target_")
        states, ours = self._states(model.backbone, batch)
        loss = _apart(states, targets).mean(-1)
        if "aligned" in batch:
            loss = loss + self.words * _words_apart(ours, theirs, batch["aligned"])
        return loss

    def _states(
        self, backbone: Backbone, batch: dict[str, Tensor], prefix: str = ""
    ) -> tuple[Tensor, Tensor]:
        """What is matched of whole texts (rows, 2 · depths, width), and of tokens (rows, tokens,
        width), float32.
        """
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
        return torch.cat((mean, read), 1), states[:, -1]

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[_Translation]],
    ) -> list[_Mismatch]:
        return [{"mismatch": value} for value in self.loss(model, batch, heads).tolist()]

    def metrics(self, records: Sequence[_Mismatch]) -> dict[str, float]:
        if not records:
            raise DataError("no rows to measure")
        return {"mismatch": float(np.mean([record["mismatch"] for record in records]))}

    def tallies(self, records: Sequence[_Mismatch]) -> np.ndarray:
        """Each row's mismatch, and 1."""
        return np.array([(record["mismatch"], 1.0) for record in records])

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


def _apart(states: Tensor, targets: Tensor) -> Tensor:
    """‖state - target‖² / ‖target‖² (…) of states (…, width)."""
    return (states - targets).square().sum(-1) / targets.square().sum(-1).clamp_min(_LEAST)


def _words_apart(states: Tensor, translations: Tensor, aligned: Tensor) -> Tensor:
    """(rows,): how far tokens are from the mean of those that they mean, the sure ones most.

    A row in which nothing is aligned has 0.
    """
    sure = aligned.sum(-1)  # (rows, tokens)
    with torch.autocast(states.device.type, enabled=False):
        targets = aligned @ translations / sure.clamp_min(_LEAST)[..., None]
    return (_apart(states, targets) * sure).sum(1) / sure.sum(1).clamp_min(_LEAST)


def _shares(owners: Sequence[int], words: int) -> Tensor:
    """(tokens, words): 1 / the word's number of tokens, for the tokens of each word."""
    member = (torch.tensor(owners)[:, None] == torch.arange(words)[None, :]).float()
    return member / member.sum(0).clamp_min(1)


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
