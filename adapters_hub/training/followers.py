"""What goes beside the loss of a step and follows it: penalties, and weights of groups of rows.

Knows both, and how a loss is divided; without either it does what a loop without it would do. Does
not know optimizers.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adapters_hub.data.rows import Row
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task
from adapters_hub.training.checkpoint import Trainee
from adapters_hub.training.joint_weights import JointWeights
from adapters_hub.training.piece import Forward, Piece
from adapters_hub.training.regularisers.base import Setup
from adapters_hub.training.regularisers.generic_text import GenericText
from adapters_hub.training.regularisers.penalties import (
    Penalties,
    check_regularisers,
    compares_unaugmented,
    needs_text,
)
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


class Followers:
    """The penalties and the joint weights of a run, where it asks for them.

    ``seen`` are the examples to train on, each with its owner; ``compares_unaugmented`` says
    whether a step needs them beside those that augmentation drew. Raises `SettingsError` or
    `DataError` where they cannot be had, before anything is trained.
    """

    def __init__(
        self,
        model: Runtime,
        task: Task,
        adapters: Sequence[Adapter],
        settings: TrainingSettings,
        accelerator: "Accelerator",
        seen: Iterable[tuple[Example, int]],
    ) -> None:
        self._model, self._task, self._settings = model, task, settings
        self._accelerator = accelerator
        check_regularisers(settings, task, model, adapters)
        self._text = None
        if needs_text(settings):
            assert settings.regularise_data is not None
            self._text = GenericText(
                settings.regularise_data, model.backbone, settings.max_length, settings.seed
            )
        self._joint = None
        if settings.joint_weights is not None:
            device = model.backbone.device
            self._joint = JointWeights(settings.joint_weights, task, seen, accelerator, device)
        self.compares_unaugmented = compares_unaugmented(settings)
        self._penalties: Penalties | None = None
        self._rows = torch.zeros(len(adapters), dtype=torch.float64)

    def begin(
        self,
        trainees: Sequence[Trainee],
        examples: Sequence[Example],
        owners: Sequence[int] | np.ndarray,
        over: Callable[[Row], Blend],
        folder: Path | None,
        forward: Forward,
    ) -> None:
        """Prepare what is needed in every step, with the adapters resident and fresh."""
        if self._settings.regularise:
            setup = Setup(
                self._model, self._task, trainees, self._settings, examples, owners, over,
                self._text, folder, forward, self._accelerator.is_main_process,
            )  # fmt: skip
            self._penalties = Penalties(setup, self._accelerator)

    # ── a step ───────────────────────────────────────────────────────────────────────────────

    def batch(self, owners: Sequence[int]) -> None:
        """Begin a step whose batch, in all processes, has a row for each of these adapters."""
        if self._penalties is not None:
            rows = torch.tensor(owners, dtype=torch.long)
            self._rows = torch.bincount(rows, minlength=len(self._rows)).double()

    def of_piece(self, piece: Piece, forward: Forward, counts: Tensor) -> tuple[Tensor, Tensor]:
        """A piece's part of the loss, and of what the step minimises.

        ``counts`` are the targets of each adapter (adapters,) in the whole batch.
        """
        added = None
        if self._penalties is None:
            losses = forward(self._task.loss, piece)
        else:
            of_rows, added = self._penalties.of_piece(piece, forward, counts, self._rows)
            assert of_rows is not None
            losses = of_rows
        parts = losses.float() / counts[piece.owners].to(losses)
        minimised = loss = parts.sum()
        if self._joint is not None:
            of_targets = self._task.count(piece.inputs)
            weights = self._joint.weigh(losses, of_targets, piece.examples, piece.owners.tolist())
            minimised = (parts * weights).sum()
        return loss, minimised if added is None else minimised + added

    def weights(
        self, losses: Tensor, examples: Sequence[Example], owners: Sequence[int]
    ) -> Tensor | None:
        """The weights (rows,) of the losses of a whole batch of a task that couples rows."""
        if self._joint is None:
            return None
        return self._joint.weigh(losses, torch.ones(len(examples)), examples, owners)

    def of_coupled(self, piece: Piece, forward: Forward, counts: Tensor) -> Tensor | None:
        """What a piece of a task that couples rows adds to what the step minimises."""
        if self._penalties is None:
            return None
        return self._penalties.of_piece(piece, forward, counts, self._rows)[1]

    def finish(self, number: int, present: Sequence[int], forward: Forward) -> None:
        """End a step of the adapters that have a row in its batch.

        Adds the gradients of what hangs on none of its rows. Raises `TrainingError` for a penalty
        that is not finite.
        """
        if self._penalties is not None:
            self._penalties.finish(number, present, forward)
        if self._joint is not None:
            self._joint.finish(shared=not self._task.couples)

    # ── what is said and kept ────────────────────────────────────────────────────────────────

    def brief(self) -> dict[str, str]:
        """The penalties of the last step, for a progress bar."""
        return {} if self._penalties is None else self._penalties.brief()

    def shown(self) -> dict[str, float]:
        """All numbers of the last step, for trackers and the history."""
        penalties = {} if self._penalties is None else self._penalties.shown()
        return penalties | ({} if self._joint is None else self._joint.shown())

    def notes(self) -> tuple[str, ...]:
        """How it ended, a line each."""
        there = (part for part in (self._penalties, self._joint) if part is not None)
        return tuple(part.summary() for part in there)

    def facts(self) -> dict[str, object]:
        """What a checkpoint hangs on beside the settings: the generic text."""
        if self._text is None:
            return {}
        digest = hashlib.sha256()
        for example in self._text.whole:
            digest.update(np.asarray(example.input_ids, dtype=np.int64).tobytes() + b"/")
        return {"generic text": digest.hexdigest()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        state: dict[str, Any] = {}
        if self._penalties is not None:
            state["penalties"] = self._penalties.state()
        if self._joint is not None:
            state["joint_weights"] = self._joint.state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; raises `LookupError` or `ValueError` for another run's."""
        if self._penalties is not None:
            self._penalties.restore(state["penalties"])
        if self._joint is not None:
            self._joint.restore(state["joint_weights"])
