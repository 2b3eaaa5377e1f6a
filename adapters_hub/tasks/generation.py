"""Text generation: a row's text, set into a prompt, is answered by its target.

The backbone's head serves, frozen: causal in a decoder, whose loss is on the target alone, and
in the decoder of an encoder-decoder.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.pairs import is_text
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.metrics.text_scores import chrf, has_sacrebleu, signature
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example, Shown, pad
from adapters_hub.tasks.bits import IGNORED, BitsRecord, BitsTask
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.generation import DECLARATION, GenerationOptions
from adapters_hub.text.prompts import Prompt, check_writes, prompt_ids, prompt_of
from adapters_hub.text.tokenising import surroundings

if TYPE_CHECKING:
    from peft import LoraConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What a decoder reads and writes: token ids, of which the first ``given`` are not predicted
    (a decoder's prompt, an encoder-decoder's start); ``bytes`` of the target's text as UTF-8.
    """

    ids: tuple[int, ...]
    given: int
    bytes: int


@dataclass(frozen=True)
class Generation(BitsTask[Target], GenerationOptions):
    """Cross-entropy of each row's ``target`` (a field), its end token included.

    ``prompt`` is a template over the row's fields (None: the text, in a decoder with a line end
    behind it), with ``chat`` a user's turn in the tokenizer's chat template; an adapter keeps both.
    A row longer than ``max_length`` loses a part of its prompt: the beginning in a decoder, the end
    in an encoder-decoder, where the target has another ``max_length`` tokens. A target is never
    cut: one that does not fit is an error. Bits per byte are over the bytes of targets; a task made
    by `final` also measures chrF of what is written, greedily, in ``max_new_tokens``, if sacrebleu
    is installed.
    """

    writes: bool = False
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and "target" in Prompt(self.prompt).names:
            raise SettingsError(f"prompt={self.prompt!r}: the target is what is to be written")

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        for row in (row for rows in splits.values() for row in rows):
            target_of(row, columns.get("target", "target"))
        return super().from_rows(options, splits, columns)

    @classmethod
    def of_blend(cls, model: Runtime, blend: Blend, max_length: int) -> Self:
        prompt = prompt_of(model, blend)
        if prompt is None:
            return cls(max_length=max_length)
        return cls(max_length=max_length, prompt=prompt.template, chat=prompt.chat)

    def peft_task_type(self, backbone: Backbone) -> str:
        check_writes(backbone)
        return "CAUSAL_LM" if backbone.kind == "decoder" else "SEQ_2_SEQ_LM"

    def default_prompt(self, backbone: Backbone) -> str:
        """The template where none was given."""
        return "{text}\n" if backbone.kind == "decoder" else "{text}"

    def prompting(self, backbone: Backbone) -> Prompt:
        """The prompt that rows are set into on a backbone."""
        return Prompt(self.prompt or self.default_prompt(backbone), self.chat)

    def new_adapter(
        self, info: AdapterInfo, backbone: Backbone, lora: "LoraConfig | None", seed: int = 0
    ) -> Adapter:
        prompts = self.prompting(backbone).stored()
        return super().new_adapter(replace(info, prompts=prompts), backbone, lora, seed)

    # ── rows to tokens ───────────────────────────────────────────────────────────────────────

    def fields(self, row: Row) -> dict[str, object]:
        """What a prompt may name."""
        fields = {"text": row.text, "language": row.language, "domain": row.domain, **row.fields}
        if isinstance(row.label, str):
            fields["label"] = row.label
        return {name: value for name, value in fields.items() if name != "target"}

    def sources(
        self, rows: Sequence[Row], backbone: Backbone, limits: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Token ids of each row's prompt, cut at its limit."""
        prompt = self.prompting(backbone)
        texts = [prompt.fill(self.fields(row), row.where) for row in rows]
        return prompt_ids(backbone, texts, prompt.chat, limits)

    def starts(self, rows: Sequence[Row], backbone: Backbone) -> list[list[int]]:
        """What the decoder of an encoder-decoder is given in each row, before it writes."""
        return [[start_token(backbone)] for _ in rows]

    def targets(self, rows: Sequence[Row], backbone: Backbone) -> list[list[int]]:
        """Token ids of each row's target, with the end token behind it."""
        texts = [target_of(row) for row in rows]
        special = backbone.kind == "encoder-decoder"  # as its decoder was pretrained to write
        encoded = backbone.tokenizer(texts, add_special_tokens=special)["input_ids"]
        end = backbone.tokenizer.eos_token_id
        return [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in encoded]

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Target]]:
        return self._encoded(rows, backbone, logging.WARNING)

    def encode_again(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Target]]:
        return self._encoded(rows, backbone, logging.DEBUG)

    def _encoded(
        self, rows: Sequence[Row], backbone: Backbone, level: int
    ) -> list[Example[Target]]:
        """Examples; how many prompts were cut is logged at a level."""
        check_writes(backbone)
        if not rows:
            return []  # which tokenizers do not take
        limit = min(self.max_length, backbone.max_tokens or self.max_length)
        decoder = backbone.kind == "decoder"
        targets = self.targets(rows, backbone)
        starts = [[] for _ in rows] if decoder else self.starts(rows, backbone)
        least = 1 + (sum(map(len, surroundings(backbone.tokenizer))) if decoder else 0)
        needs = [
            len(target_ids) + (least if decoder else len(given) - 1)
            for target_ids, given in zip(targets, starts, strict=True)
        ]
        self._check_room(rows, needs, limit, backbone)
        limits = [limit - len(target_ids) if decoder else limit for target_ids in targets]
        sources = self.sources(rows, backbone)
        if cut := sum(len(ids) > most for ids, most in zip(sources, limits, strict=True)):
            end = "beginning" if decoder else "end"
            said = "%d of %d prompts lose their %s: max_length=%d"
            log.log(level, said, cut, len(rows), end, limit)
            sources = self.sources(rows, backbone, limits)
        examples = []
        for row, source, given, target_ids in zip(rows, sources, starts, targets, strict=True):
            before = source if decoder else given
            ids = (*before, *target_ids)
            target = Target(ids, len(before), len(target_of(row).encode()))
            examples.append(Example(list(ids) if decoder else source, row, target))
        return examples

    def _check_room(
        self, rows: Sequence[Row], needs: Sequence[int], limit: int, backbone: Backbone
    ) -> None:
        long = [number for number, need in enumerate(needs) if need > limit]
        if not long:
            return
        first, most = rows[long[0]], max(needs)
        room = backbone.max_tokens or most
        advice = f"--max-length {most} takes all" if most <= room else f"{backbone.name} has {room}"
        raise DataError(
            f"{first.where}: field 'target' needs {needs[long[0]]} tokens, and max_length={limit} "
            f"(so in {len(long)} rows of {len(rows)}); a target is never cut: {advice}, or shorten "
            "or leave out these rows"
        )

    def collate(
        self, examples: Sequence[Example[Target]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        batch = pad(examples, backbone)
        if backbone.kind == "decoder":
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
            for row, example in enumerate(examples):
                labels[row, : example.target.given] = IGNORED
            return {**batch, "labels": labels}
        decoded = padded([example.target.ids[:-1] for example in examples], backbone)["input_ids"]
        labels = torch.full_like(decoded, IGNORED, device="cpu")
        for row, example in enumerate(examples):
            ids, given = example.target.ids, example.target.given
            labels[row, given - 1 : len(ids) - 1] = torch.tensor(ids[given:])
        return {**batch, "decoder_input_ids": decoded, "labels": labels.to(decoded.device)}

    # ── loss and metrics ─────────────────────────────────────────────────────────────────────

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Target]],
    ) -> list[BitsRecord]:
        records = super().records(model, batch, heads, examples)
        if self.writes:
            texts = self.written(model, examples)
            for record, text, example in zip(records, texts, examples, strict=True):
                record["written"], record["target"] = text, target_of(example.row)
        return records

    def counted(self, example: Example[Target], backbone: Backbone) -> tuple[int | None, bool]:
        return example.target.bytes, True

    def metrics(self, records: Sequence[BitsRecord]) -> dict[str, float]:
        bits = super().metrics(records)
        return bits | (self.text_metrics(records) if "written" in records[0] else {})

    def text_metrics(self, records: Sequence[BitsRecord]) -> dict[str, float]:
        """What is measured on written texts."""
        pairs = [(record["written"], record["target"]) for record in records]
        return {"chrf": chrf(pairs)}

    def final(self) -> "Generation":
        return replace(self, writes=True) if has_sacrebleu() else self

    def shown(self, backbone: Backbone) -> list[Shown]:
        shown = super().shown(backbone)
        if self.writes:
            shown.append(Shown("chrf", "chrF", True, signature("chrf")))
        return shown

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def written(self, model: Runtime, examples: Sequence[Example[Target]]) -> list[str]:
        """What the model writes for each example, greedily, under the current plan."""
        backbone, decoder = model.backbone, model.backbone.kind == "decoder"
        given = [example.target.ids[: example.target.given] for example in examples]
        prompts = given if decoder else [example.input_ids for example in examples]
        inputs = padded(prompts, backbone, left=decoder)
        size = inputs["input_ids"].shape[1] if decoder else len(given[0])
        if not decoder:
            inputs |= decoder_inputs(given, backbone)
        new = min(self.max_new_tokens, (backbone.max_tokens or 10**9) - size)
        options = {"max_new_tokens": max(1, new), "do_sample": False, "num_beams": 1}
        if backbone.shards is not None:  # processes write as long as one of them has to
            options["synced_gpus"] = True
        out = backbone.model.generate(**inputs, **options)
        texts = backbone.tokenizer.batch_decode(out[:, size:], skip_special_tokens=True)
        rows = [example.row for example in examples]
        return [self.finish(text, row, backbone) for text, row in zip(texts, rows, strict=True)]

    def finish(self, text: str, row: Row, backbone: Backbone) -> str:
        """The answer in what was written."""
        return text.strip()

    def usage(self, row: Row, backbone: Backbone) -> str:
        names = self.prompting(backbone).names
        used = {name: value for name, value in self.fields(row).items() if name in names}
        return f"model.generate([{used!r}])"


def target_of(row: Row, column: str = "target") -> str:
    """A row's target; `DataError` where it is missing or no text."""
    text = row.fields.get("target")
    if text is None:
        lacking = row.columns.lacking("target", ", and it is the text to be written")
        raise DataError(f"{row.where}: {lacking}")
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise DataError(f"{row.where}: field {column!r} has {text!r}, which is not text")
    return text


def start_token(backbone: Backbone) -> int:
    """The token an encoder-decoder's decoder starts from."""
    for said in (backbone.config, backbone.model.generation_config):
        start = getattr(said, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise BackboneError(f"{backbone.name}: its configuration has no decoder_start_token_id")


def decoder_inputs(starts: Sequence[Sequence[int]], backbone: Backbone) -> dict[str, Tensor]:
    """What ``generate`` takes, so that each row's decoder starts from its tokens, all as many.

    The first of them is also given as the start token, before which transformers would else put
    the configuration's.
    """
    ids = torch.tensor([list(start) for start in starts], device=backbone.device)
    return {"decoder_input_ids": ids, "decoder_start_token_id": ids[:, 0]}
