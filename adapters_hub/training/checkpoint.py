"""What a run must remember: each adapter being trained, and how that goes to disk and back.

Knows adapters, optimizers and files; does not know tasks, batches or models. A checkpoint is one
safetensors file with JSON in its header, written beside and renamed into place, so a kill or a
power cut leaves the last one or the new one.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters_hub.errors import SettingsError, TrainingError
from adapters_hub.library.atomic import atomic_write
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch.amp import GradScaler

log = logging.getLogger(__name__)

_STATE = "state"  # the JSON in the header
_FILE = "checkpoint.safetensors"
_FORMER = "checkpoint", "checkpoint.old", "checkpoint.partial"  # folders of earlier versions
_IRRELEVANT = {
    "resume", "run_folder", "tracker", "save_every", "replace", "accumulation", "threads",
}  # fmt: skip
"""Settings that may change between a run and its continuation."""
_REMEMBERED = ("best_score", "best_step", "waited", "stopped")


class Stateful(Protocol):
    """What a run has beside its adapters that must go on from where it was."""

    def state(self) -> dict[str, Any]:
        """All of it, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put it back; raises `LookupError` or `ValueError` for another run's."""


class _State(TypedDict):
    """What the header's JSON says of a run; ``trainees``: what is remembered of each."""

    step: int
    trainees: list[dict[str, object]]
    history: list[dict[str, float]]
    scaler: dict[str, object] | None
    beside: dict[str, Any]
    run: dict[str, object]


