"""The one training loop: one adapter or many at once, on `accelerate`.

Knows tasks by their interface, adapters as tensors, batches as lists of indices. It never asks for
a task's name. What a step does for each adapter is what it would do alone:

- its loss is the mean over its own targets in the whole batch, over all processes and pieces;
- its gradient is clipped, its optimizer stepped, on its own;
- an adapter without a row in the batch does not move, not even by momentum.

So a run gives the same adapter, to rounding, for any number of processes and any accumulation.
"""

import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from adapters_hub.adapter import Adapter
from adapters_hub.batches import share
from adapters_hub.blend import Blend
from adapters_hub.errors import SettingsError, TrainingError
from adapters_hub.evaluation import collect_records
from adapters_hub.model import AdaptedModel
from adapters_hub.settings import TrainingSettings
from adapters_hub.tasks import Example, Row, Task

log = logging.getLogger(__name__)

_STATE_TENSORS = "state.safetensors"
_STATE_FACTS = "state.json"


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


@dataclass(frozen=True)
class Progress:
    """What a run did: steps, real (unpadded) tokens, seconds, and each look at dev."""

    steps: int
    tokens: int
    seconds: float
    history: list[dict[str, float]]


def train(
    model: AdaptedModel,
    task: Task,
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    owners: Sequence[int],
    batches: Sequence[Sequence[int]],
    settings: TrainingSettings,
    accelerator: Any,
    *,
    over: Callable[[Row], Blend] = lambda row: Blend(),
    dev: Sequence[Example] = (),
    dev_owners: Sequence[int] = (),
    folder: Path | None = None,
) -> tuple[list[Adapter], Progress]:
    """Train adapters on batches of example indices; returns them as they were best on dev.

    ``owners`` says which adapter each example trains, ``over`` which frozen, resolved blend its
    row sees below that. ``folder`` takes checkpoints. Raises `TrainingError` for a loss that is
    not finite; on Ctrl-C (and SIGTERM) a checkpoint is saved and `KeyboardInterrupt` raised.
    """
    device = model.backbone.device
    live = [model.add(adapter.trainable(), trained=True) for adapter in adapters]
    trainees = [Trainee.of(adapter, settings) for adapter in live]
    checkpoint = _Checkpoint(folder, settings, batches) if folder else None
    history: list[dict[str, float]] = []
    first = 0
    if checkpoint and settings.resume:
        first = checkpoint.load(trainees, history, device)
    look = settings.eval_every or max(1, len(batches) // 10)
    scaler = getattr(accelerator, "scaler", None)
    started, tokens, done = time.perf_counter(), 0, first
    bar = tqdm(
        total=len(batches), initial=first, desc="training", unit="step",
        disable=not accelerator.is_main_process,
    )  # fmt: skip

    def blend_of(row: Row, owner: int) -> Blend:
        return Blend(((live[owner].name, 1.0),)) + over(row)

    with _interruptible() as interrupted, bar:
        for step in range(first, len(batches)):
            batch = batches[step]
            present = {owners[i] for i in batch if not trainees[owners[i]].stopped}
            pieces = []
            counts = torch.zeros(len(trainees), dtype=torch.float64)
            for numbers in share(
                [i for i in batch if owners[i] in present],
                accelerator.process_index,
                accelerator.num_processes,
                settings.accumulation,
            ):
                chosen = [examples[i] for i in numbers]
                inputs = task.collate(chosen, model.backbone, seed=settings.seed * 100_003 + step)
                own = torch.tensor([owners[i] for i in numbers])
                counts.index_add_(0, own, task.count(inputs).double().cpu())
                tokens += sum(len(example.input_ids) for example in chosen)
                pieces.append((chosen, inputs, own))
            if accelerator.num_processes > 1:
                counts = accelerator.reduce(counts.to(device), "sum").cpu()
            if settings.dropout:
                torch.manual_seed((settings.seed * 7919 + step) * 1009 + accelerator.process_index)
            total = torch.zeros(2, device=device)  # the loss; how many processes were interrupted
            for chosen, inputs, own in pieces:
                blends = [blend_of(e.row, int(k)) for e, k in zip(chosen, own, strict=True)]
                heads = model.heads(blends) if task.needs_head() else []
                plan = model.plan(blends, settings.dropout)
                with model.bank.using(plan), accelerator.autocast():
                    losses = task.loss(model, inputs, heads)
                loss = (losses.float() / counts[own].to(losses)).sum()
                accelerator.backward(loss)
                total[0] += loss.detach()
            total[1] = float(interrupted.is_set)
            if accelerator.num_processes > 1:
                total = accelerator.reduce(total, "sum")
            mean, stop = total[0].item() / max(1, len(present)), total[1].item() > 0
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss became {mean} at step {step + 1}: lower the learning rate "
                    f"({settings.learning_rate}), or train without mixed precision"
                )
            rate = _rate(step, len(batches), settings)
            for number in sorted(present):
                _update(trainees[number], rate, settings.clip, accelerator, scaler)
            if scaler is not None:
                scaler.update()
            done = step + 1
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            accelerator.log({"loss": mean, "rate": rate * settings.learning_rate}, step=done)
            last = done == len(batches)
            if dev and (done % look == 0 or last):
                scores = _look(model, task, trainees, dev, dev_owners, blend_of, accelerator)
                for trainee, score in zip(trainees, scores, strict=True):
                    if score is not None and not trainee.stopped:
                        trainee.remember(score, done, task.higher_is_better)
                        trainee.stopped = 0 < settings.patience <= trainee.waited
                named = {f"dev_{task.metric}/{t.adapter.name}": s for t, s in
                         zip(trainees, scores, strict=True) if s is not None}  # fmt: skip
                history.append({"step": done, "loss": mean, **named})
                accelerator.log(named, step=done)
                bar.set_postfix(loss=f"{mean:.3f}", dev=f"{next(iter(named.values()), 0):.3f}")
            due = settings.save_every and done % settings.save_every == 0 and not last
            if checkpoint and accelerator.is_main_process and (due or (stop and not last)):
                checkpoint.save(trainees, history, done)
            if stop and not last:
                where = (
                    f"; saved in {folder}, the same command goes on from there" if folder else ""
                )
                raise KeyboardInterrupt(f"interrupted after step {done}{where}")
            if all(trainee.stopped for trainee in trainees):
                log.info("stopped early at step %d: dev got no better", done)
                break
    for trainee in trainees:
        if trainee.best:
            with torch.no_grad():
                for tensor, best in zip(trainee.adapter.parameters(), trainee.best, strict=True):
                    tensor.copy_(best)
    finished = [trainee.adapter.map(lambda t: t.detach()) for trainee in trainees]
    for adapter in finished:
        model.add(adapter)
    accelerator.wait_for_everyone()
    if checkpoint and accelerator.is_main_process:
        checkpoint.remove()
    return finished, Progress(done, tokens, time.perf_counter() - started, history)


