"""Batches whose rows are blended with others: mixup (arXiv:1710.09412) at the input embeddings.

Knows batches of texts with labels; does not know which rows are blended, or why.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.mixing import OTHERS, SHARES


def mixed_batch(
    batch: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    shares: Tensor,
    labels: int,
    pad: int,
) -> dict[str, Tensor]:
    """A batch whose row i is ``shares[i]`` of itself and the rest of row i of ``others``.

    ``labels``, (rows,) or (rows, labels), become (rows, labels), floats: a loss that is linear in
    them, as cross-entropy is, is then the mixed loss. Where one of two texts is over, the other
    goes on with its share alone; what a class takes for a row's last token is that of the longer.
    ``pad`` is the token that fills rows.
    """
    tokens = max(batch["input_ids"].shape[1], others["input_ids"].shape[1])
    fills = {"input_ids": pad, "attention_mask": 0}
    ids, mask = (_filled(batch[name], tokens, fill) for name, fill in fills.items())
    other_ids, other_mask = (_filled(others[name], tokens, fill) for name, fill in fills.items())
    ours = shares.to(ids.device, torch.float32)[:, None]
    targets, other_targets = (
        _spread(side["labels"], labels).to(ours.device) for side in (batch, others)
    )
    return {
        **batch,
        "input_ids": torch.where(mask > 0, ids, other_ids),
        "attention_mask": torch.maximum(mask, other_mask),
        "labels": ours * targets + (1 - ours) * other_targets,
        OTHERS: other_ids,
        SHARES: torch.stack((ours * mask, (1 - ours) * other_mask)),
    }


def _filled(tensor: Tensor, tokens: int, fill: int) -> Tensor:
    """(rows, tokens), filled behind."""
    return functional.pad(tensor, (0, tokens - tensor.shape[1]), value=fill)


def _spread(labels: Tensor, count: int) -> Tensor:
    return functional.one_hot(labels, count).float() if labels.dim() == 1 else labels
