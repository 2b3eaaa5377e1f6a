"""The state of a pretraining run, to disk and back: model, optimizers, and how far it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save(folder: Path, model: torch.nn.Module, optimizers: list, state: dict) -> None:
    """Write a checkpoint beside the old one and then put it in its place.

    The state file comes last: a folder without it is incomplete, and is not used by `restore`.
    """
    shutil.rmtree(folder / "checkpoint.new", ignore_errors=True)
    fresh, old = folder / "checkpoint.new", folder / "checkpoint"
    fresh.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(fresh)
    tensors = {
        f"{number}.{index}.{key}": torch.as_tensor(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    save_file(tensors, fresh / "optimizer.safetensors")
    (fresh / "state.json").write_text(json.dumps(state))
    shutil.rmtree(old, ignore_errors=True)
    fresh.rename(old)


def restore(folder: Path, model: torch.nn.Module, optimizers: list) -> dict:
    """Load the newest complete checkpoint into the objects and return its state."""
    for name in ("checkpoint", "checkpoint.new"):
        path = folder / name
        if (path / "state.json").exists():
            break
    else:
        return {"step": 0, "minutes": 0.0, "curve": []}
    # The output layer shares the embedding's weights and so has no entry of its own.
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    tensors = load_file(path / "optimizer.safetensors")
    for number, optimizer in enumerate(optimizers):
        content: dict = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
        for name, tensor in tensors.items():
            owner, index, key = name.split(".")
            if int(owner) == number:
                content["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(content)
    return json.loads((path / "state.json").read_text())
