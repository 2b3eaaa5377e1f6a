"""Rows of token ids as one padded batch, for every room that has rows of unlike length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError


def padded(
    rows: Sequence[Sequence[int]], backbone: Backbone, *, left: bool = False, multiple: int = 1
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (rows, tokens) on the backbone's device.

    ``left`` puts the padding before a row, so that a decoder can go on from it: never for an
    encoder, since some (BART's kind) count positions from the padding on. ``multiple``: the number
    of tokens is rounded up to a multiple of it. Raises `BackboneError` for a token that the
    embedding has no row for, as where tokens were added to a tokenizer and the model not resized.
    """
    longest = max(map(len, rows))
    longest += -longest % multiple
    ids = torch.full((len(rows), longest), backbone.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = longest - len(row) if left else 0
        ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, start : start + len(row)] = 1
    if (highest := int(ids.max())) >= backbone.vocabulary:
        token = backbone.tokenizer.convert_ids_to_tokens(highest)
        raise BackboneError(
            f"the tokenizer of {backbone.name} has a token {token!r} with number {highest}, and "
            f"the model's embedding only {backbone.vocabulary} rows; resize the model to its "
            "tokenizer (model.resize_token_embeddings(len(tokenizer)), then train and save it), or "
            "keep the token out of the text"
        )
    return {"input_ids": ids.to(backbone.device), "attention_mask": mask.to(backbone.device)}
