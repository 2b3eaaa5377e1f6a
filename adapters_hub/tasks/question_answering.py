"""Extractive question answering: a span of the context, or none, by the class of the architecture.

As in BERT (arXiv:1810.04805): a start and an end are chosen among the context's tokens, and a
context that is too long for one row is read in windows that overlap.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, SettingsError
from adapters_hub.metrics.squad import exact_match, f1
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, pad
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.question_answering import (
    DECLARATION,
    QuestionAnsweringOptions,
)
from adapters_hub.tasks.divergence import Distributions
from adapters_hub.tasks.heads import HeadTask, row_logits

Span = tuple[str, int]  # a gold answer and where it starts in the context, in characters
_BEST = 20  # spans of a window that are looked at, as in SQuAD's scripts


@dataclass(frozen=True)
class Answer:
    """An answer, and how probable it is among the best spans of all windows and no answer.

    ``context[start:end]`` is the text, in characters; no answer is an empty text without them.
    """

    text: str
    score: float
    start: int | None
    end: int | None


@dataclass(frozen=True)
class Window:
    """One row of tokens over a part of a context; places are token indices in that row.

    ``starts`` and ``ends`` are characters of the context, for each of its tokens from ``first`` on
    (arrays, for there may be a million). ``span`` is the answer's first and last token, ``null``
    twice where the window does not hold all of it, or None where none is known.
    """

    question: int  # which of the rows encoded together it is of
    first: int
    null: int
    starts: "array[int]"
    ends: "array[int]"
    span: tuple[int, int] | None
    types: bytes  # token type ids, where the backbone knows any

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(start, end) of each token of the context, in characters."""
        return list(zip(self.starts, self.ends, strict=True))


class WindowRecord(TypedDict):
    """A window's null score, and its best spans: score, start, end and text."""

    question: int
    language: str | None
    gold: list[str] | None
    null: float
    spans: list[tuple[float, int, int, str]]


