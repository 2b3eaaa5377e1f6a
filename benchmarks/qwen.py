"""Random Qwen3-shaped models and adapters for them, in memory and as files, for ours and for PEFT.

Weights are random: the time of a product does not depend on what is in it. PEFT gets a model of its
own that shares every weight, since it puts its layers in place of the model's.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file

from adapters_hub import AdapterInfo, Library
from adapters_hub.backbone.backbone import Backbone, find_sites, site_shape
from adapters_hub.model import AdaptedModel
from adapters_hub.runtime.adapter import Adapter

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, dict[str, int]] = {
    "50m": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 24576,
    },
    "0.6b": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
}  # fmt: skip


def plain_model(shape: str) -> Any:
    """A Qwen3 of one of `SHAPES`, float32, frozen, embeddings tied."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        **SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # a random model must not stop early
    return model.eval().requires_grad_(False)


def adapted(model: Any, library: Path, **options: Any) -> AdaptedModel:
    """Ours around a model."""
    backbone = Backbone(
        name="qwen",
        folder=library,
        model=model,
        base=model.model,
        tokenizer=None,
        kind="decoder",
        bits=32,
        dtype=model.dtype,
        fingerprint="qwen",
        has_lm_head=True,
    )
    backbone.sites = find_sites(model, "model.")
    return AdaptedModel(backbone, Library(library), check_backbone=False, **options)


def twin(model: Any) -> Any:
    """A model of the same class over the same weights."""
    shared = {id(p): p for p in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def factors(model: AdaptedModel, rank: int, seed: int) -> dict[str, Any]:
    """Random factors for every linear layer of the body, of the size training gives them."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for site in model.backbone.body_sites:
        fan_in, fan_out = site_shape(model.backbone.sites[site])
        found[site] = (
            torch.randn(rank, fan_in, generator=random) / fan_in**0.5,
            torch.randn(fan_out, rank, generator=random) * 0.02,
        )
    return found


def add(model: AdaptedModel, name: str, rank: int, seed: int) -> Adapter:
    """A random adapter made resident under a name."""
    own = factors(model, rank, seed)
    info = AdapterInfo(name, backbone="qwen", fingerprint="qwen", rank=rank)
    outer = model.backbone.head_sites
    config = {"r": rank, "lora_alpha": rank}
    adapter = Adapter(info, own, dict.fromkeys(own, 1.0), {}, config, "model.", outer)
    return model.add(adapter)


def peft_config(rank: int) -> LoraConfig:
    """What `add` makes, for PEFT."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEAR), task_type="CAUSAL_LM")


def as_peft(model: Any, adapters: list[Adapter], rank: int) -> PeftModel:
    """PEFT around a model, with copies of the same adapters under the same names."""
    peft = get_peft_model(model, peft_config(rank), adapter_name=adapters[0].name)
    for adapter in adapters:
        if adapter is not adapters[0]:
            peft.add_adapter(adapter.name, peft_config(rank))
        state = {}
        for site, (a, b) in adapter.factors.items():
            stem = f"base_model.model.model.{site}"
            state[f"{stem}.lora_A.weight"], state[f"{stem}.lora_B.weight"] = a, b
        set_peft_model_state_dict(peft, state, adapter_name=adapter.name)
    return peft.eval().requires_grad_(False)


def save(adapter: Adapter, folder: Path) -> Path:
    """A PEFT folder, synced by whoever needs it so; as `Adapter.save` without its model card."""
    folder.mkdir(parents=True)
    tensors = {}
    for site, (a, b) in adapter.factors.items():
        stem = f"base_model.model.model.{site}"
        tensors[f"{stem}.lora_A.weight"] = a.contiguous()
        tensors[f"{stem}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {**adapter.peft_config(), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def size_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model."""
    parser.add_argument("--shape", choices=[*SHAPES], default="50m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