@dataclass
class Trainee:
    """One adapter being trained: its parameters, its optimizer, its best state on dev.

    ``start`` is the frozen adapter that is subtracted from it meanwhile, if there is one.
    """

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    peaks: list[float]  # learning rate of each parameter group
    start: Adapter | None = None
    best_score: float | None = None
    best: list[Tensor] = field(default_factory=list)
    best_step: int = 0
    waited: int = 0
    stopped: bool = False

    @classmethod
    def of(
        cls, adapter: Adapter, settings: TrainingSettings, start: Adapter | None = None
    ) -> "Trainee":
        """A trainee from a trainable adapter.

        With ``lora_plus`` B has a group of its own (LoRA+, arXiv:2402.12354), as PEFT's
        ``create_loraplus_optimizer`` makes it; the head keeps its rate, where PEFT gives it that of
        A or, of one dimension, that of B.
        """
        rate = settings.learning_rate
        pairs = [adapter.factors[site] for site in sorted(adapter.factors)]
        of_factors = [(rate, [tensor for pair in pairs for tensor in pair])]
        if settings.lora_plus is not None:
            faster = rate * settings.lora_plus
            of_factors = [(rate, [a for a, _ in pairs]), (faster, [b for _, b in pairs])]
        groups: list[dict[str, object]] = [
            {"params": tensors, "weight_decay": settings.weight_decay, "lr": of_group}
            for of_group, tensors in of_factors
        ]
        head = [adapter.head[k] for k in sorted(adapter.head)]
        groups.append({"params": head, "lr": settings.head_learning_rate or rate})
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        return cls(adapter, optimizer, [group["lr"] for group in optimizer.param_groups], start)

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
    """The state of a run on disk, in a folder that has nothing else.

    ``facts`` say, in JSON, what the run trains on besides its settings. Raises `SettingsError` for
    a folder that cannot be written.
    """

    def __init__(
        self, folder: Path, settings: TrainingSettings, facts: Mapping[str, object]
    ) -> None:
        self.folder, self.file = folder, folder / _FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError as error:
            raise SettingsError(
                f"{folder}: cannot be made ({error.strerror}); say where checkpoints go "
                "(--run-folder)"
            ) from None
        if not writable:
            raise SettingsError(
                f"{folder}: cannot be written; say where checkpoints go (--run-folder)"
            )
        chosen = {k: v for k, v in settings.flat().items() if k not in _IRRELEVANT}
        self.run: dict[str, object] = json.loads(json.dumps({**chosen, **facts}, default=list))

    def save(
        self,
        trainees: Sequence[Trainee],
        history: list[dict[str, float]],
        step: int,
        scaler: "GradScaler | None" = None,
        beside: Stateful | None = None,
    ) -> None:
        """Write the state after a step.

        ``scaler`` is the loss scaler of fp16, if there is one; ``beside`` what else has a state.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        facts = []
        for number, trainee in enumerate(trainees):
            for place, tensor in enumerate(trainee.adapter.parameters()):
                tensors[f"{number}/{place}/now"] = tensor
                for key, value in trainee.optimizer.state.get(tensor, {}).items():
                    tensors[f"{number}/{place}/{key}"] = value
            for place, tensor in enumerate(trainee.best):
                tensors[f"{number}/{place}/best"] = tensor
            for place, tensor in enumerate(trainee.start.parameters() if trainee.start else ()):
                tensors[f"{number}/start/{place}"] = tensor
            facts.append({name: getattr(trainee, name) for name in _REMEMBERED})
        state: _State = {
            "step": step,
            "trainees": facts,
            "history": history,
            "scaler": None if scaler is None else scaler.state_dict(),
            "beside": {} if beside is None else beside.state(),
            "run": self.run,
        }
        on_cpu = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        with atomic_write(self.file) as file:
            file.write(save(on_cpu, {_STATE: json.dumps(state)}))
        self._forget_former()

    def load(
        self,
        trainees: Sequence[Trainee],
        history: list[dict[str, float]],
        scaler: "GradScaler | None" = None,
        beside: Stateful | None = None,
    ) -> int:
        """Put the state into the trainees; returns the step to go on from, 0 if there is none.

        Raises `SettingsError` for the state of a run with other settings or data, `TrainingError`
        for one that is damaged.
        """
        path = self._there()
        if path is None:
            return 0
        try:
            state, tensors = _read(path)
            former = state["run"]
            changed = [k for k in self.run | former if self.run.get(k) != former.get(k)]
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise _damaged(path, error) from error
        if changed:
            raise SettingsError(
                f"{path} is from a run with other settings or data ({', '.join(changed)}); "
                "go on with those, or start anew with --no-resume"
            )
        try:
            for number, trainee in enumerate(trainees):
                _restore(trainee, state["trainees"][number], tensors, f"{number}/")
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            if beside is not None:
                beside.restore(state.get("beside", {}))
            history.extend(state["history"])
            step = int(state["step"])
        except (LookupError, ValueError, TypeError, RuntimeError) as error:
            raise _damaged(path, error) from error
        log.info("going on from step %d of %s", step, path)
        return step

    def remove(self) -> None:
        """Forget the run."""
        self.file.unlink(missing_ok=True)
        self._forget_former()

    def _there(self) -> Path | None:
        """Where the newest state is, in this version's file or in a folder of an earlier one.

        An earlier version renamed the last folder to ``checkpoint.old`` before the new one, still
        called ``checkpoint.partial``, took its place. An old one without the new one beside it was
        left by a run that went on or has finished, and is not to come back.
        """
        if self.file.exists():
            return self.file
        folder, old, partial = (self.folder / name for name in _FORMER)
        if folder.exists():
            return folder
        return old if old.exists() and partial.exists() else None

    def _forget_former(self) -> None:
        for name in _FORMER:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _read(path: Path) -> tuple[_State, dict[str, Tensor]]:
    """A checkpoint's facts and tensors."""
    from safetensors.torch import load_file

    if path.is_dir():
        facts = (path / "state.json").read_text(encoding="utf-8")
        return json.loads(facts), load_file(path / "state.safetensors")
    with safe_open(path, "pt") as file:
        facts = (file.metadata() or {})[_STATE]
    return json.loads(facts), load_file(path)


def _restore(
    trainee: Trainee, facts: Mapping[str, object], tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """Put what was saved of a trainee into it; its tensors' keys begin with a prefix."""
    for name in _REMEMBERED:
        setattr(trainee, name, facts[name])
    parameters = trainee.adapter.parameters()
    for place, parameter in enumerate(parameters):
        stem = f"{prefix}{place}/"
        of_parameter = {k.removeprefix(stem): t for k, t in tensors.items() if k.startswith(stem)}
        with torch.no_grad():
            parameter.copy_(of_parameter.pop("now"))
        of_parameter.pop("best", None)
        if of_parameter:  # a fused optimizer wants all of it, the step too, beside the parameter
            trainee.optimizer.state[parameter] = {
                key: value.to(parameter.device) for key, value in of_parameter.items()
            }
    with torch.no_grad():
        for place, tensor in enumerate(trainee.start.parameters() if trainee.start else ()):
            tensor.copy_(tensors[f"{prefix}start/{place}"])
    if f"{prefix}0/best" in tensors:
        trainee.best = [
            tensors[f"{prefix}{place}/best"].to(parameter.device)
            for place, parameter in enumerate(parameters)
        ]


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{path} is damaged ({type(error).__name__}: {error}), so the run cannot go on from it; "
        "start anew with --no-resume"
    )
