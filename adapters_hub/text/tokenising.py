"""Texts as token ids: cut at what a backbone can read, never empty, special tokens kept.

Knows tokenizers; does not know prompts, tasks or adapters.
"""

from collections.abc import Sequence

from transformers import BatchEncoding, PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import SettingsError

NO_LIMIT = 10**9
"""A ``max_length`` that no text reaches: then only the backbone's limit counts."""


def encode_texts(
    texts: Sequence[str], backbone: Backbone, max_length: int = NO_LIMIT
) -> list[list[int]]:
    """Token ids of each text, special tokens among them, cut at `text_limit`; one at least."""
    if not texts:
        return []  # which tokenizers do not take
    encoded = _encoded(texts, backbone, max_length)
    return [ids or filler(backbone.tokenizer) for ids in encoded["input_ids"]]


def encode_with_words(
    texts: Sequence[str],
    words_of: Sequence[Sequence[str]],
    backbone: Backbone,
    max_length: int = NO_LIMIT,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids as of `encode_texts`; and for each of them the number of the word that it begins
    in, -1 of none.

    ``words_of`` each text are its words in order. Needs a tokenizer that gives offsets
    (``is_fast``).
    """
    if not texts:
        return [], []
    encoded = _encoded(texts, backbone, max_length, offsets_mapping=True, special_tokens_mask=True)
    ids, owners = [], []
    for number, (text, words) in enumerate(zip(texts, words_of, strict=True)):
        word_at: list[int] = [-1] * len(text)
        at = 0
        for word, letters in enumerate(words):
            at = text.index(letters, at)
            word_at[at : at + len(letters)] = [word] * len(letters)
            at += len(letters)
        spans = zip(
            encoded["offset_mapping"][number], encoded["special_tokens_mask"][number], strict=True
        )
        begins_in = [
            -1 if special else next((w for w in word_at[start:end] if w >= 0), -1)
            for (start, end), special in spans
        ]
        ids.append(encoded["input_ids"][number] or filler(backbone.tokenizer))
        owners.append(begins_in or [-1])
    return ids, owners


def _encoded(
    texts: Sequence[str], backbone: Backbone, max_length: int, **further: bool
) -> BatchEncoding:
    """What the tokenizer says of texts; ``further``: what it is to return beside their ids."""
    return backbone.tokenizer(
        list(texts),
        truncation=True,
        max_length=text_limit(backbone, max_length),
        # the end token's name inside a text would be a second end, from which classes read
        split_special_tokens=backbone.kind == "encoder-decoder",
        **{f"return_{name}": value for name, value in further.items()},
    )


def text_limit(backbone: Backbone, max_length: int) -> int:
    """At how many tokens a text is cut: ``max_length``, or the backbone's limit if it is less.

    Raises `SettingsError` where special tokens leave no room for a text.
    """
    least = 1 + backbone.tokenizer.num_special_tokens_to_add()
    if max_length < least:
        raise SettingsError(f"max_length={max_length}: must be {least} or more on {backbone.name}")
    return min(max_length, backbone.max_tokens or max_length)


def cut(ids: list[int], room: int, backbone: Backbone) -> list[int]:
    """The part of a prompt's ids that is kept in ``room`` tokens.

    A decoder keeps the end, which is next to its answer, other backbones the beginning. Raises
    `SettingsError` for a room of nothing.
    """
    if room < 1:
        raise SettingsError(f"max_length leaves no room for a prompt on {backbone.name}")
    return ids[-room:] if backbone.kind == "decoder" else ids[:room]


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens a tokenizer puts before and after a text."""
    if tokenizer.is_fast:  # which may draw the tokens of a text anew each time
        encoded = tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        first, last = special.index(0), len(special) - special[::-1].index(0)
        return ids[:first], ids[last:]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def filler(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The one token that stands for a text without any, since a model computes on one at least."""
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next((token for token in known if token is not None), 0)]
