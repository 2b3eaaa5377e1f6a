"""Each task on the plain side: PEFT with `transformers.Trainer`, or sentence-transformers' trainer.

Written as their documentation writes it. The rows of both sides are the same, and so is the
function that scores them; `Answering`, `Tagging` and `Translating` prepare their own token ids and
check that they are those of this package.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from ways import OURS, Ways

from adapters_hub.data.reading import read_data, select, with_held_out
from adapters_hub.data.rows import Row
from adapters_hub.library import languages
from adapters_hub.metrics.ranking import ranking_metrics, ranks
from adapters_hub.tasks.pooling import padded_parts
from adapters_hub.tasks.question_answering import QuestionAnswering, gold_spans


class Classifying(Ways):
    """One label a text."""

    name = "classification"
    scores: ClassVar = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

    def shuffled(self, rows: Sequence[Row]) -> list[Row]:
        return super().shuffled([row for row in rows if row.label])

    def plain(self) -> Any:
        auto_class = transformers.AutoModelForSequenceClassification
        return self.peft_model(auto_class, num_labels=len(self.task.labels))

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        features = [{"input_ids": e.input_ids, "labels": e.target[0]} for e in self.examples]
        collator = transformers.DataCollatorWithPadding(self.tokenizer())
        return plain_loop(model, arguments, features, collator)

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        records = []
        order = sorted(self.test, key=lambda example: len(example.input_ids))
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            best = model(**self.task.collate(chosen, self.model.backbone)).logits.argmax(-1)
            records += [
                {"label": example.row.label, "predicted": self.task.labels[number]}
                for example, number in zip(chosen, best.tolist(), strict=True)
            ]
        return self.task.metrics(records)


@dataclass(frozen=True)
class _PlainAnswers(QuestionAnswering):
    """The task with another model's logits: answers are decoded and counted in one way."""

    plain: Any = None

    def logits(self, model: Any, batch: dict[str, Tensor], heads: Any) -> Tensor:
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        out = self.plain(**{key: batch[key] for key in inputs if key in batch})
        logits = torch.stack([out.start_logits, out.end_logits], -1)
        allowed = batch["context"].scatter(1, batch["null"][:, None], True)
        return logits.masked_fill(~allowed[..., None], -torch.inf)


