"""The small interface between tasks and everything that trains or measures them.

Training and evaluation see a `Task` and never its name: they encode rows, collate examples, ask
for a loss a row, and hand records to `metrics`. Knows backbones, adapters and the runtime; knows
neither the settings of a run nor how anything is trained.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.declaration import Declaration, TaskOptions

if TYPE_CHECKING:
    from peft import LoraConfig


Target = TypeVar("Target")
"""What a task adds to an example."""

Reading = tuple[dict[str, Tensor], Tensor]
"""A batch and what `Task.read` gave for it."""

Record = TypeVar("Record")
"""What `Task.metrics` needs of one example: JSON values and, in some tasks, numpy arrays."""


@dataclass(frozen=True)
class Example(Generic[Target]):
    """A row, or a window of it, encoded: tokens, the row it came from, and what the task adds."""

    input_ids: list[int]
    row: Row
    target: Target


@dataclass(frozen=True)
class Shown:
    """A metric as tables show it: its key in `Task.metrics`, its name, and how it was computed."""

    metric: str
    name: str
    higher_is_better: bool
    note: str = ""


class Task(TaskOptions, ABC, Generic[Target, Record]):
    """One task on one kind of head. Subclasses are values: options, no state of training."""

    declaration: ClassVar[Declaration]
    name: ClassVar[str]
    metric: str  # the one early stopping watches and tables show
    higher_is_better: bool
    couples: ClassVar[bool] = False
    """Whether a row's loss depends on the batch's other rows; see `outputs` and `coupled_loss`."""

    across: ClassVar[bool] = False
    """Whether `prepare` pairs rows of different languages, before some languages are chosen."""

    compares: ClassVar[bool] = False
    """Whether two passes over rows can be compared; see `read`, `loss_of` and `divergence`."""
    compares_views: ClassVar[bool] = False
    """Whether that is so of two texts of a row as well, cut into other tokens."""

    @classmethod
    def prepare(
        cls, rows: Sequence[Row], columns: Mapping[str, str], options: TaskOptions
    ) -> list[Row]:
        """A split's rows as the task takes them, such as paired; ``columns`` for messages."""
        return list(rows)

    @classmethod
    def from_rows(
        cls,
        options: TaskOptions,
        splits: Mapping[str, Sequence[Row]],
        columns: Mapping[str, str],
    ) -> Self:
        """The task with a run's options, as its rows need it; ``columns`` for messages.

        ``options`` are an instance of ``declaration.options``. Raises `DataError` for rows that
        the task cannot use.
        """
        return cls(**vars(options))

    @classmethod
    def of_blend(cls, model: Runtime, blend: Blend, max_length: int) -> Self:
        """The task again, as the adapters of a resolved blend were trained for it.

        Raises `HeadError` for a blend that brings no head for it, or several.
        """
        return cls(max_length=max_length)

    def pipeline_tag(self, backbone: Backbone) -> str:
        """The Hub's tag for what a trained adapter does."""
        return self.declaration.pipeline_tag

    @abstractmethod
    def prefix(self, backbone: Backbone) -> str:
        """What stands before a site's path in the class that a trained adapter is saved for."""

    @abstractmethod
    def peft_task_type(self, backbone: Backbone) -> str | None:
        """PEFT's ``task_type`` of a trained adapter."""

    def body_sites_of(self, backbone: Backbone) -> list[str]:
        """The body's sites in the class that a trained adapter is saved for."""
        return backbone.lm_sites

    def metric_name(self, backbone: Backbone) -> str:
        """What ``metric`` measures on this backbone, for tables and cards."""
        return self.metric

    def new_head(self, backbone: Backbone, seed: int) -> dict[str, Tensor]:
        """Fresh head parameters by path; empty where the backbone's head serves."""
        return {}

    def new_adapter(
        self, info: AdapterInfo, backbone: Backbone, lora: "LoraConfig | None", seed: int = 0
    ) -> Adapter:
        """A fresh adapter with this task's head; see `Adapter.create`."""
        return Adapter.create(
            replace(info, pipeline_tag=self.pipeline_tag(backbone)),
            backbone,
            lora,
            prefix=self.prefix(backbone),
            sites=self.body_sites_of(backbone),
            head=self.new_head(backbone, seed),
            seed=seed,
        )

    def finished(self, adapter: Adapter) -> Adapter:
        """A trained adapter as it is kept."""
        return adapter

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label names a trained adapter stores, in the order of its logits."""
        return None

    @abstractmethod
    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Target]]:
        """Tokenise rows. Raises `DataError` naming file and line where a row will not do."""

    def encode_again(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Target]]:
        """The same of rows that were encoded before, and changed since; warns of nothing."""
        return self.encode(rows, backbone)

    def rows(self, row: Row) -> list[Row]:
        """A row for each sequence of a row's example, in the order of `collate`'s batch.

        Its ``language`` is the one whose frozen adapter goes below that sequence.
        """
        return [row]

    def language(self, row: Row) -> str | None:
        """The language that a row is drawn and shown under."""
        return row.language

    def check(self, examples: Sequence[Example[Target]]) -> None:
        """Raise `DataError`, naming file and line, for one that can neither train nor measure."""
        return

    @abstractmethod
    def collate(
        self, examples: Sequence[Example[Target]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        """One padded batch on the backbone's device; ``seed`` for what is random (masking)."""

    def mixed(
        self,
        batch: dict[str, Tensor],
        others: dict[str, Tensor],
        shares: Tensor,
        backbone: Backbone,
    ) -> dict[str, Tensor]:
        """A collated batch, of each row so large a share (rows,), with the rows of another one.

        Of tasks that withstand a change of embeddings; see `adapters_hub.tasks.mixing`.
        """
        raise NotImplementedError(f"{self.name} does not mix rows")

    @abstractmethod
    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of targets of each row (rows,): what a mean loss divides by."""

    @abstractmethod
    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """Each row's loss summed over its targets (rows,), in nats, under the current plan."""

    def features(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> dict[str, Tensor]:
        """What heads read of the body, under the current plan, whichever of ``heads`` it is.

        (rows, tokens, width) or (rows, width), by the names under which `loss` and `records` take
        them from a batch instead of running the body; empty where they would not.
        """
        return {}

    def read(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """What `loss_of` and `divergence` need of a pass of a task that ``compares``."""
        raise NotImplementedError(f"{self.name} does not compare passes")

    def loss_of(self, model: Runtime, batch: dict[str, Tensor], reading: Tensor) -> Tensor:
        """`loss` of what `read` gave, under the same plan."""
        raise NotImplementedError(f"{self.name} does not compare passes")

    def divergence(self, model: Runtime, one: Reading, other: Reading) -> Tensor:
        """How far two passes are apart, summed over each row's targets (rows,), in nats.

        Half of KL(p ‖ q) + KL(q ‖ p) of their distributions, with gradients to both. The passes may
        be over other inputs, such as two segmentations of the rows, as long as the distributions
        are of the same things in the same order; raises `SettingsError` where they are not.
        """
        raise NotImplementedError(f"{self.name} does not compare passes")

    def outputs(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """What the rows of a task that couples compare: (sequences, width), float32."""
        raise NotImplementedError(f"{self.name} does not couple rows")

    def coupled_loss(
        self, outputs: Tensor, examples: Sequence[Example[Target]], owners: Sequence[int]
    ) -> Tensor:
        """Each row's loss (rows,) from the outputs of a whole batch, whose rows train ``owners``.

        A row is compared only with those of the same adapter.
        """
        raise NotImplementedError(f"{self.name} does not couple rows")

    @abstractmethod
    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Target]],
    ) -> list[Record]:
        """What `metrics` needs of each example; several processes send them to each other."""

    @abstractmethod
    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """All metrics over records of any rows; contains ``self.metric``."""

    @abstractmethod
    def tallies(self, records: Sequence[Record]) -> np.ndarray:
        """(units, k): what each unit adds to the sums that `score` takes, for a bootstrap.

        A unit is a record, or the records that are judged together, such as a question's windows,
        in an order that hangs on the rows alone.
        """

    @abstractmethod
    def score(self, sums: np.ndarray) -> np.ndarray:
        """``metric`` from sums of tallies (…, k) → (…)."""

    def final(self) -> "Task":
        """The same task with what is too slow to be measured at each look at dev."""
        return self

    def shown(self, backbone: Backbone) -> list[Shown]:
        """What tables show of `metrics`, each a table."""
        return [Shown(self.metric, self.metric_name(backbone), self.higher_is_better)]

    def usage(self, row: Row, backbone: Backbone) -> str | None:
        """The Python call that uses an adapter trained for this task on a row, to be shown."""
        return None

    def needs_head(self) -> bool:
        """Whether adapters trained for this task bring a head."""
        return False


def pad(
    examples: Sequence[Example[Target]], backbone: Backbone, multiple: int = 1
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (rows, tokens) of examples, padded on the right."""
    return padded([example.input_ids for example in examples], backbone, multiple=multiple)


def per_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum values (n,) into their rows (n,) → (count,); differentiable."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
