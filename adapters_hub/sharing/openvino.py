"""OpenVINO GenAI: one safetensors file with an ``alpha`` beside each pair of factors.

It reads no configuration: alpha / r scales. Knows that form; never imports openvino.
"""

from pathlib import Path

import torch
from torch import Tensor

from adapters_hub.library.adapter_file import KEY_PREFIX
from adapters_hub.sharing.engine import AdapterEngine, Source, written
from adapters_hub.sharing.peft_folder import stored
from adapters_hub.sharing.plain_form import deltas


class OpenVino(AdapterEngine):
    """What ``openvino_genai.Adapter(FILE)`` reads."""

    name = "openvino"
    reader = "a reader of OpenVINO GenAI's format"

    def write(self, source: Source, folder: Path) -> str:
        from safetensors.torch import save_file

        adapter = stored(source.adapter(self.name), source.dtype)
        tensors = {}
        for site, (a, b) in adapter.factors.items():
            stem = KEY_PREFIX + adapter.path(site)
            tensors[f"{stem}.lora_A.weight"] = a.contiguous()
            tensors[f"{stem}.lora_B.weight"] = b.contiguous()
            tensors[f"{stem}.alpha"] = torch.tensor(float(len(a)))
        with written(folder) as stage:
            save_file(tensors, stage / f"{adapter.name}.safetensors")
        return f"openvino_genai.Adapter('FOLDER/{adapter.name}.safetensors')"

    def read(self, source: Source, folder: Path) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        path = folder / f"{source.composed.name}.safetensors"
        tensors = load_file(path)
        factors = {}
        for site in source.composed.factors:
            stem = KEY_PREFIX + source.composed.path(site)
            a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
            factors[site] = (a, tensors[f"{stem}.alpha"] / len(a) * b)
        return deltas(factors)
