"""Pairs of texts, and adapters that make vectors of texts."""

import torch
from conftest import WORDS
from peft import LoraConfig

from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks.retrieval import Retrieval


def pair(text, positive, *negatives, key=None, language=None, **fields):
    fields |= {"positive": positive} | ({"negatives": list(negatives)} if negatives else {})
    return Row(text, key=key, language=language, where="pairs.jsonl:1", fields=fields)


PAIRS = [
    pair(f"{WORDS[n]} {WORDS[n + 1]}", f"{WORDS[n + 2]} {n}", key=str(n), language="en")
    for n in range(12)
]


def new(model, name, task=None, seed=0, **options):
    task = task or Retrieval()
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear",
                      task_type=task.peft_task_type(model.backbone))  # fmt: skip
    info = AdapterInfo(name=name, task=task.name, backbone=str(model.backbone.folder), **options)
    return task.new_adapter(info, model.backbone, lora, seed)


def moved(adapter, scale=0.1):
    """The adapter with factors away from zero, so that it does something."""
    generator = torch.Generator().manual_seed(sum(map(ord, adapter.name)))
    return adapter.map(lambda t: torch.randn(t.shape, generator=generator) * scale)
