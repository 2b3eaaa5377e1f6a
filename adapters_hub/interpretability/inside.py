"""One adapter at work: where its energy lies in the backbone, and what it changes layer by layer.

Knows a model's sites, layers, final norm and LM head; does not know tasks.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.compose.core_space import energy_of
from adapters_hub.errors import BackboneError, DataError, SettingsError
from adapters_hub.interpretability.comparison import OUTSIDE, deltas_of, in_depth, one_term
from adapters_hub.library.layers import layer_of, layers_of
from adapters_hub.runtime.core import ACTIVE, Active, Runtime, Weights
from adapters_hub.text.tokenising import encode_texts

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")


@dataclass(frozen=True)
class Share:
    """What a site, or several, have of an adapter.

    ``energy``: ‖ΔW‖_F; ``share``: of the adapter's Σ‖ΔW‖_F²; ``relative``: ‖ΔW‖_F / ‖W‖_F of the
    frozen weights (roots of sums of squares over several sites), None where a weight is quantised
    in a way that cannot be undone.
    """

    energy: float
    share: float
    relative: float | None


@dataclass(frozen=True)
class Whereabouts:
    """Where an adapter acts: by site, by kind of site (``mlp.up_proj``), by depth (layer)."""

    adapter: str
    sites: dict[str, Share]
    kinds: dict[str, Share]
    depths: dict[str, Share]


@torch.no_grad()
def where_it_acts(model: Runtime, adapter: Weights) -> Whereabouts:
    """Where the energy of an adapter (a blend of one term) lies, beside the frozen weights'.

    8- and 4-bit weights are dequantised, one at a time. Raises `BlendError` for several terms.
    """
    blend = model.resolve(one_term(adapter))
    norms: dict[str, tuple[float, float | None]] = {}
    deltas, backbone = deltas_of(model, blend), model.backbone
    matrices = {s: w for module in backbone.moe.values() for s, w in module.matrices().items()}
    for site in in_depth(deltas):
        layer = backbone.sites.get(site)
        weight = _energy(matrices[site]) if layer is None else _weight_energy(layer)
        norms[site] = energy_of(deltas[site]), weight
    total = sum(energy for energy, _ in norms.values())

    def shares(group_of: Callable[[str], str]) -> dict[str, Share]:
        groups: dict[str, list[tuple[float, float | None]]] = {}
        for site, norm in norms.items():
            groups.setdefault(group_of(site), []).append(norm)
        return {name: _share(group, total) for name, group in groups.items()}

    def kind(site: str) -> str:  # without the number of an expert
        below = site.removeprefix(f"{layer_of(site)}.")
        return ".".join(part for part in below.split(".") if not part.isdecimal())

    return Whereabouts(
        str(blend), shares(str), shares(kind), shares(lambda site: layer_of(site) or OUTSIDE)
    )


def _share(norms: list[tuple[float, float | None]], total: float) -> Share:
    above = sum(energy for energy, _ in norms)
    weights = [weight for _, weight in norms if weight is not None]
    below = sum(weights) if len(weights) == len(norms) else 0.0
    return Share(
        above**0.5, above / total if total else 0.0, (above / below) ** 0.5 if below else None
    )


def _weight_energy(module: Any) -> float | None:
    """‖W‖_F² of a frozen weight, None where it is packed in a way that is not known here.

    PEFT's dequantisation is not used: on a CPU it puts an 8-bit weight back without its scale.
    """
    weight, packed = module.weight, type(module.weight).__name__
    if packed == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        # In rows of one block each: where a block of 64 numbers runs over the end of a row, the
        # AVX-512 kernel of bitsandbytes 0.50 takes another block's scale for it.
        state, whole = copy.copy(weight.quant_state), weight.quant_state.shape.numel()
        if whole % state.blocksize == 0:
            state.shape = torch.Size((whole // state.blocksize, state.blocksize))
        weight = dequantize_4bit(weight.data, state)
    elif packed == "Int8Params":
        scale = weight.SCB if module.state.SCB is None else module.state.SCB  # of rows, times 127
        rows = weight.data.float().square().sum(1).double()
        return (rows * (scale.to(rows) / 127) ** 2).sum().item()
    return _energy(weight) if weight.is_floating_point() else None


def _energy(weight: Tensor) -> float:
    return torch.linalg.vector_norm(weight, dtype=torch.float64).square().item()


# ── the logit lens ───────────────────────────────────────────────────────────────────────────────


Guesses = tuple[tuple[str, float], ...]
"""The likeliest tokens at a position with their probabilities, the best first."""


@dataclass(frozen=True)
class LogitLens:
    """What each layer would say if it were the last, with adapters and against a reference.

    ``layers`` begins with the embeddings. ``adapted`` and ``reference`` have, for each layer and
    position, the likeliest tokens with their probabilities; ``divergence`` KL(adapted ‖ reference)
    of the whole distributions, in nats.
    """

    adapters: str
    against: str
    tokens: tuple[str, ...]
    layers: tuple[str, ...]
    adapted: tuple[tuple[Guesses, ...], ...]
    reference: tuple[tuple[Guesses, ...], ...]
    divergence: tuple[tuple[float, ...], ...]


@torch.no_grad()
def logit_lens(
    model: Runtime,
    text: str,
    adapters: Weights | Active = ACTIVE,
    against: Weights | Active = None,
    *,
    top: int = 5,
) -> LogitLens:
    """Each layer's hidden states through the final norm and the LM head, with and without adapters.

    The logit lens (nostalgebraist, 2020), for decoders; ``against`` is the bare backbone unless
    said otherwise. At the last layer it is what the model predicts. Raises `BackboneError` where
    there is no final norm or LM head, `DataError` for a text without tokens.
    """
    backbone, size = model.backbone, model.backbone.config.get_text_config().vocab_size
    if not 1 <= top <= size:
        raise SettingsError(f"top={top}: choose from 1 to {size}, the size of the vocabulary")
    layers = layers_of(backbone.body_sites)
    norm = _final_norm(backbone, layers)
    ids = encode_texts([text], backbone)[0]
    if not ids:
        raise DataError(f"the text {text!r} has no tokens")
    batch = padded([ids], backbone)
    blends = [model.resolve(blend) for blend in (adapters, against)]
    plans = [model.plan([blend]) for blend in blends]
    states = []
    for plan in plans:
        with model.bank.using(plan), _watching(backbone, layers) as seen:
            backbone.base(**batch, **backbone.lm_options)
        states.append(seen)
    best: list[list[tuple[Guesses, ...]]] = [[], []]
    divergence = []
    for layer in range(len(layers) + 1):
        both = []
        for plan, seen, guesses in zip(plans, states, best, strict=True):
            with model.bank.using(plan):
                logits = backbone.head_logits(norm(seen[layer])[0])
            both.append(logits.double().log_softmax(-1))
            guesses.append(_likeliest(both[-1], backbone.tokenizer, top))
        one, two = both
        divergence.append(tuple((one.exp() * (one - two)).sum(-1).clamp(min=0).tolist()))
    return LogitLens(
        adapters=str(blends[0]),
        against=str(blends[1]),
        tokens=tuple(backbone.tokenizer.decode([number]) for number in ids),
        layers=("embeddings", *layers),
        adapted=tuple(best[0]),
        reference=tuple(best[1]),
        divergence=tuple(divergence),
    )


def _likeliest(logs: Tensor, tokenizer: PreTrainedTokenizerBase, top: int) -> tuple[Guesses, ...]:
    """For each position (tokens, vocabulary) the ``top`` likeliest tokens, the best first."""
    likeliest = logs.exp().topk(top)
    return tuple(
        tuple((tokenizer.decode([number]), p) for number, p in zip(numbers, values, strict=True))
        for numbers, values in zip(
            likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    )


def _final_norm(backbone: Backbone, layers: tuple[str, ...]) -> nn.Module:
    """The norm between the last layer and the LM head; it stands beside the list of layers."""
    if backbone.kind == "decoder" and backbone.has_lm_head and layers:
        beside = backbone.base.get_submodule(layers[0].rpartition(".")[0].rpartition(".")[0])
        for name in _FINAL_NORMS:
            if isinstance(norm := getattr(beside, name, None), nn.Module):
                return norm
    kind = backbone.kind if backbone.kind != "decoder" else type(backbone.model).__name__
    raise BackboneError(
        f"{backbone.name} ({kind}) has no logit lens: it needs a decoder's layers, a final norm "
        f"beside them ({', '.join(_FINAL_NORMS)}) and an LM head"
    )


@contextmanager
def _watching(backbone: Backbone, layers: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """What goes into the first layer in a forward inside the block, and what leaves each."""
    seen: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append((*inputs, *named.values())[0])

    def after(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    modules = [backbone.base.get_submodule(layer) for layer in layers]
    hooks = [modules[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [module.register_forward_hook(after) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
