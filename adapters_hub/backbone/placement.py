"""A backbone that is moved to another device, or cast to another precision.

Knows what torch and transformers can move; does not know adapters.
"""

import torch
from torch import nn

from adapters_hub.backbone.assembly import is_split
from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.options import Dtype, checked_device, dtype_of
from adapters_hub.errors import BackboneError, SettingsError


def destination(
    backbone: Backbone, device: str | int | torch.device | Dtype | None, dtype: Dtype | None
) -> tuple[torch.device, torch.dtype] | None:
    """Where `Runtime.to` means to put a backbone, and in which precision; None if it is there."""
    if isinstance(device, torch.dtype):
        device, dtype = None, device
    here = backbone.device
    place = here if device is None else checked_device(device)
    wanted = backbone.dtype if dtype is None else dtype_of(dtype)
    if wanted == "auto":
        raise SettingsError("dtype='auto' is for loading; say which precision")
    moves = place.type != here.type or place.index not in (None, here.index)
    return (place, wanted) if moves or wanted != backbone.dtype else None


def move(backbone: Backbone, place: torch.device, dtype: torch.dtype) -> None:
    """Put a backbone on a device, and cast it; `BackboneError` where that cannot be."""
    casts = dtype != backbone.dtype
    if place.type == "meta":
        raise BackboneError("device='meta' holds no weights, and a backbone needs its weights")
    if backbone.bits < 16 and casts:
        raise BackboneError(
            f"{backbone.name} has {backbone.bits}-bit weights, which cannot be cast; load it with "
            f"dtype={str(dtype).removeprefix('torch.')!r}"
        )
    if is_split(backbone.model) and place != backbone.device:
        raise BackboneError(
            f"{backbone.name} is split over several devices by its device_map; load it with "
            f"device={str(place)!r}"
        )
    parts = [backbone.model, backbone.base]  # T5's body is another model of the same layers
    try:
        for part in parts:
            if casts:
                _cast(part, dtype)
            if not is_split(part):
                part.to(place)
    except (ValueError, RuntimeError) as error:
        raise BackboneError(f"{backbone.name} cannot be moved to {place}: {error}") from error
    if casts:
        backbone.dtype, backbone.bits = dtype, dtype.itemsize * 8


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what a checkpoint stores; tables of positions keep theirs, as where it is loaded so."""
    for module in model.modules():
        stored = {
            name: buffer
            for name, buffer in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        }
        for tensor in (*module._parameters.values(), *stored.values()):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
