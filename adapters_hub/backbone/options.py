"""How a checkpoint is to be loaded: its precision, its place, its attention.

Knows transformers' keywords and which of them contradict each other; does not know architectures
or files.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import transformers

from adapters_hub.backbone.quantised import BITS, compute_dtype
from adapters_hub.errors import SettingsError
from adapters_hub.extras import require

Dtype = str | torch.dtype
DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What `load_backbone` says about loading; None is not said.

    Raises `SettingsError` for values that cannot be, or contradict each other.
    """

    bits: int | None = None
    dtype: Dtype | None = None
    device: str | torch.device | None = None
    device_map: DeviceMap | None = None
    attn_implementation: str | None = None
    offload_folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in BITS:
            raise SettingsError(f"bits={self.bits!r}: choose one of {', '.join(map(str, BITS))}")
        dtype = None if self.dtype is None else dtype_of(self.dtype)
        whole = self.bits is not None and self.bits >= 16
        if dtype and whole and (dtype == "auto" or dtype.itemsize * 8 != self.bits):
            raise SettingsError(
                f"bits={self.bits} and dtype={str(self.dtype)!r} both say the precision of the "
                "weights, and not the same; give dtype alone (bits=8 or 4 may stand beside it: "
                "then it is of what flows between the quantised layers)"
            )
        if self.device is not None and self.device_map is not None:
            raise SettingsError(
                f"device={str(self.device)!r} and device_map={self.device_map!r} both say where "
                "the model goes; give one of them"
            )
        mapped = isinstance(self.device_map, Mapping)
        places = self.device_map.values() if mapped else [self.device_map]  # type: ignore[union-attr]
        if "meta" in map(str, places):
            raise SettingsError(
                f"device_map={self.device_map!r}: what is on 'meta' has no weights at all; give "
                "devices, or 'disk' for what is read when it is called"
            )
        if self.device is not None:
            checked_device(self.device)

    @property
    def given(self) -> dict[str, object]:
        """Those that are said, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def place(self) -> torch.device:
        """The device, or the first of a map; where none is said, a GPU if there is one."""
        places = self.device_map
        if isinstance(places, Mapping):
            places = next(iter(places.values()), None)
        try:
            return checked_device(self.device if places is None else torch.device(places))
        except RuntimeError:  # "auto", "balanced", …
            return checked_device(None)

    def keywords(self, bits: int, *, quantised: bool) -> dict[str, object]:
        """What transformers' ``from_pretrained`` is given for a model of so many bits.

        ``quantised``: the checkpoint is, and so says itself how. Raises `MissingExtraError`.
        """
        dtype = compute_dtype(bits, self.place) if self.dtype is None else dtype_of(self.dtype)
        options: dict[str, object] = {"dtype": dtype}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        if self.device_map is not None:
            options["device_map"] = self.device_map
        if self.offload_folder is not None:
            options["offload_folder"] = self.offload_folder
        if bits >= 16:
            return options
        require("bitsandbytes", "bits", f"a backbone at {bits} bits")
        options.setdefault("device_map", {"": self.place})
        if quantised:
            return options
        if bits == 8:
            asked = transformers.BitsAndBytesConfig(load_in_8bit=True)
        else:
            flows = compute_dtype(bits, self.place) if dtype == "auto" else dtype
            asked = transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=flows
            )
        return {**options, "quantization_config": asked}


def dtype_of(dtype: Dtype) -> torch.dtype | Literal["auto"]:
    """A precision as torch names it, or ``"auto"``; `SettingsError` for what is none."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return "auto"
    if name not in _DTYPES:
        raise SettingsError(
            f"dtype={str(dtype)!r}: choose one of auto, {', '.join(_DTYPES)}; bits=8 or 4 quantises"
        )
    return _DTYPES[name]


def checked_device(device: str | int | torch.device | None) -> torch.device:
    """The device asked for, else a GPU if there is one; `SettingsError` if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"device={device!r}: give 'cpu', 'cuda' or 'cuda:1' ({reason})"
        ) from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"device={str(device)!r}: this PyTorch ({torch.__version__}) finds no CUDA device; "
            "device='cpu', or none given, runs on the CPU"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device={str(device)!r}: there are {torch.cuda.device_count()} CUDA devices, counted "
            "from 0"
        )
    return wanted
