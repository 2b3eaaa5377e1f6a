"""Generating text: prompts in, continuations out, with a blend a row.

Knows a backbone's tokenizer and transformers' ``generate``; the blends are the model's work.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from adapters_hub.backbone.padding import padded
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.inference.inputs import check_text, rows_of
from adapters_hub.inference.routing import row_blends
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.runtime.merged import merging_pays
from adapters_hub.tasks.generation import decoder_inputs
from adapters_hub.text.prompts import (
    Conversation,
    Prompt,
    check_writes,
    conversation_ids,
    is_message,
    prompt_ids,
    prompt_of,
)

_NEW_TOKENS = 32  # where nobody says how many

Prompted = str | Mapping[str, object] | Conversation
"""A text as it stands, a row's fields for the prompt of its blend, or messages for a chat."""

Prompts = Prompted | Sequence[Prompted]


@torch.no_grad()
def generate(
    model: Runtime,
    prompts: Sequence[Prompted],
    adapters: Adapters,
    languages: Languages,
    options: dict[str, object],
) -> list[str]:
    """What `AdaptedModel.generate` returns; ``options`` are those of transformers."""
    check_writes(model.backbone)
    blends = row_blends(model, [*map(text_of, prompts)], adapters, languages)
    return continuations(model, blends, _encoded(model, prompts, blends), options)


def stream(
    model: Runtime,
    prompt: Prompted,
    adapters: Adapters,
    languages: Languages,
    options: dict[str, object],
) -> Iterator[str]:
    """What `AdaptedModel.stream` returns; what can be checked before is checked at once."""
    check_writes(model.backbone)
    if "streamer" in options:
        raise SettingsError("streamer: stream makes one itself; give it to generate")
    blends = row_blends(model, [text_of(prompt)], adapters, languages)
    inputs, _ = _inputs(model, _encoded(model, [prompt], blends), options, None, _NEW_TOKENS)
    return _pieces(model, blends, inputs)


def prompts_of(given: Prompts) -> list[Prompted]:
    """The prompts that a caller gives, one or several: texts, rows' fields, or conversations.

    A list of messages is one conversation, as in transformers. Raises `SettingsError` for what is
    none of these, such as token ids.
    """
    rows: list[object] = [given] if isinstance(given, Mapping) else rows_of(given, "texts")
    if rows and all(map(is_message, rows)):
        rows = [rows]
    return [_prompted(row, f"texts, text {number}") for number, row in enumerate(rows, 1)]


def text_of(prompt: Prompted) -> str:
    """What says a prompt's language: its text, or its fields' texts, or the last message."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Mapping):
        return str(prompt[-1].get("content") or "") if prompt else ""
    texts = [value for value in prompt.values() if isinstance(value, str)]
    return text if isinstance(text := prompt.get("text"), str) and text else "\n".join(texts)


def _prompted(given: object, place: str) -> Prompted:
    if isinstance(given, list | tuple) and given and all(map(is_message, given)):
        return given
    if isinstance(given, Mapping) and "input_ids" not in given:
        return given
    return check_text(given, place)


def continuations(
    model: Runtime,
    blends: Sequence[Blend],
    prompts: Sequence[Sequence[int]],
    options: dict[str, object],
    starts: Sequence[Sequence[int]] | None = None,
    new_tokens: int = _NEW_TOKENS,
) -> list[str]:
    """What comes after prompts (token ids), a blend a row; [] for no prompt.

    ``starts``: what an encoder-decoder's decoder is given in each row, all as many. ``new_tokens``:
    how many there are at most where neither options nor the model say it, and there is room. Raises
    `SettingsError` for options whose result is no text, and for token ids among them.
    """
    _check_options(options)
    if not prompts:
        return []
    written = continued_ids(model, blends, prompts, options, starts, new_tokens)
    return model.backbone.tokenizer.batch_decode(written, skip_special_tokens=True)


def continued_ids(
    model: Runtime,
    blends: Sequence[Blend],
    prompts: Sequence[Sequence[int]],
    options: dict[str, object],
    starts: Sequence[Sequence[int]] | None = None,
    new_tokens: int = _NEW_TOKENS,
) -> torch.Tensor:
    """Token ids (rows, new tokens) of what `continuations` writes, padding behind a row's end."""
    inputs, given = _inputs(model, prompts, options, starts, new_tokens)
    return run(model, blends, inputs)[:, given:]


