"""The one training loop: one adapter or many at once, on `accelerate`.

Knows tasks by their interface, adapters as tensors, batches as lists of indices. It never asks for
a task's name. What a step does for each adapter is what it would do alone:

- its loss is the mean over its targets in the whole batch, over all processes and pieces;
- its gradient is clipped and its optimizer stepped alone;
- an adapter without a row in the batch does not move, not even by momentum.

So a run gives the same adapter, to rounding, for any number of processes and any accumulation.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from adapters_hub import progress
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError, TrainingError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task
from adapters_hub.tasks.features import Features
from adapters_hub.training.accelerator import check_accelerator
from adapters_hub.training.augmentation import Augmenter
from adapters_hub.training.checkpoint import Checkpoint, Trainee
from adapters_hub.training.finishing import plain
from adapters_hub.training.followers import Followers
from adapters_hub.training.interruption import Flag, interruptible
from adapters_hub.training.piece import Inside, Made, Piece, beside
from adapters_hub.training.settings import TrainingSettings
from adapters_hub.training.sharding import shares
from adapters_hub.training.starts import Beginning

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.amp import GradScaler

log = logging.getLogger(__name__)

_VIEW = 2**58 + 500_009  # the CPU's generator takes just the low half of a seed


@dataclass(frozen=True)
class Progress:
    """What a run did: steps, real (unpadded) tokens, seconds, each look at dev, lines that say how
    penalties and weights ended, and what augmentation changed (see `Augmenter.summary`).
    """

    steps: int
    tokens: int
    seconds: float
    history: list[dict[str, float]]
    notes: tuple[str, ...] = ()
    augmented: Mapping[str, int] = field(default_factory=dict)


def train_adapters(
    model: Runtime,
    task: Task,
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    owners: Sequence[int] | np.ndarray,
    batches: Sequence[Sequence[int]] | np.ndarray,
    settings: TrainingSettings,
    accelerator: "Accelerator",
    *,
    over: Callable[[Row], Blend] = lambda row: Blend(),
    dev: Sequence[Example] = (),
    dev_owners: Sequence[int] = (),
    folder: Path | None = None,
    known_by: Sequence[tuple[Example, int]] | None = None,
    augmenter: Augmenter | None = None,
) -> tuple[list[Adapter], Progress]:
    """Train adapters on batches of example indices; returns them as they were best on dev.

    ``owners`` says which adapter each example trains, ``over`` which frozen, resolved blend its
    row sees below that. ``folder`` takes checkpoints, which belong to these examples, or to those
    that a corpus on disk is ``known_by``, each with its owner. An ``augmenter`` draws the train
    rows anew at each step. Raises `SettingsError` or
    `DataError` before it starts, `TrainingError` for a loss that is not finite; on Ctrl-C (and
    SIGTERM) saves a checkpoint and raises `KeyboardInterrupt`. A run that does not end leaves no
    adapter behind.
    """
    check_accelerator(accelerator)
    names = [adapter.name for adapter in adapters]
    if len(set(names)) < len(names):
        raise SettingsError(f"no two adapters may have the same name, and there are {names}")
    task.check(examples)
    task.check(dev)
    followers = Followers(
        model, task, adapters, settings, accelerator,
        zip(examples, owners, strict=True) if known_by is None else known_by,
    )  # fmt: skip
    checkpoint = None
    if folder is not None:
        seen = zip(examples, owners, strict=True) if known_by is None else known_by
        every = [*seen, *zip(dev, dev_owners, strict=True)]
        facts = _facts(model, task, every, batches, over) | followers.facts()
        facts |= {"augmentation": augmenter.digest} if augmenter else {}
        checkpoint = Checkpoint(folder, settings, facts)
    history: list[dict[str, float]] = []
    done, loss = 0, math.nan
    look_every = settings.eval_every or max(1, len(batches) // 10)
    saved = f"; saved in {folder}, the same command goes on from there" if folder else ""
    begin = Beginning(model, task, examples, owners, batches, over, settings, accelerator)
    with _in_training(model, adapters, settings, begin) as trainees:
        alone = _heads_alone(task, [trainee.adapter for trainee in trainees])
        shards = model.backbone.shards
        if shards is not None:  # what is kept would let a process do without a forward
            shards.differentiable = not alone
        kept_features = alone and augmenter is None and shards is None
        features = Features(model, task) if kept_features else None
        run = _Run(
            model, task, trainees, over, settings, accelerator, followers, features, augmenter
        )
        followers.begin(
            trainees, examples, owners, over, folder, partial(run._forward, number=0, place=0)
        )
        if checkpoint and settings.resume:
            done = checkpoint.load(trainees, history, run.scaler, followers)
        started = time.perf_counter()
        bar = progress.bar(
            len(batches), "training", "steps", initial=done, at_once=True,
            show=accelerator.is_main_process,
        )  # fmt: skip
        with interruptible() as interrupted, bar:
            while done < len(batches) and not all(trainee.stopped for trainee in trainees):
                rate = _rate(done, len(batches), settings)
                mean, stop = run.step(done, batches[done], examples, owners, rate, interrupted)
                loss = loss if mean is None else mean
                done += 1
                last = done == len(batches)
                bar.update()
                bar.set_postfix({"loss": f"{loss:.3f}", **followers.brief()}, refresh=False)
                logged = {"loss": loss, "rate": rate * settings.learning_rate}
                accelerator.log({**logged, **followers.shown()}, step=done)
                if dev and (done % look_every == 0 or last):
                    scores = run.look(done, dev, dev_owners)
                    history.append({"step": done, "loss": loss, **scores, **followers.shown()})
                    accelerator.log(scores, step=done)
                    shown = f"{next(iter(scores.values())):.3f}" if scores else "-"
                    bar.set_postfix(loss=f"{loss:.3f}", dev=shown)
                due = settings.save_every and done % settings.save_every == 0
                if checkpoint and accelerator.is_main_process and (due or stop) and not last:
                    checkpoint.save(trainees, history, done, run.scaler, followers)
                if stop and not last:
                    raise KeyboardInterrupt(f"interrupted after step {done}{saved}")
        for trainee in trainees:
            trainee.restore_best()
        kept = [
            plain(trainee.adapter.map(lambda t: t.detach()), trainee.start, settings)
            for trainee in trainees
        ]
        finished = [model.add(task.finished(adapter)) for adapter in kept]
    accelerator.wait_for_everyone()
    if checkpoint and accelerator.is_main_process:
        checkpoint.remove()
    seconds, tokens = time.perf_counter() - started, run.tokens
    if accelerator.num_processes > 1:
        tokens = int(accelerator.reduce(torch.tensor(tokens, device=accelerator.device), "sum"))
    augmented = augmenter.summary(accelerator) if augmenter else {}
    return finished, Progress(done, tokens, seconds, history, followers.notes(), augmented)


@dataclass
class _Run:
    """What a step and a look at dev have in common."""

    model: Runtime
    task: Task
    trainees: Sequence[Trainee]
    over: Callable[[Row], Blend]
    settings: TrainingSettings
    accelerator: "Accelerator"
    followers: Followers
    features: Features | None  # where they stay as they are
    augmenter: Augmenter | None
    tokens: int = 0

    def step(
        self,
        number: int,
        batch: Sequence[int],
        examples: Sequence[Example],
        owners: Sequence[int] | np.ndarray,
        rate: float,
        interrupted: Flag,
    ) -> tuple[float | None, bool]:
        """One step of every adapter that has a row in the batch.

        Returns the mean of their losses (None if all of them have stopped), and whether a process
        was interrupted meanwhile; both are the same in every process.
        """
        settings, accelerator, scaler = self.settings, self.accelerator, self.scaler
        device = self.model.backbone.device
        if scaler is not None:  # it starts at its first use, and this process may have no row
            scaler.scale(torch.zeros((), device=device))
        present = {owners[i] for i in batch if not self.trainees[owners[i]].stopped}
        counts = torch.zeros(len(self.trainees), dtype=torch.float64)
        pieces: list[Piece] = []
        whole = [i for i in batch if owners[i] in present]
        drawn = self.augmenter and self.augmenter.draw(
            number, whole, examples, owners, settings.seed
        )
        self.followers.batch([owners[i] for i in whole])
        for places, weight in shares(len(whole), accelerator, settings, self.model.backbone.shards):
            numbers = [whole[place] for place in places]
            chosen = drawn.taken(places) if drawn else [examples[i] for i in numbers]
            inputs = self.task.collate(
                chosen, self.model.backbone, seed=settings.seed * 100_003 + number
            )
            inputs = drawn.mixed(inputs, places) if drawn else inputs
            owners_of_piece = torch.tensor([owners[i] for i in numbers])
            counts.index_add_(0, owners_of_piece, self.task.count(inputs).double().cpu() * weight)
            self.tokens += weight * sum(len(example.input_ids) for example in chosen)
            piece = Piece(places, chosen, inputs, owners_of_piece, weight)
            if self.followers.compares_unaugmented:
                unaugmented = [examples[i] for i in numbers]
                piece = beside(piece, unaugmented, self.task, self.model.backbone)
            pieces.append(piece)
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts.to(device), "sum").cpu()
        total = torch.zeros(2, device=device)  # the loss; how many processes were interrupted
        if self.task.couples and present:
            trained = [*(drawn or (examples[i] for i in whole))], [owners[i] for i in whole]
            total[0] = self._backward_coupled(number, *trained, pieces, counts)
        elif not self.task.couples:
            for place, piece in enumerate(pieces):
                forward = partial(self._forward, number=number, place=place)
                loss, minimised = self.followers.of_piece(piece, forward, counts)
                accelerator.backward(minimised * piece.weight)
                total[0] += loss.detach() * piece.weight
        if present:
            forward = partial(self._forward, number=number, place=len(pieces))
            self.followers.finish(number, sorted(present), forward)
        if self.model.backbone.shards is not None:
            self.model.backbone.shards.release()
        total[1] = float(interrupted.is_set)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        stop = total[1].item() > 0
        if not present:
            return None, stop
        mean = total[0].item() / len(present)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} at step {number + 1}: lower the learning rate "
                f"({settings.learning_rate}), or train without mixed precision"
            )
        for owner in sorted(present):
            _update(self.trainees[owner], rate, settings.clip, accelerator, scaler)
        if scaler is not None:
            scaler.update()
        return mean, stop

    def _forward(
        self,
        run: Inside[Made],
        piece: Piece,
        *,
        number: int,
        place: int,
        task: Task | None = None,
        view: int = 0,
        reference: bool = False,
    ) -> Made:
        """What a task's loss or outputs are for one piece; the same again if it is asked again.

        See `piece.Forward`.
        """
        settings, accelerator, task = self.settings, self.accelerator, task or self.task
        if settings.dropout and not reference:  # the same masks whether a run was resumed or not
            seed = (settings.seed * 7919 + number) * 1009 + accelerator.process_index
            torch.manual_seed(seed + place * 2**40 + view * _VIEW)
        rows = [
            (row, int(owner))
            for example, owner in zip(piece.examples, piece.owners, strict=True)
            for row in task.rows(example.row)
        ]
        blends = [self.blend_of(row, owner) for row, owner in rows]
        heads = self.model.heads(blends) if task.needs_head() else []
        if reference:
            blends = [self.over(row) for row, _ in rows]
        plan = self.model.plan(blends, 0.0 if reference else settings.dropout)
        follow, gradients = self.model.bank.using(plan), torch.is_grad_enabled() and not reference
        with follow, torch.set_grad_enabled(gradients), accelerator.autocast():
            inputs = piece.inputs
            if self.features is not None:
                inputs = self.features.added(inputs, heads, piece.examples)
            return run(self.model, inputs, heads)

    def _backward_coupled(
        self,
        number: int,
        examples: Sequence[Example],
        owners: Sequence[int],
        pieces: Sequence[Piece],
        counts: torch.Tensor,
    ) -> torch.Tensor:
        """The step's gradients where rows' losses depend on each other; returns the loss's share.

        Every process has the outputs of the whole batch, takes the gradient of the whole loss by
        them, and goes on from there into the rows that it was given. With several pieces there are
        two forwards, of which only the second, a piece at a time, keeps what a backward needs
        (GradCache, arXiv:2101.06983). So neither processes nor pieces change the step.
        """
        device = self.model.backbone.device
        sizes = [len(self.task.rows(example.row)) for example in examples]
        spans = [range(end - size, end) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
        table = torch.zeros(sum(sizes), self.model.backbone.width, device=device)
        rows = [torch.tensor([row for at in p.places for row in spans[at]]) for p in pieces]
        kept = []
        for place, (piece, at) in enumerate(zip(pieces, rows, strict=True)):
            with torch.set_grad_enabled(len(pieces) == 1):
                kept.append(self._forward(self.task.outputs, piece, number=number, place=place))
            table[at] = kept[-1].detach() * piece.weight
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, "sum")  # each row is of one process
        table.requires_grad_()
        losses = self.task.coupled_loss(table, examples, owners)
        parts = losses / counts[list(owners)].to(losses)
        weights, loss = self.followers.weights(losses, examples, owners), parts.sum()
        minimised = loss if weights is None else (parts * weights).sum()
        (gradient,) = torch.autograd.grad(minimised, table)
        for place, (piece, at) in enumerate(zip(pieces, rows, strict=True)):
            outputs = kept[place]
            if len(pieces) > 1:
                outputs = self._forward(self.task.outputs, piece, number=number, place=place)
            self.accelerator.backward((outputs * gradient[at]).sum() * piece.weight)
            forward = partial(self._forward, number=number, place=place)
            if (added := self.followers.of_coupled(piece, forward, counts)) is not None:
                self.accelerator.backward(added)
        return loss.detach() / self.accelerator.num_processes

    def look(self, done: int, dev: Sequence[Example], owners: Sequence[int]) -> dict[str, float]:
        """Each adapter's score on its dev rows; keeps the best state and says who is finished."""
        scores = {}
        for number, trainee in enumerate(self.trainees):
            dev_examples = [
                example for example, owner in zip(dev, owners, strict=True) if owner == number
            ]
            if not dev_examples or trainee.stopped:
                continue
            blend_of = partial(self.blend_of, owner=number)
            records = collect_records(
                self.model,
                self.task,
                dev_examples,
                blend_of,
                accelerator=self.accelerator,
                features=self.features,
            )
            score = self.task.metrics(records)[self.task.metric]
            trainee.remember(score, done, self.task.higher_is_better)
            trainee.stopped = 0 < self.settings.patience <= trainee.waited
            if trainee.stopped:
                log.info("%s stopped at step %d: dev got no better", trainee.adapter.name, done)
            scores[f"dev_{self.task.metric}/{trainee.adapter.name}"] = score
        return scores

    def blend_of(self, row: Row, owner: int) -> Blend:
        """What a row of an adapter's data runs under: the adapter, over the row's frozen blend."""
        names, below = [trainee.adapter.name for trainee in self.trainees], self.over(row)
        start = self.trainees[owner].start
        if twice := sorted({*names} & {*below.terms}):
            raise TrainingError(
                f"{row.where or repr(row.text)}: {twice[0]!r} is trained here, so it cannot be a "
                "frozen adapter below too; leave it out there, or give the new one another name"
            )
        taken = [] if start is None else [(start.name, -1.0)]
        return Blend(((names[owner], 1.0), *taken), exact=True) + below

    @property
    def scaler(self) -> "GradScaler | None":
        """What scales the loss at fp16; None at other precisions."""
        return getattr(self.accelerator, "scaler", None)


