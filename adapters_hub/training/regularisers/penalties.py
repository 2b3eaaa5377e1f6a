"""The penalties of a run: their values in each step, their weights, and what is said of them.

Knows the methods by their interface, which rows a process has, and how sums go through processes;
does not know any method by name, nor optimizers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters_hub.errors import SettingsError, TrainingError
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Task
from adapters_hub.training.piece import Forward, Piece
from adapters_hub.training.regularisers.base import (
    OfFactors,
    OfRows,
    Regulariser,
    Setup,
    method_class,
)
from adapters_hub.training.regularisers.control import Control, wanted_of
from adapters_hub.training.regularisers.passes import Passes
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_regularisers(
    settings: TrainingSettings, task: Task, model: Runtime, adapters: Sequence[Adapter] = ()
) -> None:
    """Raise `SettingsError` for a method that cannot do anything here, before anything is trained.

    ``adapters`` are those to be trained, if they are known by now.
    """
    for name in wanted_of(settings.regularise):
        method = method_class(name)
        method.check(settings, task, model.backbone)
        for adapter in adapters:
            method.check_adapter(adapter, model.backbone)


class Penalties:
    """What a step adds to the loss of each adapter, as it would for that adapter alone.

    A penalty of factors is computed by one process, one of rows by the process that has them, as
    the loss is; so neither processes nor pieces change a step.
    """

    def __init__(self, setup: Setup, accelerator: "Accelerator") -> None:
        self._setup, self._accelerator = setup, accelerator
        wanted = wanted_of(setup.settings.regularise)
        self.methods: dict[str, Regulariser] = {name: method_class(name)() for name in wanted}
        for method in self.methods.values():
            method.prepare(setup)
        self.controls = {
            name: [Control.of(of_method) for _ in setup.trainees]
            for name, of_method in wanted.items()
        }
        self.values = {name: [0.0] * len(setup.trainees) for name in wanted}
        device = setup.model.backbone.device
        self._sums = torch.zeros(len(wanted), len(setup.trainees), device=device)

    def of_piece(
        self, piece: Piece, forward: Forward, counts: Tensor, rows: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Each row's loss (rows,), and what the penalties of the piece's rows add to the sum.

        ``counts`` and ``rows`` are the targets and the rows of each adapter in the whole batch. No
        losses for a task that couples rows; None added where no penalty is of these rows.
        """
        task = self._setup.task
        passes = Passes(self._setup.model, task, piece, forward)
        added = self._added(passes, counts, rows, on_text=False)
        return None if task.couples else passes.losses, added

    def finish(self, number: int, present: Sequence[int], forward: Forward) -> None:
        """Add the gradients of penalties that hang on none of the batch's rows, and end the step.

        ``present`` are the adapters that have a row in the batch. Raises `TrainingError` for a
        penalty that is not finite.
        """
        setup, accelerator = self._setup, self._accelerator
        if setup.text is not None and any(_on_text(method) for method in self.methods.values()):
            pieces, targets, rows = setup.text.pieces(
                number, present, accelerator.process_index, accelerator.num_processes,
                len(setup.trainees),
            )  # fmt: skip
            for piece in pieces:
                passes = Passes(setup.model, setup.text.task, piece, forward)
                added = self._added(passes, targets, rows, on_text=True)
                if added is not None:
                    accelerator.backward(added)
        if accelerator.process_index == 0:
            self._of_factors(present)
        sums = self._sums
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, "sum")
        for name, of_method in zip(self.methods, sums.tolist(), strict=True):
            for owner in present:
                value = of_method[owner]
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the penalty {name} became {value} at step {number + 1}: lower its weight "
                        "or the learning rate"
                    )
                self.values[name][owner] = value
                self.controls[name][owner].follow(value)
        self._sums = torch.zeros_like(self._sums)

    def _of_factors(self, present: Sequence[int]) -> None:
        terms = []
        for place, (name, method) in enumerate(self.methods.items()):
            if isinstance(method, OfFactors):
                for owner in present:
                    value = method.value(owner, self._setup.trainees[owner])
                    terms.append(self.controls[name][owner].weight * value)
                    self._sums[place, owner] += value.detach()
        if terms:
            self._accelerator.backward(torch.stack(terms).sum())

    def _added(
        self, passes: Passes, counts: Tensor, rows: Tensor, *, on_text: bool
    ) -> Tensor | None:
        """The weighted sum of the penalties of a piece's rows, each a part of its mean."""
        owners = passes.piece.owners
        added = None
        for place, (name, method) in enumerate(self.methods.items()):
            if not isinstance(method, OfRows) or method.on_text != on_text:
                continue
            values = method.values(passes).float()
            divisors = counts if method.per_target(passes.task) else rows
            parts = values / divisors[owners].to(values)
            weights = [control.weight for control in self.controls[name]]
            weighted = (parts * torch.tensor(weights)[owners].to(parts)).sum()
            added = weighted if added is None else added + weighted
            self._sums[place].index_add_(0, owners.to(parts.device), parts.detach())
        return added

    # ── what is said and kept ────────────────────────────────────────────────────────────────

    def shown(self) -> dict[str, float]:
        """The last step's value, and the weight of the next, of each method and adapter."""
        shown = {}
        for name in self.methods:
            for owner, trainee in enumerate(self._setup.trainees):
                shown[f"{name}/{trainee.adapter.name}"] = self.values[name][owner]
                shown[f"{name}_weight/{trainee.adapter.name}"] = self.controls[name][owner].weight
        return shown

    def brief(self) -> dict[str, str]:
        """Each method's value, the mean over adapters, for a progress bar."""
        return {name: f"{sum(of) / len(of):.3g}" for name, of in self.values.items()}

    def summary(self) -> str:
        """Values and weights at the end, on one line."""
        parts = []
        for owner, trainee in enumerate(self._setup.trainees):
            of_adapter = ", ".join(
                f"{name} {self.values[name][owner]:.4g} "
                f"(weight {self.controls[name][owner].weight:.3g})"
                for name in self.methods
            )
            parts.append(f"{trainee.adapter.name}: {of_adapter}")
        return "penalties at the end: " + "; ".join(parts)

    def state(self) -> dict[str, list[list[float]]]:
        """Values and weights, as JSON, for a checkpoint."""
        return {
            name: [self.values[name], [control.weight for control in self.controls[name]]]
            for name in self.methods
        }

    def restore(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Put back what `state` gave; raises `KeyError` or `ValueError` for another run's."""
        for name in self.methods:
            values, weights = state[name]
            self.values[name] = [float(value) for value in values]
            for control, weight in zip(self.controls[name], weights, strict=True):
                control.weight = float(weight)


def needs_text(settings: TrainingSettings) -> bool:
    """Whether generic text is given; `SettingsError` where no method would read it."""
    if settings.regularise_data is None:
        return False
    wanted = wanted_of(settings.regularise)
    if not any(method_class(name).reads_text for name in wanted):
        raise SettingsError(
            f"regularise_data={settings.regularise_data!r}: of what regularise asks for "
            f"({', '.join(wanted) or 'nothing'}) none reads generic text: leave it out"
        )
    return True


def compares_unaugmented(settings: TrainingSettings) -> bool:
    """Whether a method wants rows as they were read beside those that augmentation drew."""
    wanted = wanted_of(settings.regularise)
    return any(method_class(name).compares_unaugmented for name in wanted)


def _on_text(method: Regulariser) -> bool:
    return isinstance(method, OfRows) and method.on_text
