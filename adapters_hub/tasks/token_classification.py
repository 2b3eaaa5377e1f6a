"""Token classification: a tag for each word, and so spans such as names, by the class of
the architecture.

Tags are BIO: ``B-X`` begins a span of kind X, ``I-X`` continues it, ``O`` is outside of all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, SettingsError
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, pad, per_row
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.token_classification import DECLARATION
from adapters_hub.tasks.divergence import Distributions
from adapters_hub.tasks.heads import LabelledTask, row_logits
from adapters_hub.text.tokenising import filler, text_limit
from adapters_hub.text.words import split_words

_IGNORED = -100
_TAG = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class Words:
    """The words of a row: characters of its text, the token each is judged by (None if it was cut
    off, or has none), and tags by number, if they are known.
    """

    spans: tuple[tuple[int, int], ...]
    places: tuple[int | None, ...]
    tags: tuple[int, ...] | None


class TagRecord(TypedDict):
    """The words of a row: their tags, as they should be and as predicted, how probable the latter
    are, and how many were cut off.
    """

    tags: list[str] | None
    predicted: list[str]
    scores: list[float]
    cut: int


@dataclass(frozen=True)
class TokenClassification(LabelledTask[Words, TagRecord]):
    """Cross-entropy over ``label_names``, a word at a time; F1 of whole spans as CoNLL counts it.

    Row: ``fields`` hold ``words`` and ``tags`` (see `words_of`). Words and tokens meet by their
    characters; a word is judged by its first token in an encoder, in a decoder by its last, the
    only one that has seen all of it. A word that was cut off counts as predicted ``O``.
    """

    metric: str = "f1"
    higher_is_better: bool = True
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    method: ClassVar[str] = "tag"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.label_names)) < 2:
            raise SettingsError(f"{self.name} needs two tags or more, not {self.label_names}")
        if wrong := [tag for tag in self.label_names if not _TAG.fullmatch(tag)]:
            raise SettingsError(f"{self.name}: {wrong[0]!r} is none of O, B-… and I-…")

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        return cls(tag_names(splits["train"]), **vars(options))

    def metric_name(self, backbone: Backbone) -> str:
        return "span F1"

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Words]]:
        self.shell(backbone)  # says so if there is none
        known = {tag: number for number, tag in enumerate(self.label_names)}
        examples = []
        for row in rows:
            spans, tags = words_of(row)
            for tag in tags or ():
                if tag not in known:
                    raise DataError(
                        f"{row.where}: field 'tags': {tag!r} is not one of the tags "
                        f"{list(self.label_names)}"
                    )
            ids, places = _tokens_of(row.text, spans, backbone, self.max_length)
            numbers = None if tags is None else tuple(known[tag] for tag in tags)
            examples.append(Example(ids, row, Words(spans, places, numbers)))
        return examples

    def check(self, examples: Sequence[Example[Words]]) -> None:
        for example in examples:
            if example.target.tags is None:
                raise DataError(f"{example.row.where}: {example.row.columns.lacking('tags')}")

    def collate(
        self, examples: Sequence[Example[Words]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        labels = torch.full_like(batch["input_ids"], _IGNORED, device="cpu")
        for row, example in enumerate(examples):
            words = example.target
            for place, tag in zip(words.places, words.tags or (), strict=False):
                if place is not None:
                    labels[row, place] = tag
        return {**batch, "labels": labels.to(backbone.device)}

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != _IGNORED).sum(1).float()

    def loss_of(self, model: Runtime, batch: dict[str, Tensor], reading: Tensor) -> Tensor:
        labels = batch["labels"]
        at = labels != _IGNORED
        logits = reading[at]
        nats = functional.cross_entropy(logits.float(), labels[at], reduction="none")
        return per_row(nats, at.nonzero()[:, 0], len(labels))

    def distributions(self, batch: dict[str, Tensor], logits: Tensor) -> Distributions:
        """One a word that has a tag."""
        at = batch["labels"] != _IGNORED
        return Distributions(logits[at], at.nonzero()[:, 0])

    def logits(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """(rows, tokens, tags), each row by the head of its blend."""
        return row_logits(self.shell(model.backbone), batch, heads)

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Words]],
    ) -> list[TagRecord]:
        shares, best = self.logits(model, batch, heads).float().softmax(-1).max(-1)
        records: list[TagRecord] = []
        for example, values, tags in zip(examples, shares.tolist(), best.tolist(), strict=True):
            words = example.target
            records.append(
                {
                    "tags": None if words.tags is None else [self.labels[n] for n in words.tags],
                    "predicted": [
                        "O" if place is None else self.labels[tags[place]] for place in words.places
                    ],
                    "scores": [0.0 if place is None else values[place] for place in words.places],
                    "cut": sum(place is None for place in words.places),
                }
            )
        return records

    def metrics(self, records: Sequence[TagRecord]) -> dict[str, float]:
        if not records:
            raise DataError("no rows to measure")
        gold = predicted = hit = right = words = 0
        for record in records:
            tags = record["tags"] or []
            true, given = set(spans_of(tags)), set(spans_of(record["predicted"]))
            gold, predicted, hit = gold + len(true), predicted + len(given), hit + len(true & given)
            words += len(tags)
            right += sum(a == b for a, b in zip(tags, record["predicted"], strict=True))
        return {
            "f1": 2 * hit / max(1, gold + predicted),
            "precision": hit / max(1, predicted),
            "recall": hit / max(1, gold),
            "accuracy": right / max(1, words),
            "words_cut_off": float(sum(record["cut"] for record in records)),
        }

    def tallies(self, records: Sequence[TagRecord]) -> np.ndarray:
        """Spans that were predicted and are right; all that were predicted and that there are."""
        pairs = [(set(spans_of(r["tags"] or [])), set(spans_of(r["predicted"]))) for r in records]
        return np.array([(len(a & b), len(a) + len(b)) for a, b in pairs], dtype=float)

    def score(self, sums: np.ndarray) -> np.ndarray:
        return 2 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, first word, word behind the last) of each span, as conlleval and seqeval read BIO.

    An ``I-X`` that continues no span of X begins one.
    """
    spans: list[tuple[str, int, int]] = []
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark != "I" or name != kind):
            spans.append((kind, start, place))
            kind = ""
        if mark != "O" and not kind:
            kind, start = name, place
    return spans