@dataclass(frozen=True)
class QuestionAnswering(HeadTask[Window, WindowRecord], QuestionAnsweringOptions):
    """The mean cross-entropy of start and end; exact match and F1 as SQuAD and MLQA count them.

    Row: ``text`` is the context, ``fields`` hold ``question`` and ``answers`` (see `gold_spans`).
    Start and end are chosen among the window's context tokens and its null position, at which both
    are where the window holds no answer: the first token in an encoder, in a decoder the end token
    behind the context, the only one that has seen all of it. ``stride`` tokens of a window are in
    the next one too. ``no_answer``: by how much the null score has to beat the best span's for
    there to be no answer (arXiv:1806.03822); None always gives a span.
    """

    max_answer_tokens: int = 30
    no_answer: float | None = 0.0
    metric: str = "f1"
    higher_is_better: bool = True
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_answer_tokens < 1:
            raise SettingsError(f"max_answer_tokens={self.max_answer_tokens}: must be 1 or more")

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        unanswerable = any(gold_spans(row) == () for row in splits["train"])
        return cls(no_answer=0.0 if unanswerable else None, **vars(options))

    @property
    def head_size(self) -> int:
        return 2  # start and end

    def metric_name(self, backbone: Backbone) -> str:
        return "F1"

    def usage(self, row: Row, backbone: Backbone) -> str:
        usual, options = QuestionAnswering(), ""
        for name in ("max_length", "stride"):
            if (value := getattr(self, name)) != getattr(usual, name):
                options += f", {name}={value}"
        return f"model.answer({row.fields['question']!r}, {row.text!r}{options})"

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Window]]:
        self.shell(backbone)  # says so if there is none
        return [e for number, row in enumerate(rows) for e in self._windows(number, row, backbone)]

    def check(self, examples: Sequence[Example[Window]]) -> None:
        for example in examples:
            if example.target.span is None:
                raise DataError(f"{example.row.where}: {example.row.columns.lacking('answers')}")

    def collate(
        self, examples: Sequence[Example[Window]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        context = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        types = torch.zeros_like(batch["input_ids"])
        windows = [example.target for example in examples]
        for row, window in enumerate(windows):
            context[row, window.first : window.first + len(window.starts)] = True
            types[row, : len(window.types)] = torch.tensor(list(window.types))
        if any(window.types for window in windows):
            batch["token_type_ids"] = types
        nulls = torch.tensor([window.null for window in windows], device=backbone.device)
        batch |= {"context": context, "null": nulls}
        if all(window.span is not None for window in windows):
            spans = torch.tensor([window.span for window in windows])
            batch["labels"] = spans.to(backbone.device)
        return batch

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["input_ids"]), device=batch["input_ids"].device)

    def loss_of(self, model: Runtime, batch: dict[str, Tensor], reading: Tensor) -> Tensor:
        scores = reading.log_softmax(1)
        return -scores.gather(1, batch["labels"][:, None]).squeeze(1).mean(1)

    def distributions(self, batch: dict[str, Tensor], logits: Tensor) -> Distributions:
        """Start and end of each row, over its tokens, as halves of a row."""
        rows = torch.arange(len(logits), device=logits.device)
        return Distributions(logits.transpose(1, 2).flatten(0, 1), rows.repeat_interleave(2), 0.5)

    def logits(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """Start and end (rows, tokens, 2), -inf where neither can be: each row by its head."""
        logits = row_logits(self.shell(model.backbone), batch, heads).float()
        allowed = batch["context"].scatter(1, batch["null"][:, None], True)
        return logits.masked_fill(~allowed[..., None], -torch.inf)

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Window]],
    ) -> list[WindowRecord]:
        logits = self.logits(model, batch, heads)
        nulls = logits.gather(1, batch["null"][:, None, None].expand(-1, 1, 2)).sum(2)[:, 0]
        inside = logits.masked_fill(~batch["context"][..., None], -torch.inf)
        starts, ends = inside.unbind(-1)
        width = min(self.max_answer_tokens, starts.shape[1])
        ends = torch.nn.functional.pad(ends, (0, width - 1), value=-torch.inf).unfold(1, width, 1)
        spans = (starts[..., None] + ends).flatten(1)  # (rows, tokens × lengths)
        values, places = spans.topk(min(_BEST, spans.shape[1]), 1)
        records: list[WindowRecord] = []
        for example, null, scores, at in zip(
            examples, nulls.tolist(), values.tolist(), places.tolist(), strict=True
        ):
            window, gold = example.target, gold_spans(example.row)
            best: list[tuple[float, int, int, str]] = []
            for score, place in zip(scores, at, strict=True):
                if score == -torch.inf:
                    break
                begin, extra = divmod(place, width)
                begin -= window.first
                start, end = window.starts[begin], window.ends[begin + extra]
                text = example.row.text[start:end]  # with a space in it, where tokens have one
                start += len(text) - len(text.lstrip())
                if text := text.strip():
                    best.append((score, start, start + len(text), text))
            records.append(
                {
                    "question": window.question,
                    "language": example.row.language,
                    "gold": None if gold is None else [text for text, _ in gold],
                    "null": null,
                    "spans": best,
                }
            )
        return records

    def metrics(self, records: Sequence[WindowRecord]) -> dict[str, float]:
        """Over questions, whose windows' records are in any order."""
        if not records:
            raise DataError("no rows to measure")
        answerable: list[tuple[float, float]] = []  # exact match and F1 of each question
        without: list[tuple[float, float]] = []  # of those that have no answer
        for windows in by_question(records):
            text, gold, language = self._answered(windows)
            scores = exact_match(text, gold, language), f1(text, gold, language)
            (answerable if gold else without).append(scores)
        exact, overlap = _means(answerable + without)
        out = {"exact_match": exact, "f1": overlap}
        if without:
            out["no_answer_accuracy"] = _means(without)[0]
        if without and answerable:
            out["answerable_exact_match"], out["answerable_f1"] = _means(answerable)
        return out

    def tallies(self, records: Sequence[WindowRecord]) -> np.ndarray:
        """Each question's F1, and 1."""
        answers = map(self._answered, by_question(records))
        return np.array([(f1(*answered), 1.0) for answered in answers])

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    def _answered(self, windows: Sequence[WindowRecord]) -> tuple[str, list[str], str | None]:
        """The answer to one question, the gold ones, and their language."""
        return self.best(windows).text, windows[0]["gold"] or [], windows[0]["language"]

    def best(self, records: Sequence[WindowRecord]) -> Answer:
        """The answer that the records of one question's windows give together.

        The null score is the smallest of its windows': only one that holds the answer denies it.
        """
        null = min(record["null"] for record in records)
        spans: dict[tuple[int, int], tuple[float, str]] = {}
        for score, start, end, text in (span for record in records for span in record["spans"]):
            spans[start, end] = max((score, text), spans.get((start, end), (score, text)))
        values = torch.tensor([null, *(score for score, _ in spans.values())])
        shares = values.double().softmax(0).tolist()
        place = max(spans, key=lambda span: spans[span][0], default=None)
        most = math.inf if self.no_answer is None else self.no_answer
        if place is None or null - spans[place][0] > most:
            return Answer("", shares[0], None, None)
        return Answer(spans[place][1], shares[1 + list(spans).index(place)], *place)

    def _windows(self, number: int, row: Row, backbone: Backbone) -> list[Example[Window]]:
        """A row's examples; every token of its context is in one of them or more."""
        question, gold = question_of(row), gold_spans(row)
        tokenizer = backbone.tokenizer
        if not tokenizer.is_fast:
            raise BackboneError(f"{backbone.name}: its tokenizer does not say where tokens are")
        decoder = backbone.kind == "decoder"
        end = (
            tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
        )
        special = tokenizer.num_special_tokens_to_add(pair=True) + decoder
        limit = min(self.max_length, backbone.max_tokens or self.max_length)
        room = limit - special
        if room < 4:
            raise SettingsError(f"max_length={self.max_length}: must be {special + 4} or more")
        asked = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        if len(asked["input_ids"]) > room // 2:  # the context needs some room too
            question = question[: asked["offset_mapping"][room // 2 - 1][1]]
        question = f"{question}\n" if decoder else question  # they put nothing between two texts
        size = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        if size >= room:  # a question cut inside a character can have more tokens than before
            raise SettingsError(f"max_length={self.max_length}: too little for {question!r}")
        encoded = tokenizer(
            question,
            row.text,
            truncation="only_second",
            max_length=limit - decoder,
            stride=min(self.stride, (room - size) // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        examples = []
        for i, ids in enumerate(encoded["input_ids"]):
            parts = encoded.sequence_ids(i)
            places = [place for place, part in enumerate(parts) if part == 1]
            if not places:
                raise DataError(f"{row.where}: field 'text' has no token that is known")
            offsets = [encoded["offset_mapping"][i][place] for place in places]
            starts, ends = (array("I", numbers) for numbers in zip(*offsets, strict=True))
            ids = [*ids, end] if decoder else ids
            null = len(ids) - 1 if decoder else 0
            types = b""
            if "token_type_ids" in encoded and getattr(backbone.config, "type_vocab_size", 0) > 1:
                types = bytes(encoded["token_type_ids"][i])
            span = None if gold is None else _tokens_of(gold, offsets, places[0], null)
            window = Window(number, places[0], null, starts, ends, span, types)
            examples.append(Example(ids, row, window))
        return examples


def question_of(row: Row) -> str:
    """A row's question; `DataError` names file, line and field where there is none."""
    question = row.fields.get("question")
    if not isinstance(question, str) or not question.strip():
        if row.fields.get("question") is None:
            raise DataError(f"{row.where}: {row.columns.lacking('question')}")
        raise DataError(f"{row.where}: field 'question' is {question!r}, not a question")
    return question


def gold_spans(row: Row) -> tuple[Span, ...] | None:
    """A row's gold answers: none for a question without one, None where the row does not say.

    ``answers`` as in SQuAD, ``{"text": [...], "answer_start": [...]}`` or a list of ``{"text",
    "answer_start"}``, else ``answer`` and ``answer_start``, an empty answer for none. Raises
    `DataError`, naming file, line and field, for an answer that is not where it is said to be.
    """
    field = "answers" if row.fields.get("answers") is not None else "answer"
    value = row.fields.get(field)
    if field == "answer":
        if field not in row.fields:
            return None
        pairs = [] if value in (None, "") else [(value, row.fields.get("answer_start"))]
    elif isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(
                f"{row.where}: field 'answers' needs as many 'answer_start' as 'text' in two lists"
            )
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("text"), item.get("answer_start")) for item in value]
    else:
        raise DataError(
            f"{row.where}: field 'answers' is {value!r}; it should be "
            '{"text": [...], "answer_start": [...]}'
        )
    gold = []
    for text, start in pairs:
        if isinstance(start, str) and start.isdecimal():
            start = int(start)  # from a table, where everything is text
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise DataError(
                f"{row.where}: field {field!r}: {text!r} at {start!r} is no text at a character"
            )
        if (there := row.text[start : start + len(text)]) != text:
            at = row.text.find(text)
            where = f"it is at {at}" if at >= 0 else "the text does not have it anywhere"
            raise DataError(
                f"{row.where}: field {field!r}: {text!r} is not at character {start} of the text "
                f"({there!r} is); {where}"
            )
        gold.append((text, start))
    return tuple(gold)


def by_question(records: Sequence[WindowRecord]) -> list[list[WindowRecord]]:
    """The records of each question's windows, questions in the order of their numbers."""
    groups: dict[int, list[WindowRecord]] = {}
    for record in records:
        groups.setdefault(record["question"], []).append(record)
    return [groups[number] for number in sorted(groups)]


def _tokens_of(
    gold: Sequence[Span], offsets: Sequence[tuple[int, int]], first: int, null: int
) -> tuple[int, int]:
    """The first gold answer's first and last token, where all of it is in these tokens."""
    if not gold:
        return null, null
    text, start = gold[0]
    end = start + len(text)
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside or offsets[0][0] > start or offsets[-1][1] < end:
        return null, null
    return first + inside[0], first + inside[-1]


def _means(scores: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = zip(*scores, strict=True)
    return sum(first) / len(scores), sum(second) / len(scores)