def _update(trainee: Trainee, rate: float, clip: float, accelerator: Any, scaler: Any) -> None:
    """One optimizer step of one adapter, on gradients summed over processes."""
    parameters = trainee.adapter.parameters()
    for tensor in parameters:
        if tensor.grad is None:  # this process had no row of it
            tensor.grad = torch.zeros_like(tensor)
    if accelerator.num_processes > 1:
        flat = torch.cat([tensor.grad.flatten() for tensor in parameters])  # type: ignore[union-attr]
        flat = accelerator.reduce(flat, "sum")
        for tensor, part in zip(
            parameters, flat.split([t.numel() for t in parameters]), strict=True
        ):
            tensor.grad = part.view_as(tensor)
    if scaler is not None:
        scaler.unscale_(trainee.optimizer)
    if clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    for group, peak in zip(trainee.optimizer.param_groups, trainee.peaks, strict=True):
        group["lr"] = peak * rate
    if scaler is not None:
        scaler.step(trainee.optimizer)
    else:
        trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)


def _rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate at a step, as a share of the peak: linear warm-up, then the schedule."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    place = (step - warm) / max(1, steps - warm)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * place))
    return 1 - place if settings.schedule == "linear" else 1.0


def _look(
    model: AdaptedModel,
    task: Task,
    trainees: Sequence[Trainee],
    dev: Sequence[Example],
    owners: Sequence[int],
    blend_of: Callable[..., Blend],
    accelerator: Any,
) -> list[float | None]:
    """Each adapter's dev score, the mean over languages; None where it has no dev rows."""
    scores: list[float | None] = []
    for number in range(len(trainees)):
        own = [example for example, owner in zip(dev, owners, strict=True) if owner == number]
        if not own:
            scores.append(None)
            continue
        blend = partial(blend_of, owner=number)
        records = collect_records(model, task, own, blend, accelerator=accelerator)
        scores.append(task.metrics(records)[task.metric])
    return scores


class _Flag:
    is_set = False


@contextmanager
def _interruptible() -> Iterator[_Flag]:
    """Turn the first Ctrl-C or SIGTERM into a flag the loop looks at; a second one is immediate."""
    flag = _Flag()
    old: dict[signal.Signals, Any] = {}

    def note(number: int, frame: Any) -> None:
        flag.is_set = True
        for signum, handler in old.items():
            signal.signal(signum, handler)

    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            old[signum] = signal.signal(signum, note)
    except ValueError:
        old.clear()  # not the main thread, which alone receives signals
    try:
        yield flag
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


class _Checkpoint:
    """A run's state on disk: tensors as safetensors, facts as JSON, replaced as one folder."""

    def __init__(
        self, folder: Path, settings: TrainingSettings, batches: Sequence[Sequence[int]]
    ) -> None:
        self.folder = folder / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        ignored = {"resume", "run_folder", "tracker", "save_every", "replace", "accumulation"}
        facts = {k: v for k, v in vars(settings).items() if k not in ignored}
        self.run = json.loads(json.dumps([facts, [list(b) for b in batches[:50]]], default=list))

    def save(self, trainees: Sequence[Trainee], history: list[dict[str, float]], step: int) -> None:
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
        state = {"step": step, "trainees": facts, "history": history, "run": self.run}
        (partial / _STATE_FACTS).write_text(json.dumps(state))
        old = self.folder.with_name("checkpoint.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        partial.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(
        self, trainees: Sequence[Trainee], history: list[dict[str, float]], device: torch.device
    ) -> int:
        """Put the state into the trainees; returns the step to go on from, 0 if there is none."""
        from safetensors.torch import load_file

        old = self.folder.with_name("checkpoint.old")
        if not self.folder.exists() and old.exists():
            old.rename(self.folder)
        if not self.folder.exists():
            return 0
        state = json.loads((self.folder / _STATE_FACTS).read_text())
        if state["run"] != self.run:
            raise SettingsError(
                f"{self.folder} is from a run with other settings or data; go on with those, or "
                "start anew with --no-resume"
            )
        tensors = load_file(self.folder / _STATE_TENSORS, device=str(device))
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
                    if kept:
                        trainee.optimizer.state[tensor] = {**kept, "step": kept["step"].cpu()}
            if f"{number}/0/best" in tensors:
                places = range(len(parameters))
                trainee.best = [tensors[f"{number}/{place}/best"] for place in places]
        history.extend(state["history"])
        log.info("going on from step %d of %s", state["step"], self.folder)
        return int(state["step"])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
