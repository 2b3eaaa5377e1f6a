"""What a method of regularisation is, and what it may know of a run.

Knows tasks by their interface and adapters as factors; does not know weights of penalties,
processes or optimizers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task
from adapters_hub.training.checkpoint import Trainee
from adapters_hub.training.piece import Forward
from adapters_hub.training.regularisers import methods
from adapters_hub.training.regularisers.generic_text import GenericText
from adapters_hub.training.regularisers.passes import Passes
from adapters_hub.training.settings import TrainingSettings


@dataclass(frozen=True)
class Setup:
    """A run as a method sees it before the first step; the adapters are resident, and fresh.

    ``over`` says which frozen blend a row sees below the adapter; ``text`` is the generic text, if
    there is any; ``folder`` is the run's.
    """

    model: Runtime
    task: Task
    trainees: Sequence[Trainee]
    settings: TrainingSettings
    examples: Sequence[Example]
    owners: Sequence[int] | np.ndarray
    over: Callable[[Row], Blend]
    text: GenericText | None
    folder: Path | None
    forward: Forward
    writes: bool  # whether this process writes files


class Regulariser(ABC):
    """A penalty of one run, of all adapters that learn in it."""

    name: ClassVar[str]
    reads_text: ClassVar[bool] = False
    """Whether generic text is of use to it."""
    compares_unaugmented: ClassVar[bool] = False
    """Whether it reads `Piece.unaugmented`."""

    @classmethod
    def check(cls, settings: TrainingSettings, task: Task, backbone: Backbone) -> None:
        """Raise `SettingsError` where it does not work; called before anything is trained."""
        return

    @classmethod
    def check_adapter(cls, adapter: Adapter, backbone: Backbone) -> None:
        """Raise `SettingsError` for an adapter that it can do nothing for."""
        if not adapter.factors:
            raise SettingsError(
                f"regularise: {cls.name} holds what an adapter adds to the backbone, and "
                f"{adapter.name!r} is only a head, which adds nothing: leave {cls.name} out"
            )

    def prepare(self, setup: Setup) -> None:
        """Work out what is needed in every step."""
        return


class OfFactors(Regulariser):
    """A penalty that hangs on an adapter's factors alone."""

    @abstractmethod
    def value(self, number: int, trainee: Trainee) -> Tensor:
        """The penalty (a scalar, float32) of the adapter of a number, with gradients."""


class OfRows(Regulariser):
    """A penalty that is a mean over rows, or over their targets, of an adapter's batch.

    It is of the generic text's rows, and not of the batch's, where ``on_text``.
    """

    on_text: bool = False

    @abstractmethod
    def per_target(self, task: Task) -> bool:
        """Whether values are sums over a row's targets, as the loss is, or one a row."""

    @abstractmethod
    def values(self, passes: Passes) -> Tensor:
        """(rows,) of a piece, float32, with gradients."""


def method_class(name: str) -> type[Regulariser]:
    """The class of a method's name, which is that of its module."""
    method: type[Regulariser] = import_module(f"{methods.__name__}.{name}").METHOD
    return method
