"""Adapters that write, and the tokens that no text has."""

import torch
from peft import LoraConfig

from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks.generation import Generation


def add_moved(model, name, task=None, seed=0):
    """An adapter of the task with factors away from zero, resident."""
    task = task or Generation()
    kind = task.peft_task_type(model.backbone)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind)
    info = AdapterInfo(name=name, task=task.name, backbone=str(model.backbone.folder))
    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
    change = lambda t: torch.randn(t.shape, generator=generator) * 0.2
    return model.add(task.new_adapter(info, model.backbone, lora).map(change))


def unspoken(model):
    """Tokens that have no text: special ones, and those beyond the tokenizer's."""
    tokenizer, size = model.backbone.tokenizer, model.backbone.config.vocab_size
    return sorted({*tokenizer.all_special_ids, *range(len(tokenizer), size)})
