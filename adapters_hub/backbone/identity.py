"""Which backbone a model in memory is: that of its checkpoint, where it still has its weights.

Knows how transformers names what it saves; the fingerprint itself is the library's.
"""

import itertools
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters_hub.errors import BackboneError
from adapters_hub.library.fingerprint import (
    MOST_SAMPLES,
    VALUES,
    Sampled,
    fingerprint,
    fingerprint_of,
    sampled_tensors,
)

log = logging.getLogger(__name__)

_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def fingerprint_of_model(name: str, model: PreTrainedModel, folder: Path | None) -> str:
    """The fingerprint of a model in memory; ``folder`` is the checkpoint that it came from.

    It is the checkpoint's where the model has its weights, at whatever precision; else the one that
    its folder would have, were it saved now. A difference to the checkpoint is logged.
    """
    tensors = saved_tensors(model)
    stored = {} if folder is None else _sampled(folder)
    if folder is not None and stored:
        differs = _difference(model.base_model_prefix, tensors, stored)
        if differs is None:
            return fingerprint(folder)
        log.warning(
            "%s: the model is not what its checkpoint is (%s), so adapters of the one do not "
            "belong to the other; save it as a checkpoint to load it by name",
            name,
            differs,
        )
    config = json.loads(model.config.to_json_string())
    return fingerprint_of(config, {name: _in_memory(tensor) for name, tensor in tensors.items()})


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's tensors by the names that ``save_pretrained`` gives them."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = model.state_dict()
    for ignored in model._keys_to_ignore_on_save or ():
        state.pop(ignored, None)
    state = remove_tied_weights_from_state_dict(state, model)
    tensors: dict[str, Tensor] = revert_weight_conversion(model, state)
    return tensors


def _sampled(folder: Path) -> dict[str, Sampled]:
    """The checkpoint's tensors; none where it has no safetensors weights to compare with."""
    try:
        return sampled_tensors(folder)
    except BackboneError as error:
        log.debug("%s: %s", folder, error)
        return {}


def _difference(
    prefix: str, tensors: Mapping[str, Tensor], stored: Mapping[str, Sampled]
) -> str | None:
    """What of a checkpoint a model has otherwise, or None.

    Compared is what both have as floating numbers: a model need not have the checkpoint's head, and
    one of 8 bits has other numbers in its linear layers.
    """

    def alike(name: str) -> Tensor | None:
        names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        return next((tensors[n] for n in names if n in tensors), None)

    pairs = ((name, alike(name), entry) for name, entry in stored.items() if entry.floating)
    compared = 0
    for name, tensor, entry in itertools.islice(pairs, MOST_SAMPLES):
        if tensor is None or tensor.dtype not in _FLOATING:
            continue
        if list(tensor.shape) != list(entry.shape):
            return f"{name} is {list(tensor.shape)}, there {list(entry.shape)}"
        if not _same(tensor, entry.values()):
            return f"{name} has other numbers"
        compared += 1
    return None if compared else "they have no tensor in common"


def _same(tensor: Tensor, stored: bytes) -> bool:
    """Whether a tensor's values are those of a checkpoint, rounded to bfloat16."""
    values = _values(tensor)
    if values == stored or tensor.dtype != torch.float16:
        return values == stored
    # float16 holds other numbers than bfloat16, and small ones less precisely
    here, there = (_from_bytes(raw) for raw in (values, stored))
    return torch.allclose(here, there, rtol=2**-7, atol=2**-24)


def _in_memory(tensor: Tensor) -> Sampled:
    return Sampled(list(tensor.shape), tensor.dtype in _FLOATING, partial(_values, tensor))


def _values(tensor: Tensor) -> bytes:
    """Values from the middle of a tensor, as bfloat16 (rounded to nearest even)."""
    flat = tensor.detach().reshape(-1)
    first = max(0, len(flat) // 2 - VALUES // 2)
    some = flat[first : first + VALUES].to("cpu", torch.bfloat16)
    return some.view(torch.int16).numpy().astype("<i2").tobytes()


def _from_bytes(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, "<i2").astype(np.int16)).view(torch.bfloat16)
