"""llama.cpp: an adapter as one GGUF file, and Ollama's Modelfile beside it.

The file has ``general.type`` adapter, ``adapter.type`` lora, ``adapter.lora.alpha``, and for each
layer ``NAME.lora_a`` (r, in) and ``NAME.lora_b`` (out, r) by llama.cpp's names, which adds
alpha / r · B·A. Knows llama.cpp's names by the package `gguf`, and what its conversion of a model
does to the weights, since that must be done to B too.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from adapters_hub.errors import SettingsError, UnsupportedAdapterError
from adapters_hub.extras import require
from adapters_hub.sharing.engine import AdapterEngine, Source, of_type, written
from adapters_hub.sharing.plain_form import deltas

_ARCHITECTURES = {
    "bert": "BERT",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "gpt2": "GPT2",
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "xlm-roberta": "BERT",
}
"""transformers' model types whose linear weights llama.cpp takes as they are, but `_ROTATED`."""

_ROTATED = ("llama", "mistral")
"""Those whose rows of q and k it puts in another order, for the way it rotates positions."""

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Gguf(AdapterEngine):
    """An adapter for llama.cpp, in ``NAME.gguf``."""

    name = "gguf"
    reader = "the package gguf"

    def write(self, source: Source, folder: Path) -> str:
        gguf = require("gguf", "gguf", f"--for {self.name}")
        kind = of_type(source, self.name, _ARCHITECTURES)
        config = source.model.backbone.config
        adapter = source.adapter(self.name)
        names = self._names(source, kind)
        arch = gguf.MODEL_ARCH[_ARCHITECTURES[kind]]
        with written(folder) as stage:
            path = stage / f"{adapter.name}.gguf"
            writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            rank = len(next(iter(adapter.factors.values()))[0])
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
            writer.add_name(adapter.name)
            if adapter.info.description:
                writer.add_description(adapter.info.description)
            number = gguf.GGMLQuantizationType[_DTYPES[source.dtype]]
            for site, (a, b) in adapter.factors.items():
                b = _rotated(b, site, config, kind)
                for end, tensor in (("lora_a", a), ("lora_b", b)):
                    data = gguf.quants.quantize(tensor.contiguous().numpy(), number)
                    writer.add_tensor(f"{names[site]}.{end}", data, raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return f"llama-server -m {source.base or 'BASE.gguf'} --lora FOLDER/{path.name}"

    def read(self, source: Source, folder: Path) -> dict[str, Tensor]:
        gguf = require("gguf", "gguf", f"--for {self.name}")
        kind = of_type(source, self.name, _ARCHITECTURES)
        config = source.model.backbone.config
        path = folder / f"{source.composed.name}.gguf"
        reader = gguf.GGUFReader(path)
        alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents()
        tensors = {
            tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            for tensor in reader.tensors
        }
        factors = {}
        for site, name in self._names(source, kind).items():
            a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
            b = _rotated(b, site, config, kind, back=True)
            factors[site] = (a, alpha / len(a) * b)
        return deltas(factors)

    def _names(self, source: Source, kind: str) -> dict[str, str]:
        """Site → llama.cpp's name of its weight; `UnsupportedAdapterError` where it has none."""
        gguf = require("gguf", "gguf", f"--for {self.name}")
        backbone, adapter = source.model.backbone, source.composed
        arch = gguf.MODEL_ARCH[_ARCHITECTURES[kind]]
        table = gguf.get_tensor_name_map(arch, backbone.config.num_hidden_layers)
        tied = backbone.config.tie_word_embeddings and adapter.factors.keys() & backbone.head_sites
        names: Mapping[str, str | None] = {
            site: table.get_name(adapter.path(site)) or table.get_name(site)
            for site in adapter.factors
        }
        if lost := [site for site, name in names.items() if name is None]:
            raise UnsupportedAdapterError(
                f"{source.blend} adapts {lost[0]!r}, for which llama.cpp has no name in a model of "
                f"the type {kind!r}; write --for merged"
            )
        if tied:
            raise UnsupportedAdapterError(
                f"{source.blend} adapts the output layer, which llama.cpp has in its embedding "
                "alone; write --for merged"
            )
        return {site: f"{name}.weight" for site, name in names.items()}


class Ollama(Gguf):
    """The same, and a Modelfile."""

    name = "ollama"

    def write(self, source: Source, folder: Path) -> str:
        if source.base is None:
            raise SettingsError(
                "--for ollama: say by --base what the Modelfile begins FROM: a model's name at "
                "Ollama, a GGUF file, or a folder of safetensors"
            )
        with written(folder) as stage:
            super().write(source, stage)
            (path,) = stage.glob("*.gguf")
            text = f"FROM {source.base}\nADAPTER ./{path.name}\n"
            (stage / "Modelfile").write_text(text, encoding="utf-8")
        return f"ollama create {path.stem} -f FOLDER/Modelfile"


def _rotated(
    b: Tensor, site: str, config: PreTrainedConfig, kind: str, back: bool = False
) -> Tensor:
    """B (out, r) with the rows of q and k as llama.cpp has them, or ``back`` again.

    transformers rotates the first with the second half of each attention head's numbers, llama.cpp
    neighbours: row j of half h becomes row 2·j + h.
    """
    part = site.rsplit(".", 1)[-1]
    heads = {"q_proj": config.num_attention_heads}
    heads["k_proj"] = getattr(config, "num_key_value_heads", config.num_attention_heads)
    if kind not in _ROTATED or part not in heads:
        return b
    half = len(b) // heads[part] // 2
    shape = (heads[part], half, 2, -1) if back else (heads[part], 2, half, -1)
    return b.reshape(shape).transpose(1, 2).reshape(b.shape)
