"""An untrained adapter for each task, whose factors do something."""

import torch
from peft import LoraConfig

from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks import make_task

TASKS = {
    "classification": {"label_names": ("good", "bad")},
    "question-answering": {},
    "token-classification": {"label_names": ("O", "B-X", "I-X")},
    "retrieval": {},
    "generation": {},
    "translation": {},
}


def adapters(model):
    """One adapter a task, with factors that do something."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, options in TASKS.items():
        task = make_task(name, **options)
        lora = LoraConfig(r=4, target_modules="all-linear")
        info = AdapterInfo(
            name=name, task=name, labels=task.labels, backbone="starter",
            fingerprint=model.backbone.fingerprint,
        )  # fmt: skip
        fresh = task.new_adapter(info, model.backbone, lora)
        made[name] = fresh.map(lambda t: t + 0.02 * torch.randn(t.shape, generator=generator).to(t))
    return made
