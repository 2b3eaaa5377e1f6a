"""Rows of token ids as one padded batch, for every room that has rows of unlike length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from adapters_hub.backbone.backbone import Backbone


def padded(
    rows: Sequence[Sequence[int]], backbone: "Backbone", *, left: bool = False, multiple: int = 1
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (rows, tokens) on the backbone's device.

    ``left`` puts the padding before a row, so that a decoder can go on from it: never for an
    encoder, since some (BART's kind) count positions from the padding on. ``multiple``: the number
    of tokens is rounded up to a multiple of it.
    """
    longest = max(map(len, rows))
    longest += -longest % multiple
    ids = torch.full((len(rows), longest), backbone.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = longest - len(row) if left else 0
        ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, start : start + len(row)] = 1
    return {"input_ids": ids.to(backbone.device), "attention_mask": mask.to(backbone.device)}