_MORE_THAN_TEXT = (
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
)
"""Options of transformers that ask for tensors beside the tokens."""

_TOKENS = ("input_ids", "inputs", "attention_mask")


def _check_options(options: Mapping[str, object]) -> None:
    """Raise `SettingsError` for options of transformers that cannot work with texts."""
    for name in _MORE_THAN_TEXT:
        if options.get(name):
            raise SettingsError(
                f"{name}: texts are returned here, nothing else; for transformers' result call "
                "model.backbone.model.generate(…) inside `with model.adapted(rows, adapters):`"
            )
    for name in _TOKENS:
        if options.get(name) is not None:
            raise SettingsError(
                f"{name}: give texts, which are tokenised here; with token ids call "
                "model.backbone.model.generate(…) inside `with model.adapted(rows, adapters):`"
            )


def _inputs(
    model: Runtime,
    prompts: Sequence[Sequence[int]],
    options: dict[str, object],
    starts: Sequence[Sequence[int]] | None,
    new_tokens: int,
) -> tuple[dict[str, object], int]:
    """What transformers' ``generate`` takes, and how many tokens of what it returns were given."""
    _check_options(options)
    backbone = model.backbone
    decoder = backbone.kind == "decoder"
    inputs = padded(prompts, backbone, left=decoder)
    size, limit = inputs["input_ids"].shape[1], backbone.max_tokens
    options = {name: value for name, value in options.items() if value is not None}
    if starts is not None:
        inputs |= decoder_inputs(starts, backbone)
    if _said(backbone.model, options, "max_new_tokens", "max_length") == (None, None):
        room = limit - size if limit and decoder else new_tokens
        options["max_new_tokens"] = max(1, min(new_tokens, room))
    if any(_said(backbone.model, options, "stop_strings")):  # they are in the text, not in tokens
        options.setdefault("tokenizer", backbone.tokenizer)
    new = _new_tokens(backbone.model, size, options) if decoder else 0
    if limit and size + new > limit:
        raise BackboneError(
            f"a prompt of {size} tokens and {new} new ones: {backbone.name} has positions for "
            f"{limit}"
        )
    given = size if decoder else len(starts[0]) if starts else 0
    return {**inputs, **options}, given


def _encoded(
    model: Runtime, prompts: Sequence[Prompted], blends: Sequence[Blend]
) -> list[list[int]]:
    """Token ids: of texts as they stand, of rows' fields in the prompt of their blend, of
    conversations in the chat template.
    """
    texts: dict[int, str] = {}
    conversations: dict[int, Conversation] = {}
    by_chat: dict[bool, list[int]] = {False: [], True: []}  # rows whose prompt is a user's turn
    for row, (prompted, blend) in enumerate(zip(prompts, blends, strict=True)):
        if isinstance(prompted, str):
            texts[row] = prompted
            by_chat[False].append(row)
        elif isinstance(prompted, Mapping):
            prompt = prompt_of(model, blend) or Prompt("{text}")
            texts[row] = prompt.fill(prompted, f"text {row + 1}")
            by_chat[prompt.chat].append(row)
        else:
            conversations[row] = prompted
    ids: dict[int, list[int]] = {}
    for chat, rows in by_chat.items():
        encoded = prompt_ids(model.backbone, [texts[row] for row in rows], chat)
        ids.update(zip(rows, encoded, strict=True))
    if conversations:
        places = [f"text {row + 1}" for row in conversations]
        encoded = conversation_ids(model.backbone, [*conversations.values()], places)
        ids.update(zip(conversations, encoded, strict=True))
    return [ids[row] for row in range(len(prompts))]


_BY_ROW = (
    "prefix_allowed_tokens_fn", "logits_processor", "stopping_criteria", "past_key_values",
    "encoder_outputs", "cross_attention_cache",
)  # fmt: skip
"""Options that know rows by their number: with one of them the rows stay in their order."""


