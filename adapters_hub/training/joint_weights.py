"""Weights of languages and domains that are trained together, which follow their losses.

Knows rows' groups, losses and how sums go through processes; does not know adapters' factors,
blends or optimizers.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Example, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

Kind = Literal["proportional", "dro"]
Group = tuple[int, str, str]
"""The adapter that rows train, their language and their domain; empty where they name none."""

_KEPT = 0.9  # of a group's mean loss, when it is seen again
_RATE = 0.01  # η of group DRO's published runs


class JointWeights:
    """A weight for each group of each adapter, whose mean over the adapter's groups is 1.

    A row's loss counts so many times. ``dro`` is group DRO (arXiv:1911.08731, algorithm 1):
    q_g ∝ q_g · exp(η · ℓ_g) for the groups of a batch, with their mean losses ℓ_g and η = 0.01; of
    G groups the weight is G·q_g. ``proportional``: G · ℓ̄_g / Σ ℓ̄, with ℓ̄ a moving average of a
    group's loss. A step uses the weights that the steps before it gave: those of its own losses, as
    in the paper, would need the losses of all processes and pieces before the first backward. What
    is drawn more often still counts more (``sampling_alpha``).

    ``seen`` are the rows to be trained on, each with the number of its adapter. Raises
    `SettingsError` where no adapter has two groups.
    """

    def __init__(
        self,
        kind: Kind,
        task: Task,
        seen: Iterable[tuple[Example, int]],
        accelerator: "Accelerator",
        device: torch.device,
    ) -> None:
        self.kind, self.task, self._accelerator = kind, task, accelerator
        groups = sorted({self._group(example.row, int(owner)) for example, owner in seen})
        self._numbers = {group: number for number, group in enumerate(groups)}
        self._members: defaultdict[int, list[int]] = defaultdict(list)
        for (owner, _, _), number in self._numbers.items():
            self._members[owner].append(number)
        if all(len(numbers) < 2 for numbers in self._members.values()):
            named = " ".join(part for group in groups for part in group[1:] if part)
            raise SettingsError(
                f"joint_weights={kind!r}: all rows of an adapter are of one language and domain "
                f"({named or 'none is named'}), so there is nothing to weigh: leave it out"
            )
        self.weights = [1.0] * len(groups)
        self.losses = [math.nan] * len(groups)
        self._sums = torch.zeros(len(groups), 2, device=device)

    def _group(self, row: Row, owner: int) -> Group:
        return owner, self.task.language(row) or "", row.domain or ""

    def weigh(
        self, losses: Tensor, counts: Tensor, examples: Sequence[Example], owners: Sequence[int]
    ) -> Tensor:
        """The weight of each row (rows,), whose losses (rows,) are remembered.

        ``losses`` are sums over the rows' targets, of which there are ``counts`` (rows,).
        """
        numbers = torch.tensor(
            [
                self._numbers[self._group(example.row, int(owner))]
                for example, owner in zip(examples, owners, strict=True)
            ]
        )
        sums = torch.stack((losses.detach().float(), counts.to(losses.device).float()), 1)
        self._sums.index_add_(0, numbers.to(self._sums.device), sums.to(self._sums))
        return torch.tensor(self.weights)[numbers].to(losses)

    def finish(self, *, shared: bool) -> None:
        """Change the weights for the losses of a step; ``shared``: each process has other rows."""
        sums = self._sums
        if shared and self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, "sum")
        for number, (total, count) in enumerate(sums.tolist()):
            if not count:
                continue
            loss = total / count
            if self.kind == "dro":
                self.weights[number] *= math.exp(min(_RATE * loss, 700.0))
                self.losses[number] = loss
            else:
                before = self.losses[number]
                first = math.isnan(before)
                self.losses[number] = loss if first else _KEPT * before + (1 - _KEPT) * loss
        for numbers in self._members.values():
            if self.kind == "proportional":
                self._follow_losses(numbers)
            mean = sum(self.weights[number] for number in numbers) / len(numbers)
            for number in numbers:
                self.weights[number] /= mean
        self._sums = torch.zeros_like(self._sums)

    def _follow_losses(self, numbers: Sequence[int]) -> None:
        """Give each group the weight of its loss; one not seen yet gets that of the mean."""
        known = [loss for n in numbers if not math.isnan(loss := self.losses[n])]
        mean = sum(known) / len(known) if known else 0.0
        for number in numbers:
            loss = self.losses[number]
            # a loss may be 0, or below it where the task is no likelihood
            least = max(mean, 1e-6) * 1e-3
            self.weights[number] = max(mean if math.isnan(loss) else loss, least)

    def shown(self) -> dict[str, float]:
        """The weight of each language, the mean over its domains and adapters."""
        by_language: defaultdict[str, list[float]] = defaultdict(list)
        for (_, language, _), number in self._numbers.items():
            by_language[language or "-"].append(self.weights[number])
        return {f"joint_weight/{k}": sum(v) / len(v) for k, v in by_language.items()}

    def summary(self) -> str:
        """The weights at the end, and the losses that they follow, on one line."""
        several = len(self._members) > 1
        parts = []
        for group, number in self._numbers.items():
            names = [name for name in group[1:] if name] or ["-"]
            owner = f" of adapter {group[0] + 1}" if several else ""
            loss = self.losses[number]
            seen = "not seen" if math.isnan(loss) else f"loss {loss:.3f}"
            parts.append(f"{' '.join(names)}{owner} {self.weights[number]:.3f} ({seen})")
        return f"loss weights at the end ({self.kind}): " + ", ".join(parts)

    def state(self) -> dict[str, list[float | None]]:
        """Weights and losses, as JSON, for a checkpoint."""
        losses = [None if math.isnan(loss) else loss for loss in self.losses]
        return {"weights": list(self.weights), "losses": losses}

    def restore(self, state: Mapping[str, Sequence[float | None]]) -> None:
        """Put back what `state` gave; raises `ValueError` for another run's."""
        weights, losses = state["weights"], state["losses"]
        if len(weights) != len(self.weights):
            raise ValueError(f"{len(weights)} weights for {len(self.weights)} groups")
        self.weights = [float(weight or 0.0) for weight in weights]
        self.losses = [math.nan if loss is None else float(loss) for loss in losses]
