"""Generating text: prompts in, continuations out, with a blend a row.

Knows a backbone's tokenizer and transformers' ``generate``; the blends are the model's work.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from adapters_hub.blend import Blend
from adapters_hub.errors import BackboneError
from adapters_hub.exporting import pieces_of
from adapters_hub.merging import merging_pays

if TYPE_CHECKING:
    from adapters_hub.model import AdaptedModel, Adapters


@torch.no_grad()
def generate(
    model: "AdaptedModel", texts: Sequence[str], adapters: "Adapters", options: dict[str, Any]
) -> list[str]:
    """What `AdaptedModel.generate` returns; ``options`` are those of transformers."""
    backbone = model.backbone
    if backbone.kind == "encoder" or not backbone.has_lm_head:
        raise BackboneError(
            f"{backbone.name} has no head that generates text: its checkpoint is "
            f"{'an encoder' if backbone.kind == 'encoder' else 'a bare decoder'}"
        )
    tokenizer = copy.copy(backbone.tokenizer)
    tokenizer.padding_side = "left"
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True).to(backbone.device)
    size, limit = encoded["input_ids"].shape[1], backbone.max_tokens
    options = {name: value for name, value in options.items() if value is not None}
    if _said(backbone.model, options, "max_new_tokens", "max_length") == (None, None):
        options = {**options, "max_new_tokens": 32}
    new = _new_tokens(backbone.model, size, options) if backbone.kind == "decoder" else 0
    if limit and size + new > limit:
        raise BackboneError(
            f"a prompt of {size} tokens and {new} new ones: {backbone.name} has positions for "
            f"{limit}"
        )
    out = run(model, model.blends(len(texts), adapters), {**encoded, **options})
    if backbone.kind == "decoder":
        out = out[:, size:]
    return tokenizer.batch_decode(out, skip_special_tokens=True)


def run(model: "AdaptedModel", blends: Sequence[Blend], inputs: dict[str, Any]) -> torch.Tensor:
    """Token ids (rows, tokens) by transformers' ``generate``, from its inputs and options.

    One blend in all rows is merged into a view of the model first, where that costs less than the
    deltas in every step would, and fits into the memory that the resident adapters leave.
    """
    order = sorted(range(len(blends)), key=lambda row: str(blends[row]))
    sorts = order != list(range(len(blends)))
    if sorts:  # rows of one blend lie together, so that nothing is moved in each step
        inputs = {key: _taken(value, order) for key, value in inputs.items()}
        blends = [blends[row] for row in order]
    plan = model.plan(blends)
    ids = inputs["input_ids"]
    runner: Any = model.backbone.model
    several = _said(runner, inputs, "num_beams", "num_return_sequences")
    rows = len(ids) * max(number or 1 for number in several)
    steps = max(0, _new_tokens(runner, ids.shape[1], inputs) - 1)
    if plan is not None and model.can_merge(plan):
        forwards = [ids.numel(), *[rows] * steps]
        if merging_pays(model.backbone.sites, pieces_of(model, blends[0]), forwards):
            runner = model.merged_view(plan, blends[0])
            plan = None
    with model.bank.using(plan):
        out = runner.generate(**inputs)
    out = getattr(out, "sequences", out)
    if sorts:
        back = torch.tensor(order).argsort().to(out.device)
        out = out.view(len(order), -1, out.shape[-1])[back].view(out.shape)
    return out


def _taken(value: Any, order: list[int]) -> Any:
    """A tensor of a row each in another order; anything else as it is."""
    rows = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == len(order)
    return value[order] if rows else value


def _said(model: Any, options: dict[str, Any], *names: str) -> tuple[Any, ...]:
    """What the options say, else their ``generation_config``, else the model's own."""
    config = options.get("generation_config") or model.generation_config
    given = [options.get(name) for name in names]
    return tuple(
        getattr(config, name, None) if value is None else value
        for name, value in zip(names, given, strict=True)
    )


def _new_tokens(model: Any, size: int, options: dict[str, Any]) -> int:
    new, whole = _said(model, options, "max_new_tokens", "max_length")
    return int(new if new is not None else (whole or size) - size)
