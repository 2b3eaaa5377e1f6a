"""Cross-entropy over a vocabulary whose logits never exist all at once.

Knows hidden states, targets and a function from the ones to logits; does not know models, plans or
batches. Logits are made for a block of positions at a time, and the block's gradient right behind
them, as Liger Kernel (arXiv:2410.10989) and Cut Cross-Entropy (arXiv:2411.09009) do.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BLOCK_BYTES = 64 << 20
"""What a block's logits may take in float32: enough positions to read a frozen head's weight for,
and a small part of what all of a batch's logits take."""

FLOAT16_SCALE = 1024.0  # a loss scale (arXiv:1710.03740) within the block

LogitsOf = Callable[[Tensor, slice], Tensor]
"""Hidden states (k, width) of the positions in a slice → their logits (k, vocabulary)."""


def blocked_cross_entropy(
    logits_of: LogitsOf, hidden: Tensor, targets: Tensor, vocabulary: int, *, head_learns: bool
) -> Tensor:
    """The nats (n,) of each target (n,), float32, given hidden states (n, width) before the head.

    ``logits_of`` must treat each position by itself. Without ``head_learns`` only ``hidden`` gets a
    gradient, computed right behind the logits. With it each block's logits are made again in the
    backward: what a factor in the head gets is a sum over positions, whose weights in the loss are
    known only there.
    """
    spans = blocks(len(hidden), vocabulary)
    if head_learns and torch.is_grad_enabled() and spans:
        nats = [
            checkpoint(_nats, logits_of, hidden[at], targets[at], at, use_reentrant=False)
            for at in spans
        ]
        return torch.cat(nats)
    return _OnePass.apply(hidden, targets, logits_of, spans)


def blocks(positions: int, vocabulary: int) -> list[slice]:
    """Blocks of about one size, none above `BLOCK_BYTES` unless it is a single position."""
    most = max(1, BLOCK_BYTES // (4 * vocabulary))
    size = math.ceil(positions / max(1, math.ceil(positions / most)))
    return [slice(at, min(at + size, positions)) for at in range(0, positions, max(1, size))]


def _nats(logits_of: LogitsOf, hidden: Tensor, targets: Tensor, at: slice) -> Tensor:
    return functional.cross_entropy(logits_of(hidden, at).float(), targets, reduction="none")


class _OnePass(torch.autograd.Function):
    """Each position's nats, and in the same pass their gradient with respect to its hidden state.

    A position's nats depend on no other's hidden state, so whatever weight the backward gives each
    of them just scales that gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: LogitsOf, spans: list[slice]
    ) -> Tensor:
        """See `blocked_cross_entropy`."""
        nats = torch.zeros(len(hidden), device=hidden.device)
        if not ctx.needs_input_grad[0]:
            for at in spans:
                nats[at] = _nats(logits_of, hidden[at], targets[at], at)
            return nats
        wide = torch.promote_types(hidden.dtype, torch.float32)  # its scale is still to come
        gradient = torch.empty_like(hidden, dtype=wide)
        for at in spans:
            nats[at], gradient[at] = _nats_and_gradient(logits_of, hidden[at], targets[at], at)
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``hidden`` for the weight of each position (n,)."""
        (gradient,) = ctx.saved_tensors
        return (gradient * weights[:, None]).to(ctx.dtype), None, None, None


def _nats_and_gradient(
    logits_of: LogitsOf, hidden: Tensor, targets: Tensor, at: slice
) -> tuple[Tensor, Tensor]:
    """Nats (k,) and their gradient (k, width); beside the logits one tensor of their size."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        logits = logits_of(hidden, at)
    log_probabilities = logits.detach().log_softmax(-1, dtype=torch.float32)
    nats = -log_probabilities.gather(1, targets[:, None])[:, 0]
    residual = log_probabilities.exp_()  # softmax less the target's one
    residual.scatter_add_(1, targets[:, None], residual.new_full((len(targets), 1), -1.0))
    if logits.dtype == torch.float16:  # of 250,000 probabilities most are below what it holds
        residual *= FLOAT16_SCALE
    (gradient,) = torch.autograd.grad(logits, hidden, residual.to(logits.dtype))
    if logits.dtype == torch.float16:
        gradient = gradient.float() / FLOAT16_SCALE
    return nats, gradient
