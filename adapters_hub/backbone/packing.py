"""Several documents in one row of tokens, each computed as if it stood alone, where a model can.

Knows positions and masks as transformers' models take them. What a model can is tried, not looked
up by its name; does not know where documents come from.
"""

import inspect
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packing:
    """How documents in one row are kept apart.

    A document's tokens have the positions ``first``, ``first`` + 1, and so on. Attention ends where
    positions begin anew: transformers sees to it, or, where ``masked``, a mask given to it does.
    """

    first: int
    masked: bool

    def inputs(
        self, documents: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """What a model is given beside ``input_ids``, for the lengths of each row's documents.

        ``position_ids`` (rows, tokens), and where ``masked`` an ``attention_mask`` (rows, 1,
        tokens, tokens) that is added to the scores. All rows' lengths have the same sum.
        """
        lengths = [torch.tensor(row) for row in documents]
        numbers = torch.stack([torch.arange(len(n)).repeat_interleave(n) for n in lengths])
        starts = torch.stack([(n.cumsum(0) - n).repeat_interleave(n) for n in lengths])
        places = torch.arange(numbers.shape[1]) - starts + self.first
        inputs = {"position_ids": places.to(device)}
        if self.masked:
            apart = (numbers[:, :, None] != numbers[:, None, :])[:, None].to(device)
            mask = torch.zeros(apart.shape, dtype=dtype, device=device)
            inputs["attention_mask"] = mask.masked_fill_(apart, torch.finfo(dtype).min)
        return inputs


class Reader(Protocol):
    """What is asked of a backbone here."""

    name: str
    base: PreTrainedModel
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @property
    def pad_token_id(self) -> int:
        """The token that fills a row."""

    def hidden_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states (rows, tokens, width)."""


@torch.no_grad()
def packing_of(backbone: Reader, tokens: int) -> Packing | None:
    """How documents in rows of so many tokens are kept apart; None where the model cannot.

    Two documents are computed in one row in each way there is. In a good one neither changes with
    the other, and both are, to rounding, what they are alone. Ask where no plan is followed.
    """
    if "position_ids" not in inspect.signature(backbone.base.forward).parameters or tokens < 4:
        return None
    device, dtype = backbone.device, backbone.dtype
    lengths = [tokens // 3, tokens - tokens // 3]
    # two rows that share the second document, and a third that shares the first
    ids = torch.arange(7, 7 + 3 * tokens, device=device).view(3, tokens) % backbone.vocabulary
    ids[1, lengths[0] :], ids[2, : lengths[0]] = ids[0, lengths[0] :], ids[0, : lengths[0]]

    def states(ids: Tensor, **inputs: Tensor) -> Tensor:
        return backbone.hidden_states({"input_ids": ids, **inputs}).float()

    parts = ids[:1].split(lengths, dim=1)
    alone = torch.cat([states(part, attention_mask=torch.ones_like(part)) for part in parts], dim=1)
    scale = float(alone.abs().max())
    rounding = scale * (1e-3 if dtype == torch.float32 else 0.05)
    good: dict[Packing, float] = {}
    firsts = (0, backbone.pad_token_id + 1)  # RoBERTa's kind counts from its padding on
    for first, masked in itertools.product(firsts, (False, True)):
        packing = Packing(first, masked)
        try:
            packed = states(ids, **packing.inputs([lengths] * 3, dtype, device))
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            log.debug("%s on %s: %r", packing, backbone.name, error)
            continue
        second = packed[0, lengths[0] :] - packed[1, lengths[0] :]
        changed = torch.cat([second, packed[0, : lengths[0]] - packed[2, : lengths[0]]])
        off = float((packed[:1] - alone).abs().max())
        if changed.abs().max() <= 1e-5 * scale and off <= rounding:
            good[packing] = off
    least = min(good.values(), default=0.0)  # where only distances count, it is noise
    return next((way for way, off in good.items() if off <= 2 * least + 1e-5 * scale), None)
