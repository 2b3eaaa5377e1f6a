"""The parts of a backbone, put together: model, body, pooler and tokenizer, frozen.

Knows transformers' modules; does not know where a model came from, adapters or libraries.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import (
    Backbone,
    Kind,
    embedding_rows,
    execution_device,
    find_sites,
)
from adapters_hub.backbone.copies import with_children
from adapters_hub.backbone.moe import find_moe
from adapters_hub.backbone.quantised import keep_4bit_differentiable
from adapters_hub.backbone.sentence_transformer import EmbeddingSettings, read_embedding_settings
from adapters_hub.errors import BackboneError

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """A model, its body, and what is special about this one: see `Backbone`."""

    model: PreTrainedModel
    base: PreTrainedModel
    untrained: set[str] = field(default_factory=set)
    attached: set[str] = field(default_factory=set)


class Facts(TypedDict):
    """What of a `Backbone` is known before its parts are put together."""

    kind: Kind
    bits: int
    dtype: torch.dtype
    fingerprint: str
    has_lm_head: bool
    revision: str | None


def assembled(
    parts: Parts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    folder: Path | None,
    **facts: Unpack[Facts],
) -> Backbone:
    """The backbone, frozen and in eval mode.

    Raises `BackboneError` where no token can pad.
    """
    model = parts.model
    model.requires_grad_(False)
    model.eval()
    keep_4bit_differentiable(model)
    if is_split(model):
        _return_where_inputs_are(parts.base)
    _set_padding(name, tokenizer, model)
    backbone = Backbone(
        name=name,
        folder=folder,
        model=model,
        base=parts.base,
        tokenizer=tokenizer,
        untrained=frozenset(parts.untrained),
        attached=frozenset(parts.attached),
        embedding=EmbeddingSettings() if folder is None else read_embedding_settings(folder),
        **facts,
    )
    backbone.moe = find_moe(model, backbone.prefix)
    layers = find_sites(model, backbone.prefix)
    backbone.sites = {site: layer for site, layer in layers.items() if site not in backbone.moe}
    return backbone


def body_of(model: PreTrainedModel, has_lm_head: bool) -> PreTrainedModel:
    """The part of a model below its head, as a separate model that shares its modules."""
    base = getattr(model, model.base_model_prefix, model)
    if has_lm_head and base is model:  # T5's language model holds encoder and decoder itself
        with torch.device("meta"):
            base = transformers.AutoModel.from_config(model.config)
        for child_name in dict(base.named_children()):
            setattr(base, child_name, getattr(model, child_name))
    return base


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def check_in_memory(name: str, model: nn.Module) -> None:
    """Raise `BackboneError` for weights that are on disk, or swapped in for each forward."""
    away = [path for path, p in model.named_parameters() if p.device.type == "meta"]
    if away:
        raise BackboneError(
            f"{name}: {len(away)} of its tensors have no weights in memory where they are used "
            f"(the first is {away[0]}): the model was offloaded, or made on the meta device. Give "
            "the checkpoint's name and the device_map here, or a model that is in memory"
        )


def is_split(model: nn.Module) -> bool:
    """Whether a model's weights are on several devices, or not all in memory."""
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) > 1 or torch.device("meta") in devices


def _return_where_inputs_are(base: nn.Module) -> None:
    """Let a split body return its states where its inputs were, as accelerate does for a model."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(base, AlignDevicesHook(io_same_device=True), append=True)


# ── poolers ──────────────────────────────────────────────────────────────────────────────────────


def attach_pooler(
    parts: Parts, files: Sequence[Path], dtype: torch.dtype, *, to_copy: bool = False
) -> None:
    """Give an encoder the pooler its classification class has and the loaded class leaves out.

    Its parameters for which the ``files`` have no weights are noted as untrained. ``to_copy`` gives
    it to a copy of model and body that shares all else, so that the model stays as it is.
    """
    with torch.device("meta"):
        whole = transformers.AutoModel.from_config(parts.base.config)
    if getattr(whole, "pooler", None) is None or getattr(parts.base, "pooler", None) is not None:
        return
    from safetensors import safe_open

    pooler = whole.pooler.to_empty(device="cpu")
    pooler.apply(whole._init_weights)
    left = dict(pooler.named_parameters())
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                parameter = key.rpartition("pooler.")[2]
                if "pooler." in key and parameter in left:
                    left.pop(parameter).data.copy_(tensors.get_tensor(key))
    if to_copy:
        model, base = parts.model, with_children(parts.base)
        whole_model = (
            base if model is parts.base else with_children(model, **{model.base_model_prefix: base})
        )
        parts.model, parts.base = whole_model, base
    *_, last = parts.base.parameters()
    device = execution_device(parts.base) if last.is_meta else last.device
    parts.base.pooler = pooler.to(device=device, dtype=dtype)
    parts.attached.add("pooler")
    if isinstance(getattr(whole, "pooler_activation", None), nn.Module):  # ALBERT's is beside it
        parts.base.pooler_activation = whole.pooler_activation
        parts.attached.add("pooler_activation")
    parts.untrained |= {f"pooler.{name}" for name in left}


# ── padding ──────────────────────────────────────────────────────────────────────────────────────


def _set_padding(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Batches need a padding token that the embedding has a row for; which one is masked anyway.

    Where the tokenizer has none, its end token pads, else its unknown token. Raises
    `BackboneError` where the embedding has a row for none of them.
    """
    rows = embedding_rows(model)
    config = model.config.get_text_config()
    missing = tokenizer.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokens = [tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token]
        if config.pad_token_id is not None:
            tokens.insert(0, tokenizer.convert_ids_to_tokens(config.pad_token_id))
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens if token}
        inside = [token for token, number in ids.items() if number is not None and number < rows]
        if not inside:
            have = ", ".join(f"{token!r} is {number}" for token, number in ids.items())
            raise BackboneError(
                f"{name}: the model's embedding has {rows} rows, and none for a token that could "
                f"pad ({have or 'the tokenizer names no special tokens'}); "
                "set tokenizer.pad_token to one of its tokens and save the tokenizer again"
            )
        tokenizer.pad_token = inside[0]
        if missing is not None:
            log.warning(
                "%s: the tokenizer pads with %r, for which the model's %d embeddings have no row; "
                "%r pads here",
                name,
                missing,
                rows,
                inside[0],
            )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        token = generation.pad_token_id
        if token is None or not 0 <= token < rows:
            generation.pad_token_id = config.pad_token_id