class Answering(Ways):
    """Spans of a context, for encoders; all questions of a context are on one side."""

    name = "question-answering"
    scores: ClassVar = {"exact_match": "exact match", "f1": "F1"}
    lora_options: ClassVar = {"exclude_modules": ["qa_outputs"]}  # PEFT trains that as it is

    def read(self) -> tuple[list[Row], list[Row]]:
        """All rows, cut by context: a fifth for the test."""
        splits = read_data(self.options.data)
        rows = [row for own in splits.values() for row in select(own, self.options.language)]
        splits = with_held_out({"train": [replace(row, key=row.text) for row in rows]}, share=0.2)
        return splits["train"] + splits["dev"], splits["test"]

    def plain(self) -> Any:
        return self.peft_model(transformers.AutoModelForQuestionAnswering)

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        tokenizer = self.tokenizer()
        features = [f for row in self.train_rows for f in self.features(row, tokenizer)]
        own = [(e.input_ids, *e.target.span) for e in self.examples]
        check(own, [(f["input_ids"], f["start_positions"], f["end_positions"]) for f in features])
        collator = transformers.DataCollatorWithPadding(tokenizer)
        return plain_loop(model, arguments, features, collator)

    def features(self, row: Row, tokenizer: Any) -> list[dict[str, Any]]:
        """A question and its context, in overlapping pieces, with the tokens of the answer."""
        text, start = gold_spans(row)[0]
        end = start + len(text)
        encoded = tokenizer(
            row.fields["question"],
            row.text,
            truncation="only_second",
            max_length=self.options.max_length,
            stride=self.options.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found = []
        for piece, offsets in enumerate(encoded["offset_mapping"]):
            sides = encoded.sequence_ids(piece)
            first = sides.index(1)
            last = len(sides) - 1 - sides[::-1].index(1)
            span = (0, 0)  # the first token, where the piece does not hold the answer
            if offsets[first][0] <= start and offsets[last][1] >= end:
                begin = max(i for i in range(first, last + 1) if offsets[i][0] <= start)
                behind = min(i for i in range(first, last + 1) if offsets[i][1] >= end)
                span = (begin, behind)
            inputs = ("input_ids", "attention_mask", "token_type_ids")
            feature = {key: encoded[key][piece] for key in inputs if key in encoded}
            found.append({**feature, "start_positions": span[0], "end_positions": span[1]})
        return found

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        task, backbone = self.task, self.model.backbone
        plain = _PlainAnswers(task.max_length, task.stride, no_answer=task.no_answer, plain=model)
        records = []
        for start in range(0, len(self.test), 64):
            chosen = self.test[start : start + 64]
            batch = plain.collate(chosen, backbone)
            records += plain.records(self.model, batch, [], chosen)
        return plain.metrics(records)


class Tagging(Ways):
    """Spans of words."""

    name = "token-classification"
    scores: ClassVar = {"f1": "span F1", "accuracy": "accuracy of tags"}
    lora_options: ClassVar = {"exclude_modules": ["classifier"]}  # PEFT trains that as it is

    def plain(self) -> Any:
        auto_class = transformers.AutoModelForTokenClassification
        return self.peft_model(auto_class, num_labels=len(self.task.labels))

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        tokenizer = self.tokenizer()
        features = [self.feature(row, tokenizer) for row in self.train_rows]
        check([e.input_ids for e in self.examples], [f["input_ids"] for f in features])
        collator = transformers.DataCollatorForTokenClassification(tokenizer)
        return plain_loop(model, arguments, features, collator)

    def feature(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        """A row's words with a tag at the first token of each."""
        numbers = {tag: number for number, tag in enumerate(self.task.labels)}
        encoded = tokenizer(
            row.fields["words"],
            is_split_into_words=True,
            truncation=True,
            max_length=self.options.max_length,
        )
        words, tags = encoded.word_ids(), row.fields["tags"]
        labels = [
            -100 if word is None or word == before else numbers[tags[word]]
            for word, before in zip(words, [None, *words], strict=False)
        ]
        return {"input_ids": encoded["input_ids"], "labels": labels}

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        records = []
        for example in self.test:
            batch = self.task.collate([example], self.model.backbone)
            best = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[0]
            tags, words = best.argmax(-1).tolist(), example.target
            names = self.task.labels
            records.append(
                {
                    "tags": [names[n] for n in words.tags],
                    "predicted": ["O" if p is None else names[tags[p]] for p in words.places],
                    "cut": sum(place is None for place in words.places),
                }
            )
        return self.task.metrics(records)


class Translating(Ways):
    """A decoder writes a line of one language in another; ``--language`` says which two."""

    name = "translation"
    scores: ClassVar = {"bits": "bits per byte", "perplexity": "perplexity"}

    def read(self) -> tuple[list[Row], list[Row]]:
        return lines(self.options, "target", "target_language")

    def plain(self) -> Any:
        return self.peft_model(transformers.AutoModelForCausalLM)

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        tokenizer = self.tokenizer()
        features = [self.feature(row, tokenizer) for row in self.train_rows]
        own = [(e.input_ids, e.target.given) for e in self.examples]
        check(own, [(f["input_ids"], f["labels"].count(-100)) for f in features])
        collator = transformers.DataCollatorForSeq2Seq(tokenizer)
        return plain_loop(model, arguments, features, collator)

    def feature(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        """A line under the names of both languages, and labels on its translation alone."""
        tags = row.language, row.fields["target_language"]
        source, target = map(languages.name, tags)
        prompt = tokenizer(f"{source}: {row.text}\n{target}:\n")["input_ids"]
        answer = tokenizer(row.fields["target"], add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    @torch.no_grad()
    def score_plain(self, model: Any) -> dict[str, float]:
        records = []
        for start in range(0, len(self.test), 32):
            chosen = self.test[start : start + 32]
            batch = self.task.collate(chosen, self.model.backbone)
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            logits, labels = model(**inputs).logits[:, :-1].mT, batch["labels"][:, 1:]
            nats = functional.cross_entropy(logits, labels, reduction="none").sum(1)
            tokens = (labels != -100).sum(1)
            records += [
                {"nats": n, "tokens": t, "bytes": example.target.bytes}
                for n, t, example in zip(nats.tolist(), tokens.tolist(), chosen, strict=True)
            ]
        return self.task.metrics(records)


class Retrieving(Ways):
    """A line of one language finds the same line of another; ``--language`` says which two."""

    name = "retrieval"
    scores: ClassVar = {"ndcg@10": "nDCG@10", "accuracy@1": "accuracy@1"}
    samplings = ("random", "same")
    lora_options: ClassVar = {
        "exclude_modules": ["pooler.dense"]
    }  # which no embedding goes through

    def read(self) -> tuple[list[Row], list[Row]]:
        return lines(self.options, "positive", "positive_language")

    def plain(self) -> Any:
        from sentence_transformers import SentenceTransformer

        config = transformers.AutoConfig.from_pretrained(self.folder)
        model = SentenceTransformer(
            self.folder,
            device="cpu",
            config_kwargs=self.dropouts(config),
            model_kwargs={"dtype": torch.float32},
        )
        model.max_seq_length = self.options.max_length
        model.add_adapter(self.lora())
        return model

    def plain_trainer(self, model: Any, arguments: dict[str, Any]) -> transformers.Trainer:
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        rows = [{"anchor": r.text, "positive": r.fields["positive"]} for r in self.train_rows]
        return SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(**arguments),
            train_dataset=Dataset.from_list(rows),
            loss=MultipleNegativesRankingLoss(model, scale=1 / self.options.temperature),
        )

    def padded(self, batch: dict[str, torch.Tensor]) -> int:
        lengths = batch["attention_mask"].sum(1)
        return sum(len(part) * int(lengths[part].max()) for part in padded_parts(lengths))

    def score_ours(self) -> dict[str, float]:
        return self.score(lambda texts: self.model.embed(texts, OURS))

    def score_plain(self, model: Any) -> dict[str, float]:
        model.max_seq_length = self.model.backbone.max_tokens  # whole texts, as `embed` takes them
        return self.score(lambda texts: model.encode(texts, convert_to_tensor=True).cpu())

    def score(self, embed: Any) -> dict[str, float]:
        """How a test row's text finds its own line among all of the test's."""
        queries = embed([row.text for row in self.test_rows])
        documents = embed([row.fields["positive"] for row in self.test_rows])
        return ranking_metrics(ranks(queries, documents, [[n] for n in range(len(queries))]))


def plain_loop(
    model: Any, arguments: dict[str, Any], features: list[dict[str, Any]], collator: Any
) -> transformers.Trainer:
    """The trainer as its documentation sets it up."""
    settings = transformers.TrainingArguments(**arguments)
    return transformers.Trainer(model, settings, data_collator=collator, train_dataset=features)


def check(own: list[Any], plain: list[Any]) -> None:
    """End the run where the plain side's token ids and targets are not this package's."""
    if own != plain:
        raise SystemExit(
            "the plain features are not those of adapters_hub; it may help to raise --max-length"
        )


def lines(options: argparse.Namespace, other: str, language: str) -> tuple[list[Row], list[Row]]:
    """Lines of ``LANGUAGE.txt`` of two languages, side by side; the last 400 are the test's."""
    one, two = options.language or ("en", "de")
    files = [
        (Path(options.data) / f"{name}.txt").read_text("utf-8").splitlines() for name in (one, two)
    ]
    rows = [
        Row(text, None, one, key=str(n), fields={other: again, language: two})
        for n, (text, again) in enumerate(zip(*files, strict=True))
    ]
    return rows[:-400], rows[-400:]


APPLICATIONS: dict[str, type[Ways]] = {
    ways.name: ways for ways in (Classifying, Answering, Tagging, Translating, Retrieving)
}
