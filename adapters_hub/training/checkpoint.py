"""What a run must remember: each adapter being trained, and how that goes to disk and back.

Knows adapters, optimizers and files; does not know tasks, batches or models. A checkpoint is
safetensors and JSON, replaced as one folder, so a kill leaves the last one or the new one.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters_hub.errors import SettingsError
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.training.settings import TrainingSettings

log = logging.getLogger(__name__)

_STATE_TENSORS = "state.safetensors"
_STATE_FACTS = "state.json"
_IRRELEVANT = {
    "resume", "run_folder", "tracker", "save_every", "replace", "accumulation", "threads",
}  # fmt: skip
"""Settings that may change between a run and its continuation."""


@dataclass
class Trainee:
    """One adapter being trained: its parameters, its optimizer, its best state on dev."""

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    peaks: list[float]  # learning rate of each parameter group
    best_score: float | None = None
    best: list[Tensor] = field(default_factory=list)
    best_step: int = 0
    waited: int = 0
    stopped: bool = False

    @classmethod
    def of(cls, adapter: Adapter, settings: TrainingSettings) -> "Trainee":
        """A trainee from a trainable adapter."""
        head_rate = settings.head_learning_rate or settings.learning_rate
        factors = [t for site in sorted(adapter.factors) for t in adapter.factors[site]]
        groups: list[dict[str, Any]] = [
            {
                "params": factors,
                "weight_decay": settings.weight_decay,
                "lr": settings.learning_rate,
            },
            {"params": [adapter.head[k] for k in sorted(adapter.head)], "lr": head_rate},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        return cls(adapter, optimizer, [group["lr"] for group in groups])

    def remember(self, score: float, step: int, higher_is_better: bool) -> None:
        """Keep the parameters if the score is the best so far."""
        better = self.best_score is None or (
            score > self.best_score if higher_is_better else score < self.best_score
        )
        if better:
            self.best_score, self.best_step, self.waited = score, step, 0
            self.best = [t.detach().clone() for t in self.adapter.parameters()]
        else:
            self.waited += 1

    def restore_best(self) -> None:
        """Put the best state back, if there was a look at dev at all."""
        with torch.no_grad():
            for tensor, best in zip(self.adapter.parameters(), self.best, strict=False):
                tensor.copy_(best)


class Checkpoint:
    """A run's folder on disk. ``load`` refuses the state of a run with other settings or data.

    ``facts`` say, in JSON, what the run trains on besides its settings.
    """

    def __init__(self, folder: Path, settings: TrainingSettings, facts: Mapping[str, Any]) -> None:
        self.folder = folder / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {k: v for k, v in settings.flat().items() if k not in _IRRELEVANT}
        self.run = json.loads(json.dumps({**chosen, **facts}, default=list))

    def save(
        self,
        trainees: Sequence[Trainee],
        history: list[dict[str, float]],
        step: int,
        scaler: Any = None,
    ) -> None:
        """Write the state after a step; ``scaler`` is the loss scaler of fp16, if there is one."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        facts = []
        for number, trainee in enumerate(trainees):
            for place, tensor in enumerate(trainee.adapter.parameters()):
                tensors[f"{number}/{place}/now"] = tensor
                for key, value in trainee.optimizer.state.get(tensor, {}).items():
                    tensors[f"{number}/{place}/{key}"] = value
            for place, tensor in enumerate(trainee.best):
                tensors[f"{number}/{place}/best"] = tensor
            names = ("best_score", "best_step", "waited", "stopped")
            facts.append({name: getattr(trainee, name) for name in names})
        partial = self.folder.with_name("checkpoint.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
                  partial / _STATE_TENSORS)  # fmt: skip
        state = {
            "step": step,
            "trainees": facts,
            "history": history,
            "scaler": None if scaler is None else scaler.state_dict(),
            "run": self.run,
        }
        (partial / _STATE_FACTS).write_text(json.dumps(state))
        old = self.folder.with_name("checkpoint.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        partial.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(
        self, trainees: Sequence[Trainee], history: list[dict[str, float]], scaler: Any = None
    ) -> int:
        """Put the state into the trainees; returns the step to go on from, 0 if there is none."""
        from safetensors.torch import load_file

        old = self.folder.with_name("checkpoint.old")
        if not self.folder.exists() and old.exists():
            old.rename(self.folder)
        if not self.folder.exists():
            return 0
        state = json.loads((self.folder / _STATE_FACTS).read_text())
        old_run = state["run"]
        if changed := [k for k in self.run | old_run if self.run.get(k) != old_run.get(k)]:
            raise SettingsError(
                f"{self.folder} is from a run with other settings or data ({', '.join(changed)}); "
                "go on with those, or start anew with --no-resume"
            )
        tensors = load_file(self.folder / _STATE_TENSORS)
        for number, (trainee, facts) in enumerate(zip(trainees, state["trainees"], strict=True)):
            for name, value in facts.items():
                setattr(trainee, name, value)
            parameters = trainee.adapter.parameters()
            with torch.no_grad():
                for place, tensor in enumerate(parameters):
                    tensor.copy_(tensors[f"{number}/{place}/now"])
                    own = f"{number}/{place}/"
                    keys = {k.removeprefix(own) for k in tensors if k.startswith(own)}
                    kept = {k: tensors[own + k] for k in keys - {"now", "best"}}
                    if (
                        kept
                    ):  # a fused optimizer wants all of it, the step too, beside the parameter
                        trainee.optimizer.state[tensor] = {
                            k: value.to(tensor.device) for k, value in kept.items()
                        }
            if f"{number}/0/best" in tensors:
                trainee.best = [
                    tensors[f"{number}/{place}/best"].to(tensor.device)
                    for place, tensor in enumerate(parameters)
                ]
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        history.extend(state["history"])
        log.info("going on from step %d of %s", state["step"], self.folder)
        return int(state["step"])

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.folder, ignore_errors=True)
