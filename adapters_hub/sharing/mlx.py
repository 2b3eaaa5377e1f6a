"""MLX: mlx-lm's ``adapters.safetensors`` and ``adapter_config.json``.

mlx-lm makes each layer whose name is among ``keys`` ``y + scale · (x A) B``, A (in, r), B (r, out),
and loads the file into those. Knows that form; never imports mlx.
"""

import json
from pathlib import Path

from torch import Tensor

from adapters_hub.errors import UnsupportedAdapterError
from adapters_hub.library.layers import layer_of
from adapters_hub.sharing.engine import AdapterEngine, Source, of_type, written
from adapters_hub.sharing.peft_folder import stored
from adapters_hub.sharing.plain_form import deltas

WEIGHTS_FILE = "adapters.safetensors"
_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")


class Mlx(AdapterEngine):
    """What ``mlx_lm.load(model, adapter_path=FOLDER)`` reads."""

    name = "mlx"
    reader = "a reader of mlx-lm's format"

    def write(self, source: Source, folder: Path) -> str:
        from safetensors.torch import save_file

        of_type(source, self.name, _TYPES)
        backbone, adapted = source.model.backbone, source.composed.factors
        if backbone.config.tie_word_embeddings and adapted.keys() & backbone.head_sites:
            raise UnsupportedAdapterError(
                f"{source.blend} adapts the output layer, which mlx-lm has in its embedding alone; "
                "write --for merged"
            )
        kinds = {_key(site) for site in adapted}
        missing = [site for site in backbone.sites if _key(site) in kinds]
        adapter = stored(source.adapter(self.name, missing=missing), source.dtype)
        tensors = {}
        for site, (a, b) in adapter.factors.items():
            tensors[f"{adapter.path(site)}.lora_a"] = a.T.contiguous()
            tensors[f"{adapter.path(site)}.lora_b"] = b.T.contiguous()
        rank = len(next(iter(adapter.factors.values()))[0])
        config = {
            "fine_tune_type": "lora",
            "model": source.base or backbone.name,
            "num_layers": backbone.config.num_hidden_layers,
            "lora_parameters": {
                "rank": rank,
                "scale": 1.0,
                "dropout": 0.0,
                "keys": sorted(kinds),
            },
        }
        text = json.dumps(config, indent=2) + "\n"
        with written(folder) as stage:
            save_file(tensors, stage / WEIGHTS_FILE)
            (stage / "adapter_config.json").write_text(text, encoding="utf-8")
        return f"mlx_lm.load({source.base_name!r}, adapter_path=FOLDER)"

    def read(self, source: Source, folder: Path) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS_FILE)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        scale = config["lora_parameters"]["scale"]
        paths = {source.composed.path(site): site for site in source.model.backbone.sites}
        names = {key.removesuffix(".lora_a") for key in tensors if key.endswith(".lora_a")}
        return deltas(
            {paths[n]: (tensors[f"{n}.lora_a"].T, scale * tensors[f"{n}.lora_b"].T) for n in names}
        )


def _key(site: str) -> str:
    """A site's name in its layer, as mlx-lm has it; of one in no layer, its name."""
    layer = layer_of(site)
    return site.removeprefix(f"{layer}.") if layer else site
