"""Finding a blend's weights from a few labelled rows; every factor stays frozen.

Knows tasks by their interface and adapters as factors; does not know what a blend file looks like
on disk. Two ways, in one table:

- ``gradient``: CAT of LoRA Soups (arXiv:2410.13025). A free weight for each adapter, or for each
  adapter and layer; Adam on the task's loss, its rate falling linearly to nothing.
- ``lorahub``: LoraHub's objective (arXiv:2307.13269), the loss on all rows + 0.05·Σ|w| with every
  weight in [-1.5, 1.5], by a search without derivatives (scipy's COBYQA; the paper's is another).
"""

from __future__ import annotations  # so that help() shows the names of types, not what they are

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from adapters_hub.data.batches import plan_batches
from adapters_hub.data.rows import Row
from adapters_hub.errors import BlendError, DataError, SettingsError, TrainingError
from adapters_hub.extras import require
from adapters_hub.library.blend import Blend
from adapters_hub.library.blend_file import BlendFile, BlendTerm, Weight
from adapters_hub.library.layers import layer_of, layers_of
from adapters_hub.progress import bar
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime, Weights
from adapters_hub.tasks.base import Example, Task
from adapters_hub.tasks.heads import task_of
from adapters_hub.tasks.registry import DEFAULT_TASK, task_class
from adapters_hub.training.mean_loss import loss_and_metrics, mean_loss

if TYPE_CHECKING:
    from tqdm.std import tqdm

SEARCHES = ("gradient", "lorahub")
"""The ways to find weights."""

BOUND = 1.5
"""The largest size of a weight in LoraHub's search."""

_STEPS = {"gradient": 100, "lorahub": 60}
_L1 = {"gradient": 0.0, "lorahub": 0.05}
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Fit:
    """Fitted weights as a blend file, and each split's scores before and after.

    ``before`` is the blend as it was given. Splits are ``rows``, and ``dev`` and ``held_out`` where
    given; scores are the ``loss`` in nats a target and the task's metrics.
    """

    file: BlendFile
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]

    @property
    def weights(self) -> dict[str, Weight]:
        """Adapter → its weight, or its weights by layer."""
        return {term.name: term.weight for term in self.file.terms}


