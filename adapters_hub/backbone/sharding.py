"""A frozen backbone whose weights lie in parts on the processes of a group (FSDP2).

Knows torch's ``fully_shard`` and the modules of a backbone; does not know who launched the
processes, adapters or losses. Source: PyTorch FSDP (arXiv:2304.11277) and ``torch.distributed.fsdp.
fully_shard``.

Each of the layers that a transformer repeats is a group of FSDP: its weights are gathered when it
is called, in the forward and again in the backward, and let go right behind it. So is an embedding
that no head shares. What is left (last norm, heads, their embedding) is called at different places,
and a head any number of times. So that is one group more, which is gathered at the first call of
any of it, and stays until `Shards.release`: the count of gatherings, at each of which all processes
must meet, does not depend on how often a process calls it.

What processes do between two calls must be alike: the same forwards, and backwards through the same
layers.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers.modeling_layers import GradientCheckpointingLayer

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.shards import Shards
from adapters_hub.errors import BackboneError


class _Beside(nn.Module):
    """Holds the modules that have weights beside the layers; it is never called."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)


def shard(
    backbone: Backbone,
    mesh: DeviceMesh,
    *,
    layers: Collection[str] = (),
    reshard_after_forward: bool = True,
) -> Shards:
    """Cut a backbone's weights into a part for each process of a mesh of one dimension, in place.

    They move to the mesh's device a layer at a time. ``layers``: the class names of what is a group
    of its own; without any, the layers that transformers repeats. Raises `BackboneError` for a
    backbone that cannot be cut.
    """
    from torch.distributed.fsdp import fully_shard

    _check(backbone)
    model, base = backbone.model, backbone.base
    repeated = _layers(backbone, layers)
    embedding = model.get_input_embeddings()
    if _is_alone(embedding, backbone):
        repeated.append(embedding)
    inside = {id(p) for layer in repeated for p in layer.parameters()}
    # a pooler without weights in the checkpoint: heads bring theirs
    left_out = {p for name, p in base.named_parameters() if name in backbone.untrained}
    left_out |= {p for p in _parameters(backbone) if p.dim() == 0}
    owners = [
        module
        for module in dict.fromkeys((*model.modules(), *base.modules()))
        if any(
            p is not None and id(p) not in inside and p not in left_out
            for p in module._parameters.values()
        )
    ]
    options: dict[str, Any] = {"mesh": mesh}
    try:
        for layer in repeated:
            fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
        beside = _Beside(owners)
        fully_shard(beside, ignored_params=left_out, **options)
        if base is model or backbone.prefix:  # else the model does not call its body
            everything, kind = left_out | {*beside.parameters()}, type(base)
            fully_shard(base, ignored_params=everything, **options)
            base.__class__ = kind  # by which transformers knows what it can record
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise BackboneError(f"{backbone.name} cannot be sharded: {error}") from error
    device = _device_of(mesh)
    for module in dict.fromkeys((*model.modules(), *base.modules())):
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    for parameter in left_out:
        parameter.data = parameter.data.to(device)
    shards = Shards(repeated, beside)
    for module in owners:
        module.register_forward_pre_hook(shards.before)
    embedding.register_forward_hook(shards.after_embedding)
    _gather_once(repeated, shards)
    backbone.shards = shards
    return shards


def whole(weight: Tensor) -> Tensor:
    """A weight as a whole, gathered where it lies in parts: all processes must come here."""
    gathered = getattr(weight, "full_tensor", None)
    return weight if gathered is None else gathered()


def _gather_once(layers: list[Any], shards: Shards) -> None:
    """Make the tensors that are gathered into, here and not in some call's inference mode."""
    for layer in layers:
        layer.unshard()
        layer.reshard()
    shards.gather()
    shards.release()


def _check(backbone: Backbone) -> None:
    if backbone.shards is not None:
        raise BackboneError(f"{backbone.name} is sharded already")
    if backbone.bits < 16 or any(not p.is_floating_point() for p in _parameters(backbone)):
        raise BackboneError(
            f"{backbone.name} has {backbone.bits}-bit weights, which FSDP cannot cut into parts; "
            "load it at 16 bits (bits=16), or let each process hold all of it (no --use_fsdp)"
        )
    if backbone.offloaded:
        raise BackboneError(
            f"{backbone.name} is offloaded by its device_map; load it without one to shard it"
        )


def _parameters(backbone: Backbone) -> list[nn.Parameter]:
    return [*dict.fromkeys((*backbone.model.parameters(), *backbone.base.parameters()))]


def _layers(backbone: Backbone, names: Collection[str]) -> list[nn.Module]:
    """What becomes a group each: modules of these classes, else the layers that repeat."""
    model = backbone.model
    modules = [*dict.fromkeys((*model.modules(), *backbone.base.modules()))]
    if names:
        chosen = [module for module in modules if type(module).__name__ in names]
        if not chosen:
            raise BackboneError(
                f"{backbone.name} has no layer of class {', '.join(sorted(names))}, which "
                "accelerate's configuration names (transformer_layer_cls_to_wrap)"
            )
    else:
        chosen = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    inner = {id(m) for module in chosen for m in module.modules() if m is not module}
    chosen = [module for module in chosen if id(module) not in inner and [*module.parameters()]]
    if not chosen:
        raise BackboneError(
            f"{backbone.name}: transformers does not say which layers a {type(model).__name__} "
            "repeats; name their class (--fsdp_transformer_layer_cls_to_wrap)"
        )
    return chosen


def _is_alone(embedding: nn.Module, backbone: Backbone) -> bool:
    """Whether no other module has the embedding's weight, such as a head that is tied to it."""
    weight = embedding.get_parameter("weight")
    modules = dict.fromkeys((*backbone.model.modules(), *backbone.base.modules()))
    holders = [m for m in modules if any(p is weight for p in m._parameters.values())]
    return holders == [embedding]


def _device_of(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(
        mesh.device_type, torch.get_device_module(mesh.device_type).current_device()
    )
