"""An adapter's numbers from its files, and into a PEFT folder.

Knows PEFT's files and tensors; does not know backbones or sites, so who serves files needs neither
transformers nor PEFT.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adapters_hub.errors import AdapterFileError, LibraryError, UnsupportedAdapterError
from adapters_hub.library import adapter_file
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import AdapterFiles, AdapterInfo
from adapters_hub.library.atomic import new_folder
from adapters_hub.library.card_usage import usage
from adapters_hub.library.model_card import write_card

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def read_tensor_bytes(files: AdapterFiles, pinned: bool = False) -> Tensor:
    """The bytes of all of a file's tensors, as one tensor (uint8), ``pinned`` for a fast copy."""
    data = torch.empty(files.header.layout.size, dtype=torch.uint8, pin_memory=pinned)
    if len(data):
        tensorfile.read_into(files.weights, files.header, memoryview(data.numpy()))  # type: ignore[arg-type]
    return data


def read_factors(files: AdapterFiles) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and B (out, r) of each module that a file adapts, for whom no backbone is at hand.

    Raises `AdapterFileError` for numbers that are not finite, `UnsupportedAdapterError` for an
    adapter of experts.
    """
    if files.wrapped:
        raise UnsupportedAdapterError(
            f"{files.weights} has factors of {min(files.wrapped)}, of which only its backbone says "
            "how many matrices they are for: give the model instead of its library"
        )
    data = read_tensor_bytes(files)
    check_finite(data, files)
    return {
        module: (tensor_of(data, files, a), tensor_of(data, files, b))
        for module, (a, b) in files.modules.items()
    }


def tensor_of(data: Tensor, files: AdapterFiles, key: str) -> Tensor:
    """A copy of one of a file's tensors: it need not begin at a multiple of its items' size."""
    entry = files.header.tensors[key]
    return data[entry.start : entry.end].clone().view(DTYPES[entry.dtype]).view(entry.shape)


def check_finite(data: Tensor, files: AdapterFiles) -> None:
    """Raise `AdapterFileError` for a number that is not finite among a file's ``data``."""
    for key in files.header.tensors:
        if not torch.isfinite(tensor_of(data, files, key)).all():
            raise AdapterFileError(f"{files.weights}: {key} holds NaN or infinity")


def write_folder(
    folder: str | os.PathLike[str],
    info: AdapterInfo,
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write a PEFT folder of an adapter's checked parts; ``tensors`` are by the file's keys.

    It is written beside and renamed into place, where there is nothing but an adapter; among other
    files each of its three is replaced by itself. Raises `AdapterFileError` for numbers that are
    not finite, `LibraryError` where it cannot be written; nothing is new then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterFileError(f"{info.name}: {key} holds NaN or infinity; not saved")
    unhashed = replace(info, hash=None)  # the stored one may be of other tensors
    text = json.dumps(adapter_file.plain_config(config), indent=2) + "\n"
    try:
        with new_folder(folder) as stage:
            header = adapter_file.metadata(unhashed, config)
            save_file(tensors, stage / adapter_file.WEIGHTS_FILE, header)
            (stage / adapter_file.CONFIG_FILE).write_text(text, encoding="utf-8")
            card = write_card(info) + usage(info, config)
            (stage / adapter_file.CARD_FILE).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise LibraryError(f"cannot write {folder}: {error}") from error
    return folder