@contextmanager
def _in_training(
    model: Runtime, adapters: Sequence[Adapter], settings: TrainingSettings, begin: Beginning
) -> Iterator[list[Trainee]]:
    """Trainees of copies, resident with their starts; these go at the end.

    If the block fails, nothing half-trained is left behind.
    """
    trainees: list[Trainee] = []
    try:
        begun = [begin(number, adapter) for number, adapter in enumerate(adapters)]
        for adapter, start in begun:
            live = model.add(adapter.trainable(), trained=True)
            trainees.append(Trainee.of(live, settings, start and model.add(start)))
        yield trainees
    except BaseException:
        for adapter in adapters:
            model.drop(adapter.name)
        raise
    finally:
        for trainee in trainees:
            if trainee.start is not None:
                model.drop(trainee.start.name)


def _heads_alone(task: Task, adapters: Sequence[Adapter]) -> bool:
    """Whether nothing but heads learns, so that what the body makes of a row stays as it is."""
    return task.needs_head() and not any(adapter.factors for adapter in adapters)


def _facts(
    model: Runtime,
    task: Task,
    seen: Sequence[tuple[Example, int]],
    batches: Sequence[Sequence[int]] | np.ndarray,
    over: Callable[[Row], Blend],
) -> dict[str, object]:
    """What a run trains on besides its settings, as short JSON: a checkpoint belongs to just that.

    ``seen`` are all examples with their owners. The frozen adapters below count by their content.
    """
    examples = hashlib.sha256()
    below: set[str] = set()
    for example, owner in seen:
        blends = [over(row) for row in task.rows(example.row)]
        below.update(term for blend in blends for term in blend.terms)
        weights = [blend.weights for blend in blends]
        facts = (owner, weights, example.target, len(example.input_ids))
        examples.update(repr(facts).encode())
        examples.update(np.asarray(example.input_ids, dtype=np.int64).tobytes())
    order = hashlib.sha256(json.dumps([[int(i) for i in batch] for batch in batches]).encode())
    return {
        "backbone": model.backbone.fingerprint,
        "examples": examples.hexdigest(),
        "batches": order.hexdigest(),
        "over": {name: model.resident(name).info.hash for name in sorted(below)},
    }


def _update(
    trainee: Trainee,
    rate: float,
    clip: float,
    accelerator: "Accelerator",
    scaler: "GradScaler | None",
) -> None:
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