def fit(
    model: Runtime,
    blend: Weights,
    rows: Sequence[Row],
    *,
    task: Task | str | None = None,
    per: str = "adapter",
    method: str = "gradient",
    steps: int | None = None,
    learning_rate: float = 0.05,
    batch_size: int = 16,
    l1: float | None = None,
    dev: Sequence[Row] = (),
    held_out: Sequence[Row] = (),
    max_length: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Find the weights of a blend's adapters on rows; the start is the weights in the blend.

    ``task`` defaults to that of the head where an adapter of the blend has one, else to language
    modelling. ``per``: a weight for each ``"adapter"``, or for each of its layers (``"layer"``,
    by gradient). ``steps`` are Adam's (100), or how often the search looks at all rows (60).
    ``l1``: the price of Σ|w|, by layer of its mean (0, and 0.05 in LoraHub's objective). With
    ``dev`` rows the weights are those that were best on them, the start among them; else the last.

    The model is as before afterwards: ``model.load_blend(result.file)`` uses the result. The
    same seed gives the same weights. Raises `SettingsError`, `DataError`, `HeadError`, or
    `TrainingError` for a loss that is not finite.
    """
    steps = _STEPS.get(method, 1) if steps is None else steps
    l1 = _L1.get(method, 0.0) if l1 is None else l1
    _check(per, method, learning_rate, l1, steps=steps, batch_size=batch_size, seed=seed)
    wanted = model.resolve(blend)
    if not wanted:
        raise BlendError("an empty blend has no weights to find")
    task = task if isinstance(task, Task) else task_for(task, model, wanted, max_length)
    splits: dict[str, list[Example]] = {}
    for split, given in (("rows", rows), ("dev", dev), ("held_out", held_out)):
        if split == "rows" or given:
            splits[split] = task.encode(task.prepare(given, {}, task), model.backbone)
            task.check(splits[split])
            if not splits[split]:
                raise DataError(f"{split}: no row long enough to fit weights on")
    layers = layers_of(model.backbone.sites) if per == "layer" else ()
    if per == "layer" and not layers:
        raise SettingsError(f"per='layer': the sites of {model.backbone.name} are in no layers")
    start = torch.tensor([weight for _, weight in wanted.weights])
    start = start[:, None].repeat(1, len(layers) or 1)
    shown = bar(steps, "fitting", "steps", show=progress)
    with torch.inference_mode(False), shown, _resident(model, wanted, task, layers) as run:
        before = {split: run.scores(start, examples) for split, examples in splits.items()}
        best = _Best(run, splits["rows"], splits.get("dev", []), l1, shown, start)
        if method == "gradient":
            _by_gradient(best, steps, batch_size, learning_rate, seed)
        else:
            _by_search(best, steps)
        after = {split: run.scores(best.weights, examples) for split, examples in splits.items()}
    values: list[list[float]] = best.weights.tolist()
    terms = tuple(
        BlendTerm(name, model.resident(name).info.hash, tuple(weights) if layers else weights[0])
        for name, weights in zip(wanted.terms, values, strict=True)
    )
    losses = (before["rows"]["loss"], after["rows"]["loss"])
    backbone = model.backbone.name, model.backbone.fingerprint
    file = BlendFile(terms, *backbone, layers, method, task.name, len(rows), seed, *losses)
    return Fit(file, before, after)


@dataclass
class _Run:
    """A blend's adapters as further slots, whose factors are made anew from the weights."""

    model: Runtime
    task: Task
    blend: Blend
    layers: tuple[str, ...]
    slots: dict[str, Adapter]  # slot → adapter

    def losses(
        self, weights: Tensor, examples: Sequence[Example], seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Each example's summed loss, and how many targets it has, under the weights."""
        batch = self.task.collate(examples, self.model.backbone, seed=seed)
        with self.under(weights, examples) as heads:
            losses = self.task.loss(self.model, batch, heads).float()
        return losses, self.task.count(batch).to(losses)

    def scores(self, weights: Tensor, examples: Sequence[Example]) -> dict[str, float]:
        """The ``loss`` in nats a target, and the task's metrics."""
        return loss_and_metrics(self.model, self.task, examples, partial(self.under, weights))

    def mean(self, weights: Tensor, examples: Sequence[Example]) -> float:
        """The loss in nats a target."""
        return mean_loss(self.model, self.task, examples, partial(self.under, weights))

    @contextmanager
    def under(self, weights: Tensor, examples: Sequence[Example]) -> Iterator[Heads]:
        """Forwards of examples inside the block use the adapters at weights (terms, layers or 1).

        A slot holds A and w·B, both computed here, so a gradient of B is one of w and the bank
        need not know. No plan outlives the slots it was made of.
        """
        bank = self.model.bank
        for (slot, adapter), by_layer in zip(self.slots.items(), weights, strict=True):
            at: dict[str | None, Tensor] = dict(zip(self.layers, by_layer, strict=False))
            mean = by_layer.mean()  # the weight itself, where it is one for all layers
            factors = {
                site: (a.detach(), at.get(layer_of(site), mean).to(b.device) * b.detach().float())
                for site, (a, b) in adapter.factors.items()
            }
            with self.model.residents.lock:  # others may be choosing what they use
                bank.put(slot, factors, adapter.scaling, trained=True)
        with self.model.residents.lock:  # to make room, the plan may let adapters go
            plan = bank.plan([dict.fromkeys(self.slots, 1.0)])
        blends = [self.blend] * len(examples)
        with bank.using(plan):
            yield self.model.heads(blends) if self.task.needs_head() else []


@contextmanager
def _resident(model: Runtime, blend: Blend, task: Task, layers: tuple[str, ...]) -> Iterator[_Run]:
    """A run, whose slots are gone afterwards however it ends."""
    adapters = [model.resident(name) for name in blend.terms]
    if not any(adapter.factors for adapter in adapters):
        raise SettingsError(f"{str(blend)!r}: only heads, no factors to weigh")
    # A colon is in no adapter's name, a number in no other run's.
    run = next(_NUMBERS)
    slots = {f"fit:{run}:{adapter.name}": adapter for adapter in adapters}
    try:
        yield _Run(model, task, blend, layers, slots)
    finally:
        for slot in slots:
            model.bank.drop(slot)


@dataclass
class _Best:
    """The weights that were best on dev, or the last ones where there is no dev."""

    run: _Run
    rows: Sequence[Example]
    dev: Sequence[Example]
    l1: float
    bar: tqdm[NoReturn]
    weights: Tensor
    _loss: float | None = None

    def look(self, weights: Tensor) -> None:
        if self.dev and self._loss is None:
            self._loss = self.run.mean(self.weights, self.dev)  # the start's
        loss = self.run.mean(weights, self.dev) if self.dev else 0.0
        if self._loss is None or loss < self._loss:
            self._loss, self.weights = loss if self.dev else None, weights.detach().clone()

    def step(self, loss: float) -> None:
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)


def _by_gradient(best: _Best, steps: int, batch_size: int, rate: float, seed: int) -> None:
    sizes = [len(example.input_ids) for example in best.rows]
    at_once = min(batch_size, len(sizes))
    batches = plan_batches(
        sizes,
        [0] * len(sizes),
        batch_size=at_once,
        steps=steps,
        pooled=not best.run.task.couples,
        seed=seed,
    )
    with torch.enable_grad():
        weights = best.weights.clone().requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=rate)
        for number, batch in enumerate(batches):
            chosen = [best.rows[i] for i in batch]
            losses, counts = best.run.losses(weights, chosen, seed * 100_003 + number)
            loss = losses.sum() / counts.sum() + best.l1 * weights.abs().mean(1).sum()
            (weights.grad,) = torch.autograd.grad(loss, weights)
            if not math.isfinite(value := loss.item()):
                raise TrainingError(
                    f"the loss became {value} at step {number + 1}: lower the learning rate "
                    f"({rate}), or start from smaller weights"
                )
            optimizer.param_groups[0]["lr"] = rate * (1 - number / steps)
            optimizer.step()
            best.step(value)
            if number + 1 == steps or (best.dev and (number + 1) % max(1, steps // 10) == 0):
                best.look(weights)


def _by_search(best: _Best, steps: int) -> None:
    minimize = require("scipy.optimize", "fit", "method='lorahub'").minimize
    lowest = math.inf

    def objective(values: np.ndarray) -> float:
        nonlocal lowest
        weights = torch.tensor(values, dtype=torch.float32)[:, None]
        value = best.run.mean(weights, best.rows) + best.l1 * weights.abs().sum().item()
        if value < lowest:
            lowest = value
            best.look(weights)
        best.step(value)
        return value

    start = best.weights[:, 0].clamp(-BOUND, BOUND).tolist()
    options = {"maxfev": steps, "initial_tr_radius": 0.5, "final_tr_radius": 1e-3}
    limits = [(-BOUND, BOUND)] * len(start)
    minimize(objective, start, method="COBYQA", bounds=limits, options=options)
    if not math.isfinite(lowest):
        raise TrainingError("the loss is not finite at any weights in the search's bounds")


def task_for(name: str | None, model: Runtime, blend: Blend, max_length: int) -> Task:
    """The task of a name, else that of the head which the blend brings, else the default."""
    if name is None:
        headed = any(model.resident(term).head for term in blend.terms)
        name = task_of(model.resident(model.head_owner(blend))) if headed else DEFAULT_TASK
    return task_class(name).of_blend(model, blend, max_length)


def _check(per: str, method: str, rate: float, l1: float, **whole: int) -> None:
    if per not in ("adapter", "layer"):
        raise SettingsError(f"per={per!r}: choose adapter or layer")
    if method not in SEARCHES:
        raise SettingsError(f"method={method!r}: choose one of {', '.join(SEARCHES)}")
    if per == "layer" and method == "lorahub":
        raise SettingsError("per='layer' has too many weights for lorahub's search: use gradient")
    for name, value in whole.items():
        if value < (name != "seed"):
            raise SettingsError(f"{name}={value}: must be {int(name != 'seed')} or more")
    if not 0 < rate < math.inf or not 0 <= l1 < math.inf:
        raise SettingsError(f"learning_rate={rate}, l1={l1}: must be finite and not negative")
