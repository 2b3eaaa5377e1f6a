"""What leaves a model: a blend as one PEFT adapter, or in the weights of a plain model.

Knows adapters, composition and transformers' classes; rows and plans are the model's.
"""

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from adapters_hub.backbone.copies import remove_hooks, untie
from adapters_hub.compose.methods import check_options, compose_sites, describe_cut
from adapters_hub.errors import BackboneError, NotFoundError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.folder import check_name
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime, Weights
from adapters_hub.runtime.merged import merged_weights
from adapters_hub.text.prompts import prompt_of


def composed(
    model: Runtime, blend: Weights, method: str, name: str | None, options: Mapping[str, object]
) -> Adapter:
    """A blend as one adapter, its head and all, in memory; see `AdaptedModel.export`."""
    from adapters_hub.tasks.pooling import embedding_of

    check_options(method, options)
    resolved = model.resolve(blend)
    if not resolved:
        raise NotFoundError("nothing to export: the blend is empty")
    parts = [model.resident(name) for name in resolved.terms]
    outer = model.backbone.head_sites
    owner = None
    if any(part.head for part in parts):
        owner = model.resident(model.head_owner(resolved))
    below = [part for part in ([owner] if owner else parts) if part.factors.keys() - outer]
    embedders = [part for part in below if part.info.pooling]
    main = owner or (embedders or below or parts)[0]
    if below:
        prefix = (embedders or below)[0].prefix
    elif owner:
        from adapters_hub.tasks.heads import shell_of

        prefix = shell_of(owner, model.backbone).prefix
    else:
        prefix = model.backbone.prefix
    pieces = model.pieces(resolved, without_outer=bool(owner or embedders))
    factors = compose_sites(pieces, method, sites=model.backbone.sites, **options)
    if pieces and not factors:
        raise NotFoundError(f"nothing to export: the {method} of {resolved} is zero everywhere")
    embeds = any(part.info.pooling for part in parts)
    pooling, prompts = embedding_of(model, resolved) if embeds else (None, {})
    if not embeds and (prompt := prompt_of(model, resolved)):
        prompts = prompt.stored()
    how = ", ".join(f"{key}={value}" for key, value in options.items())
    cut = f" It keeps {describe_cut(pieces, factors)}." if options.get("energy") else ""
    info = AdapterInfo(
        name=check_name(name or "-".join(part.name for part in parts)),
        task=main.info.task,
        labels=main.info.labels,
        problem_type=main.info.problem_type,
        pipeline_tag=main.info.pipeline_tag,
        pooling=pooling,
        prompts=prompts,
        backbone=model.backbone.name,
        revision=model.backbone.revision,
        fingerprint=model.backbone.fingerprint,
        description=f"The {method} of {resolved}{how and f' ({how})'}.{cut}",
    )
    config = {
        key: value
        for key, value in main.config.items()
        if key in ("task_type", "fan_in_fan_out", "peft_version")
    }
    scaling = dict.fromkeys(factors, 1.0)
    head = owner.head if owner is not None else {}
    return Adapter(info, factors, scaling, head, config, prefix, outer, model.backbone.stacks)


def merge(model: Runtime, blend: Weights) -> PreTrainedModel:
    """See `AdaptedModel.merge`."""
    if model.backbone.bits < 16:
        raise BackboneError(
            f"cannot merge into {model.backbone.bits}-bit weights without rounding them again; "
            "load the backbone at 32 or 16 bits"
        )
    model.backbone.check_at_hand("merged")
    resolved = model.resolve(blend)
    owners = [name for name in resolved.terms if model.resident(name).head]
    plain = _plain_copy(model, model.head_owner(resolved) if owners else None)
    base = getattr(plain, plain.base_model_prefix, plain)
    modules = dict(plain.named_modules()) | dict(base.named_modules())
    pieces_of_site = model.pieces(resolved, without_outer=bool(owners))
    if plain.config.tie_word_embeddings and pieces_of_site.keys() & model.backbone.head_sites:
        untie(plain)  # the embedding, whose weight the output layer shares, has no delta
    for path, name, weight in merged_weights(model.backbone, pieces_of_site):
        if path in modules:  # else a pooler, which this class has not and its outputs do not need
            setattr(modules[path], name, nn.Parameter(weight, requires_grad=False))
    return plain


def without_blend(model: Runtime, blend: Weights) -> PreTrainedModel:
    """The plain model that `merge` adds a blend to, the backbone's weights as they are.

    A task's head, where the blend has one, is zero.
    """
    resolved = model.resolve(blend)
    owners = [name for name in resolved.terms if model.resident(name).head]
    plain = _plain_copy(model, model.head_owner(resolved) if owners else None)
    for name in owners:
        for path in model.resident(name).head:
            nn.init.zeros_(plain.get_parameter(path))
    return plain


def _plain_copy(model: Runtime, head_owner: str | None) -> PreTrainedModel:
    """The model of a class that transformers would load, with nothing of ours on it."""
    if head_owner is None:
        plain: PreTrainedModel = copy.deepcopy(model.backbone.model)
        for name in model.backbone.attached:
            setattr(getattr(plain, plain.base_model_prefix, plain), name, None)
    else:
        from adapters_hub.tasks.heads import plain_model

        plain = plain_model(model.backbone, model.resident(head_owner))
    if model.hooks:
        plain.gradient_checkpointing_disable()
    remove_hooks(plain, model.bank.hook_ids() | {hook.id for hook in model.hooks})
    return plain
