"""Two texts in one row: their input embeddings added, before anything else sees them.

Knows where a model embeds its tokens; does not know what rows mean.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError

OTHERS, SHARES = "other_ids", "shares"
"""What a batch of mixed rows has beside its ``input_ids``; see `mixed_embeddings`."""


@contextmanager
def mixed_embeddings(backbone: Backbone, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """In this thread, token t of a row is embedded as s₀·E(its id) + s₁·E(its other id).

    Ids are a batch's ``input_ids`` and ``other_ids`` (rows, tokens), s its ``shares`` (2, rows,
    tokens). Nothing happens for a batch without them. Ids go into the model as ever, so it counts
    positions and finds the last token by ``input_ids``. Raises `BackboneError` for a backbone that
    does not embed a batch once, and as a whole.
    """
    if OTHERS not in batch:
        yield
        return
    others, shares = batch[OTHERS], batch[SHARES]
    thread, calls = threading.get_ident(), 0

    def mix(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        nonlocal calls
        if threading.get_ident() != thread:
            return None
        calls += 1
        if calls > 1:
            return None  # the other ids, which are embedded in here
        if output.shape[:-1] != others.shape:
            calls = -1
            return None
        ours, theirs = shares.to(output)[..., None]
        mixed: Tensor = ours * output + theirs * module(others)
        return mixed

    hook = backbone.base.get_input_embeddings().register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()
    if calls != 2:
        raise BackboneError(
            f"{backbone.name} does not embed the tokens of a batch once and as a whole, so rows "
            "cannot be mixed in its embeddings; leave out --augment mixup"
        )


def check_mixes(backbone: Backbone) -> None:
    """Raise `BackboneError` where rows cannot be mixed in the embeddings."""
    ones = torch.ones(2, 3, dtype=torch.long, device=backbone.device)
    halves = torch.full((2, 2, 3), 0.5, device=backbone.device)
    with mixed_embeddings(backbone, {OTHERS: ones, SHARES: halves}):
        backbone.probe(2, 3)