def run(model: Runtime, blends: Sequence[Blend], inputs: dict[str, Any]) -> torch.Tensor:
    """Token ids (rows, tokens) by transformers' ``generate``, from its inputs and options.

    One blend in all rows is merged into a view of the model first, where that costs less than the
    deltas in every step would, and fits into the memory that the resident adapters leave.
    """
    order = sorted(range(len(blends)), key=lambda row: str(blends[row]))
    sorts = order != list(range(len(blends))) and not any(
        inputs.get(n) is not None for n in _BY_ROW
    )
    if sorts:  # rows of one blend lie together, so that nothing is moved in each step
        inputs = {key: _taken(value, order) for key, value in inputs.items()}
        blends = [blends[row] for row in order]
    plan = model.plan(blends)
    ids = inputs["input_ids"]
    runner = model.backbone.model
    several = _said(runner, inputs, "num_beams", "num_return_sequences")
    rows = len(ids) * max(number or 1 for number in several)
    steps = max(0, _new_tokens(runner, ids.shape[1], inputs) - 1)
    if plan is not None and model.can_merge(plan):
        forwards = [ids.numel(), *[rows] * steps]
        if merging_pays(model.backbone.sites, model.pieces(blends[0]), forwards):
            runner = model.merged_view(plan, blends[0])
            plan = None
    with model.bank.using(plan):
        out = runner.generate(**inputs)
    out = getattr(out, "sequences", out)
    if sorts:
        back = torch.tensor(order).argsort().to(out.device)
        out = out.view(len(order), -1, out.shape[-1])[back].view(out.shape)
    return out


def _taken(value: object, order: list[int]) -> object:
    """A tensor of a row each in another order; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == len(order):
        return value[order]
    return value


def _said(model: PreTrainedModel, options: Mapping[str, object], *names: str) -> tuple[Any, ...]:
    """What the options say, else their ``generation_config``, else that of the model."""
    config = options.get("generation_config") or model.generation_config
    given = [options.get(name) for name in names]
    return tuple(
        getattr(config, name, None) if value is None else value
        for name, value in zip(names, given, strict=True)
    )


def _new_tokens(model: PreTrainedModel, size: int, options: Mapping[str, object]) -> int:
    new, whole = _said(model, options, "max_new_tokens", "max_length")
    return int(new if new is not None else (whole or size) - size)


# ── streaming ────────────────────────────────────────────────────────────────────────────────────


def _pieces(model: Runtime, blends: Sequence[Blend], inputs: dict[str, Any]) -> Iterator[str]:
    """Pieces of the text that another thread writes; it ends when nobody reads on."""
    pieces = _Pieces(model.backbone.tokenizer)
    left, failed = threading.Event(), []
    stopping = [*(inputs.pop("stopping_criteria", None) or ()), _Left(left)]

    def write() -> None:
        try:
            with torch.no_grad():  # a mode of this thread, and `run` sets its plan in it too
                criteria = StoppingCriteriaList(stopping)
                run(model, blends, {**inputs, "streamer": pieces, "stopping_criteria": criteria})
        except BaseException as error:  # raised again where the text is read
            failed.append(error)
        finally:
            pieces.text_queue.put(pieces.stop_signal)

    thread = threading.Thread(target=write, name="adapters_hub.stream", daemon=True)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield piece
    finally:
        left.set()
        thread.join()
    if failed:
        raise failed[0]


class _Left(StoppingCriteria):
    """Stops when the one who reads has left."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **options: object
    ) -> torch.Tensor:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


class _Pieces(TextIteratorStreamer):
    """Gives out a text as far as a further token did not change it.

    transformers' streamer waits for spaces, which some languages do not have, and decodes what is
    behind a line end by itself, from which the whole text's decoding may differ.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._last, self._given, self._begun = "", 0, False

    def put(self, value: torch.Tensor) -> None:
        if not self._begun:  # the first are the prompt, or what a decoder starts from
            self._begun = True
            return
        self.token_cache += value.flatten().tolist()
        text = self._text()
        same = 0
        for old, new in zip(self._last, text, strict=False):
            if old != new:
                break
            same += 1
        # a character's first bytes, or a space that a sign behind it would take away, may change
        stable = len(text[:same].rstrip("\ufffd").rstrip())
        self._last = text
        if stable > self._given:
            self.on_finalized_text(text[self._given : stable])
            self._given = stable

    def end(self) -> None:
        self.on_finalized_text(self._text()[self._given :])

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))