def tag_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """``O`` and both tags of each kind that rows have, since other rows may have longer spans."""
    kinds = {tag.partition("-")[2] for row in rows for tag in words_of(row)[1] or ()} - {""}
    return ("O", *(f"{mark}-{kind}" for kind in sorted(kinds) for mark in "BI"))


def words_of(row: Row) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...] | None]:
    """The characters of a row's words in its text, and their tags; None where it does not say.

    A row without ``words`` is split by `split_words`. Raises `DataError`, naming file, line and
    field, for words that are not in the text one after the other, or tags that are not one each.
    """
    given, tags = _texts(row, "words"), _texts(row, "tags")
    if given is None and tags is not None:
        lacking = row.columns.lacking("words", ", and 'tags' is of words")
        raise DataError(f"{row.where}: {lacking}")
    words = split_words(row.text) if given is None else given
    if tags is not None and len(tags) != len(words):
        raise DataError(
            f"{row.where}: field 'tags' has {len(tags)} tags for the {len(words)} words"
        )
    for tag in tags or ():
        if not _TAG.fullmatch(tag):
            raise DataError(f"{row.where}: field 'tags': {tag!r} is none of O, B-… and I-…")
    spans, end = [], 0
    for word in words:
        start = row.text.find(word, end)
        if start < 0:
            raise DataError(
                f"{row.where}: field 'words': {word!r} is not in the text from character {end} on"
            )
        end = start + len(word)
        spans.append((start, end))
    return tuple(spans), None if tags is None else tuple(tags)


def _texts(row: Row, field: str) -> list[str] | None:
    """A field that should be a list of texts, None where the row does not say it."""
    value = row.fields.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(x, str) and x for x in value):
        raise DataError(f"{row.where}: field {field!r} should be a list of texts: {value!r}")
    return value


def _tokens_of(
    text: str, spans: Sequence[tuple[int, int]], backbone: Backbone, max_length: int
) -> tuple[list[int], tuple[int | None, ...]]:
    """Token ids of a text, and for each span the token it is judged by."""
    tokenizer = backbone.tokenizer
    if not tokenizer.is_fast:
        raise BackboneError(f"{backbone.name}: its tokenizer does not say where tokens are")
    limit = text_limit(backbone, max_length)
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=limit,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    marks = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    tokens = [(a, b, i) for i, ((a, b), special) in enumerate(marks) if not special and a < b]
    places: list[int | None] = []
    at, decoder = 0, backbone.kind == "decoder"
    for start, end in spans:
        while at < len(tokens) and tokens[at][1] <= start:
            at += 1
        behind = at
        while behind < len(tokens) and tokens[behind][0] < end:
            behind += 1
        if behind == at or (decoder and end > tokens[-1][1]):
            places.append(None)
        else:
            places.append(tokens[behind - 1 if decoder else at][2])
    return encoded["input_ids"] or filler(tokenizer), tuple(places)
