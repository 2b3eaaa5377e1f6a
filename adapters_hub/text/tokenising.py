"""Texts as token ids: cut at what a backbone can read, never empty, special tokens kept.

Knows tokenizers; does not know prompts, tasks or adapters.
"""

from collections.abc import Sequence
from typing import Any

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import SettingsError


def encode_texts(texts: Sequence[str], backbone: Backbone, max_length: int) -> list[list[int]]:
    """Token ids of each text, cut at ``max_length`` or the backbone's own limit; one at least."""
    if not texts:
        return []  # which tokenizers do not take
    found = backbone.tokenizer(
        list(texts),
        truncation=True,
        max_length=text_limit(backbone, max_length),
        # the end token's name inside a text would be a second end, from which classes read
        split_special_tokens=backbone.kind == "encoder-decoder",
    )["input_ids"]
    return [ids or filler(backbone.tokenizer) for ids in found]


def text_limit(backbone: Backbone, max_length: int) -> int:
    """At how many tokens a text is cut; `SettingsError` where special tokens leave it none."""
    least = 1 + backbone.tokenizer.num_special_tokens_to_add()
    if max_length < least:
        raise SettingsError(f"max_length={max_length}: must be {least} or more on {backbone.name}")
    return min(max_length, backbone.max_tokens or max_length)


def filler(tokenizer: Any) -> list[int]:
    """The token that stands for a text without any, since there must be one to compute with."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next((token for token in known if token is not None), 0)]


def cut(ids: list[int], room: int, backbone: Backbone) -> list[int]:
    """What is left of a prompt: a decoder's end, which is next to its answer, else the beginning.

    Raises `SettingsError` where there is room for nothing.
    """
    if room < 1:
        raise SettingsError(f"max_length leaves no room for a prompt on {backbone.name}")
    return ids[-room:] if backbone.kind == "decoder" else ids[:room]


def surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens a tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]
