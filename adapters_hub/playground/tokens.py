"""How probable each token of a text is under a blend, and which characters it stands for.

Knows token ids and a decoder's logits; does not know requests or pages.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from adapters_hub.backbone.padding import padded
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.language_modeling import LanguageModeling

_MOST_LOGITS = 1 << 25  # numbers in one forward's logits: 128 MiB


@dataclass(frozen=True)
class Piece:
    """Some characters of a text: their bits under a blend, and on the bare backbone.

    ``bits`` is -log2 of their probability, given all before; None where nothing comes before them.
    """

    text: str
    bits: float | None
    bare: float | None


@dataclass(frozen=True)
class Reading:
    """A text under one blend: its bits, its bits per UTF-8 byte, and both of its pieces."""

    bits: float
    bits_per_byte: float
    pieces: list[Piece]


def read_text(model: Runtime, text: str, blends: Sequence[Blend]) -> list[Reading]:
    """A text under each of these blends, counted as the language-modelling task counts it.

    Raises `BackboneError` for a backbone that does not predict the next token, `SettingsError` for
    a text without tokens.
    """
    backbone = model.backbone
    if backbone.kind != "decoder" or not backbone.has_lm_head:
        raise BackboneError(f"{backbone.name} does not predict the next token of a text")
    if not text:
        raise SettingsError("there is no text to read")
    windows = [e.input_ids for e in LanguageModeling().encode([Row(text)], backbone)]
    distinct = list(dict.fromkeys([Blend(), *blends]))
    rows = [(window, blend) for blend in distinct for window in windows]
    parts = iter(token_bits(model, [row for row, _ in rows], [blend for _, blend in rows]))
    known = {blend: [bits for _ in windows for bits in next(parts)] for blend in distinct}
    bare = known[Blend()]
    ids = [*windows[0], *(token for window in windows[1:] for token in window[1:])]
    spans = spans_of(backbone.tokenizer, ids)
    readings = []
    for blend in blends:
        total = sum(known[blend])
        pieces = _pieces(spans, [None, *known[blend]], [None, *bare])
        readings.append(Reading(total, total / len(text.encode()), pieces))
    return readings


def read_written(
    model: Runtime, prompt: Sequence[int], written: Sequence[int], blend: Blend
) -> list[Piece]:
    """The pieces of what a blend wrote behind a prompt, both as token ids of a decoder."""
    ids = [*prompt, *written]
    ours, bare = token_bits(model, [ids, ids], [blend, Blend()])
    tail = len(ids) - len(written)
    spans = spans_of(model.backbone.tokenizer, written)
    return _pieces(spans, ours[tail - 1 :], bare[tail - 1 :])


@torch.no_grad()
def token_bits(
    model: Runtime, rows: Sequence[Sequence[int]], blends: Sequence[Blend]
) -> list[list[float]]:
    """-log2 p of every token of a row but its first, under the row's blend; for decoders."""
    backbone = model.backbone
    size = max(map(len, rows)) * backbone.vocabulary
    together = max(1, _MOST_LOGITS // size)
    bits: list[list[float]] = []
    for at in range(0, len(rows), together):
        chosen = rows[at : at + together]
        inputs = padded(chosen, backbone)
        adapters = list(blends[at : at + together])
        logits = model(adapters=adapters, languages=None, **inputs, **backbone.lm_options).logits
        for row, of_row in zip(chosen, logits, strict=True):
            targets = torch.tensor(row[1:], device=of_row.device).unsqueeze(1)
            nats = -of_row[: len(row) - 1].float().log_softmax(-1).gather(1, targets)
            bits.append((nats.squeeze(1) / math.log(2)).tolist())
    return bits


def spans_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, range]]:
    """Characters of a text and the tokens that they are, in order; together they are the text.

    Tokens that are parts of a character, or a mark above or below one, stand with it. What has no
    characters, such as the end of the text, goes with what follows, and at the end by itself.
    """
    texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)]
    whole, spans, shown, first = texts[-1], [], 0, 0
    for end, text in enumerate(texts[1:], 1):
        new = text[shown:]
        same = whole.startswith(text) and not text.endswith("\ufffd")
        mark = unicodedata.category(whole[len(text)])[0] == "M" if len(text) < len(whole) else False
        if new and same and not mark:
            spans.append((new, range(first, end)))
            shown, first = len(text), end
    if first < len(ids):  # an end without characters, or half of one
        spans.append((whole[shown:], range(first, len(ids))))
    return spans


def _pieces(
    spans: Sequence[tuple[str, range]],
    bits: Sequence[float | None],
    bare: Sequence[float | None],
) -> list[Piece]:
    def total(of: Sequence[float | None], tokens: range) -> float | None:
        known = [value for value in of[tokens.start : tokens.stop] if value is not None]
        return sum(known) if known else None

    return [Piece(text, total(bits, tokens), total(bare, tokens)) for text, tokens in spans]
