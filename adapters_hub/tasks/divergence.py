"""How far two distributions over labels or tokens are apart, a block of a vocabulary at a time.

Knows logits, hidden states and a function from the ones to the others; does not know models, plans,
or what the outputs mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from adapters_hub.tasks.cross_entropy import FLOAT16_SCALE, LogitsOf, blocks

_LEAST = -1e4
"""Stands for the logit of what cannot be: its probability is 0, and its logarithm is finite."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, classes) of a model and of another → nats (n,)."""


@dataclass(frozen=True)
class Distributions:
    """Logits (n, classes) of n distributions, the row of the batch (n,) that each is of, and the
    share of a target that each counts as.
    """

    logits: Tensor
    rows: Tensor
    weight: float = 1.0


def kl_from(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference ‖ model) = Σ p₀ (log p₀ - log p), (n,) in nats, float32."""
    log_p, log_p0 = _log_softmax(logits), _log_softmax(reference)
    return (log_p0.exp() * (log_p0 - log_p)).sum(-1)


def symmetric_kl(one: Tensor, other: Tensor) -> Tensor:
    """½ (KL(p ‖ q) + KL(q ‖ p)) = ½ Σ (p - q) (log p - log q), (n,) in nats, float32."""
    log_p, log_q = _log_softmax(one), _log_softmax(other)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().clamp_min(_LEAST).log_softmax(-1)


def blocked_divergence(
    measure: Measure,
    logits_of: LogitsOf,
    one: Tensor,
    other: Tensor,
    vocabulary: int,
    *,
    head_learns: bool,
) -> Tensor:
    """``measure`` (n,) of the logits of hidden states (n, width) of two passes, float32.

    The logits exist for a block of positions at a time, as in `cross_entropy`, and gradients go to
    whichever of ``one`` and ``other`` has any.
    """
    spans = blocks(len(one), 2 * vocabulary)

    def measured(one: Tensor, other: Tensor, at: slice) -> Tensor:
        return measure(logits_of(one, at), logits_of(other, at))

    if head_learns and torch.is_grad_enabled() and spans:
        nats = [checkpoint(measured, one[at], other[at], at, use_reentrant=False) for at in spans]
        return torch.cat(nats)
    return _OnePass.apply(one, other, measure, logits_of, spans)


class _OnePass(torch.autograd.Function):
    """Each position's nats, and in the same pass their gradients by both of its hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        one: Tensor,
        other: Tensor,
        measure: Measure,
        logits_of: LogitsOf,
        spans: list[slice],
    ) -> Tensor:
        """See `blocked_divergence`."""
        nats = torch.zeros(len(one), device=one.device)
        states, needed = (one, other), list(ctx.needs_input_grad[:2])
        wide = torch.promote_types(one.dtype, torch.float32)
        gradients = [
            torch.empty_like(state, dtype=wide) if need else None
            for state, need in zip(states, needed, strict=True)
        ]
        for at in spans:
            pair = [state[at] for state in states]
            nats[at], of_block = _nats_and_gradients(measure, logits_of, pair, needed, at)
            for gradient, part in zip(gradients, of_block, strict=True):
                if gradient is not None and part is not None:
                    gradient[at] = part
        ctx.save_for_backward(*gradients)
        ctx.dtype = one.dtype
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of both hidden states for the weight of each position (n,)."""
        gradients = [
            None if gradient is None else (gradient * weights[:, None]).to(ctx.dtype)
            for gradient in ctx.saved_tensors
        ]
        return *gradients, None, None, None


def _nats_and_gradients(
    measure: Measure, logits_of: LogitsOf, states: list[Tensor], needed: list[bool], at: slice
) -> tuple[Tensor, list[Tensor | None]]:
    """Nats (k,) of a block, and the gradient (k, width) by each of the states that need one."""
    inputs = [state.detach().requires_grad_(n) for state, n in zip(states, needed, strict=True)]
    with torch.set_grad_enabled(any(needed)):
        logits = [logits_of(state, at) for state in inputs]
        outer = [t.detach().requires_grad_(n) for t, n in zip(logits, needed, strict=True)]
        nats = measure(*outer)
        total = nats.sum()
    gradients: list[Tensor | None] = [None, None]
    if any(needed):
        wanted = [place for place in range(2) if needed[place]]
        by_logits = torch.autograd.grad(total, [outer[place] for place in wanted])
        for place, gradient in zip(wanted, by_logits, strict=True):
            # of 250,000 probabilities most are below what float16 holds
            scale = FLOAT16_SCALE if logits[place].dtype == torch.float16 else 1.0
            given = (gradient.float() * scale).to(logits[place].dtype)
            (part,) = torch.autograd.grad(logits[place], inputs[place], given)
            gradients[place] = part.float() / scale if scale != 1.0 else part
    return nats.detach(), gradients
