"""Translation: text generation whose rows say from which language into which.

A backbone is told the languages as tokens of the encoder and the decoder (M2M100, NLLB, mBART),
else by name in the prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.pairs import translations
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.library import languages
from adapters_hub.metrics.text_scores import (
    bleu,
    chrf_plus_plus,
    require_scores,
    signature,
    wrong_language,
)
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Shown
from adapters_hub.tasks.bits import BitsRecord
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.translation import DECLARATION, TranslationOptions
from adapters_hub.tasks.generation import Generation, Target, start_token, target_of
from adapters_hub.text.language_codes import codes_of, decoder_start, special_tokens
from adapters_hub.text.tokenising import cut

_DECODER = "{source_language}: {text}\n{target_language}:\n"
_ENCODER_DECODER = "translate {source_language} to {target_language}: {text}"  # T5's


@dataclass(frozen=True)
class Translation(Generation, TranslationOptions):
    """`Generation` of the ``target`` in ``target_language`` from a text in the row's language.

    A prompt may name ``source_language`` and ``target_language``, in English. A row is drawn and
    shown under the language it is translated into, and that language's frozen adapter is the one
    below, in both halves of an encoder-decoder: a row has one blend. ``languages`` are those that
    a written text may turn out to be in.
    """

    languages: tuple[str, ...] = ()
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    across: ClassVar[bool] = True

    @classmethod
    def prepare(
        cls, rows: Sequence[Row], columns: Mapping[str, str], options: TaskOptions
    ) -> list[Row]:
        assert isinstance(options, TranslationOptions)
        targets = tuple(dict.fromkeys(map(languages.canonical, options.target_language)))
        return translations(rows, columns, targets)

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        require_scores()
        task = super().from_rows(options, splits, columns)
        rows = [row for rows in splits.values() for row in rows]
        tags = {row.language for row in rows} | {target_language(row) for row in rows}
        return replace(task, languages=tuple(sorted(tag for tag in tags if tag)))

    def default_prompt(self, backbone: Backbone) -> str:
        if codes_of(backbone):
            return "{text}"
        return _DECODER if backbone.kind == "decoder" else _ENCODER_DECODER

    def rows(self, row: Row) -> list[Row]:
        return [replace(row, language=target_language(row))]

    def language(self, row: Row) -> str | None:
        return target_language(row)

    # ── rows to tokens ───────────────────────────────────────────────────────────────────────

    def fields(self, row: Row) -> dict[str, object]:
        source, target = source_language(row), target_language(row)
        names = {
            "source_language": languages.name(source),
            "target_language": languages.name(target),
        }
        return {**super().fields(row), **names}

    def sources(
        self, rows: Sequence[Row], backbone: Backbone, limits: Sequence[int] | None = None
    ) -> list[list[int]]:
        if not codes_of(backbone):
            return super().sources(rows, backbone, limits)
        prompt = self.prompting(backbone)
        texts = [prompt.fill(self.fields(row), row.where) for row in rows]
        tags = [source_language(row) for row in rows]
        around = {tag: special_tokens(tag, backbone) for tag in set(tags)}
        sources = []
        for number, ids in enumerate(_bare(texts, backbone)):
            before, after = around[tags[number]]
            if limits is not None:
                ids = cut(ids, limits[number] - len(before) - len(after), backbone)
            sources.append([*before, *ids, *after])
        return sources

    def starts(self, rows: Sequence[Row], backbone: Backbone) -> list[list[int]]:
        if not codes_of(backbone):
            return super().starts(rows, backbone)
        start, tags = start_token(backbone), [target_language(row) for row in rows]
        known = {tag: decoder_start(tag, backbone, start) for tag in set(tags)}
        return [known[tag] for tag in tags]

    def targets(self, rows: Sequence[Row], backbone: Backbone) -> list[list[int]]:
        if not codes_of(backbone):
            return super().targets(rows, backbone)
        end = [backbone.tokenizer.eos_token_id]
        return [ids + end for ids in _bare([target_of(row) for row in rows], backbone)]

    # ── metrics ──────────────────────────────────────────────────────────────────────────────

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Target]],
    ) -> list[BitsRecord]:
        records = super().records(model, batch, heads, examples)
        return [
            {**record, "language": target_language(example.row)}
            for record, example in zip(records, examples, strict=True)
        ]

    def text_metrics(self, records: Sequence[BitsRecord]) -> dict[str, float]:
        """The plain mean over the languages written in, each of which has a tokenizer."""
        by_language: dict[str, list[tuple[str, str]]] = {}
        for record in records:
            pair = record["written"], record["target"]
            by_language.setdefault(record["language"], []).append(pair)
        scores: dict[str, list[float]] = {}
        for tag, pairs in by_language.items():
            scores.setdefault("chrf++", []).append(chrf_plus_plus(pairs))
            scores.setdefault("bleu", []).append(bleu(pairs, tag))
            wrong = wrong_language([text for text, _ in pairs], tag, self.languages)
            if wrong is not None:
                scores.setdefault("wrong_language", []).append(wrong)
        return {
            name: sum(by_language_scores) / len(by_language_scores)
            for name, by_language_scores in scores.items()
        }

    def final(self) -> "Translation":
        return replace(self, writes=True)

    def shown(self, backbone: Backbone) -> list[Shown]:
        shown = [Shown(self.metric, self.metric_name(backbone), self.higher_is_better)]
        if not self.writes:
            return shown
        tokenizers = dict.fromkeys(signature("bleu", tag) for tag in self.languages)
        among = f"taken for the likeliest of {' '.join(self.languages)}"
        return [
            *shown,
            Shown("chrf++", "chrF++", True, signature("chrf++")),
            Shown("bleu", "BLEU", True, ", ".join(tokenizers)),
            Shown("wrong_language", "share in the wrong language", False, among),
        ]

    def finish(self, text: str, row: Row, backbone: Backbone) -> str:
        """A decoder that was not trained to end goes on with other lines."""
        text = text.strip()
        lines = backbone.kind == "decoder" and "\n" not in row.text.strip()
        return text.partition("\n")[0].strip() if lines else text

    def usage(self, row: Row, backbone: Backbone) -> str:
        source, target = source_language(row), target_language(row)
        return f"model.translate([{row.text!r}], source={source!r}, target={target!r})"


def source_language(row: Row) -> str:
    """The language a row is translated from; `DataError` where it does not say."""
    return _said(row, row.language, "language")


def target_language(row: Row) -> str:
    """The language a row is translated into; `DataError` where it does not say."""
    tag = row.fields.get("target_language")
    return _said(row, tag if isinstance(tag, str) else None, "target_language")


def _said(row: Row, tag: str | None, field: str) -> str:
    if tag is None:
        raise DataError(
            f"{row.where}: field {field!r} is missing, and translation needs it; or give the texts "
            "that translate each other one id"
        )
    return tag


def _bare(texts: Sequence[str], backbone: Backbone) -> list[list[int]]:
    """Token ids without special tokens."""
    encoded: list[list[int]] = backbone.tokenizer(list(texts), add_special_tokens=False)[
        "input_ids"
    ]
    return encoded
