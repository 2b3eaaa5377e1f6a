"""Which of transformers' task classes a head belongs to, and its logits for the rows that have it.

Knows heads by their parameters' names and shapes; does not know what their outputs mean.
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.task_shell import BODY_OUTPUTS, TaskShell
from adapters_hub.data.rows import Row
from adapters_hub.errors import HeadError, SettingsError
from adapters_hub.library.adapter_file import MULTI_LABEL
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Reading, Record, Target, Task, per_row
from adapters_hub.tasks.divergence import Distributions, symmetric_kl
from adapters_hub.tasks.registry import DEFAULT_HEAD_TASK, declaration_of, has_head, task_class

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class HeadTask(Task[Target, Record]):
    """A task whose adapters bring the head of one of transformers' task classes."""

    compares: ClassVar[bool] = True
    has_labels: ClassVar[bool] = False
    """Whether the head's outputs are labels with names; see `LabelledTask`."""

    @property
    def head_size(self) -> int:
        """How many outputs the head has."""
        return len(self.labels or ())

    def shell(self, backbone: Backbone) -> TaskShell:
        """The task's class around the backbone; `BackboneError` where there is none."""
        return task_shell(backbone, self.name, self.head_size)

    def prefix(self, backbone: Backbone) -> str:
        return self.shell(backbone).prefix

    def body_sites_of(self, backbone: Backbone) -> list[str]:
        return self.shell(backbone).sites

    def peft_task_type(self, backbone: Backbone) -> str | None:
        return self.declaration.peft_task_type

    def new_head(self, backbone: Backbone, seed: int) -> dict[str, Tensor]:
        return self.shell(backbone).initial_head(seed)

    def needs_head(self) -> bool:
        return True

    @abstractmethod
    def logits(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """What the head says of each row of a batch, under the current plan."""

    @abstractmethod
    def distributions(self, batch: dict[str, Tensor], logits: Tensor) -> Distributions:
        """The distributions that `logits` are, in the order of rows and targets."""

    def read(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        return self.logits(model, batch, heads)

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        return self.loss_of(model, batch, self.read(model, batch, heads))

    def divergence(self, model: Runtime, one: Reading, other: Reading) -> Tensor:
        first, second = self.distributions(*one), self.distributions(*other)
        same = first.logits.shape == second.logits.shape
        if not same or not torch.equal(first.rows, second.rows):
            raise SettingsError(
                f"{self.name}: two passes have outputs of {tuple(first.logits.shape)} and "
                f"{tuple(second.logits.shape)}, which are not of the same things; compare passes "
                "over the same tokens, or rows that keep all of their targets"
            )
        apart = symmetric_kl(first.logits, second.logits) * first.weight
        return per_row(apart, first.rows, len(one[0]["input_ids"]))

    def features(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> dict[str, Tensor]:
        inputs = _inputs_of(batch)
        features = self.shell(model.backbone).features(heads[0][0], inputs)
        whole = features["last_hidden_state"].shape[:2] == inputs["input_ids"].shape
        return features if whole else {}


@dataclass(frozen=True)
class LabelledTask(HeadTask[Target, Record]):
    """A task whose head has one output for each of its labels, in the order of ``label_names``."""

    label_names: tuple[str, ...]
    has_labels: ClassVar[bool] = True
    compares_views: ClassVar[bool] = True
    method: ClassVar[str]
    """The method of `AdaptedModel` that takes texts and gives labels."""

    @classmethod
    def of_blend(cls, model: Runtime, blend: Blend, max_length: int) -> Self:
        owner = model.resident(model.head_owner(blend))
        return cls(label_names(owner, model.backbone, cls.name), max_length=max_length)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label_names

    def usage(self, row: Row, backbone: Backbone) -> str:
        return f"model.{self.method}([{row.text!r}])"


def task_shell(backbone: Backbone, task: str, outputs: int) -> TaskShell:
    """A task's class around the backbone, with so many outputs."""
    return backbone.shell(_auto_class(task), num_labels=outputs)


def _auto_class(task: str) -> str:
    name = declaration_of(task).auto_class
    assert name is not None, f"{task} has no head"
    return name


def _inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in _INPUTS if key in batch}


def row_logits(shell: TaskShell, batch: Mapping[str, Tensor], heads: Heads) -> Tensor:
    """(rows, labels) or (rows, tokens, labels), each row by the head of its blend."""
    inputs = _inputs_of(batch)
    parts = shell(heads, inputs, {key: batch[key] for key in BODY_OUTPUTS if key in batch})
    if heads[0][1] is None:
        return parts[0]
    out = parts[0].new_empty(len(inputs["input_ids"]), *parts[0].shape[1:])
    for (_, rows), part in zip(heads, parts, strict=True):
        out = out.index_copy(0, rows, part.to(out.dtype))  # type: ignore[arg-type]
    return out


def outputs_of(adapter: Adapter, backbone: Backbone, task: str) -> int:
    """How many outputs an adapter's head has in a task's class.

    Raises `HeadError` where the head is another task's, or not one of this architecture's class.
    """
    trained_for = adapter.info.task
    if has_head(trained_for) and trained_for != task:
        raise HeadError(
            f"the head of {adapter.name!r} was trained for {trained_for}, not for {task}"
        )
    sizes = {len(tensor) for tensor in adapter.head.values()}
    for count in sorted(sizes):
        shapes = {name: tensor.shape for name, tensor in adapter.head.items()}
        if shapes == task_shell(backbone, task, count).shapes:
            return count
    have = ", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(adapter.head.items()))
    raise HeadError(
        f"the head of {adapter.name!r} has {have or 'nothing'}; its {task} class needs "
        f"{', '.join(sorted(task_shell(backbone, task, 2).shapes))}"
    )


def label_names(adapter: Adapter, backbone: Backbone, task: str) -> tuple[str, ...]:
    """An adapter's labels; ``LABEL_0``, … as in transformers where its files name none.

    Raises `HeadError` where its head is not one of the task's class, or a regression.
    """
    count = outputs_of(adapter, backbone, task)
    if count == 1:
        raise HeadError(f"the head of {adapter.name!r} has one output, a regression: no labels")
    names = adapter.info.labels or tuple(f"LABEL_{number}" for number in range(count))
    if len(names) != count:
        raise HeadError(f"{adapter.name!r} names {len(names)} labels and its head has {count}")
    return names


def multi_label(adapter: Adapter) -> bool:
    """Whether a row may have any number of an adapter's labels."""
    return adapter.info.problem_type == MULTI_LABEL


def shell_of(adapter: Adapter, backbone: Backbone) -> TaskShell:
    """The task class that an adapter's head belongs to."""
    task = task_of(adapter)
    return task_shell(backbone, task, outputs_of(adapter, backbone, task))


def plain_model(backbone: Backbone, adapter: Adapter) -> PreTrainedModel:
    """A transformers model of the head's class, all of it a copy, with an adapter's head."""
    config, task = copy.deepcopy(backbone.config), task_of(adapter)
    config.num_labels = outputs_of(adapter, backbone, task)
    kind = task_class(task)
    if issubclass(kind, HeadTask) and kind.has_labels:
        if config.num_labels > 1:
            labels = label_names(adapter, backbone, task)
            config.id2label = dict(enumerate(labels))
            config.label2id = {name: number for number, name in enumerate(labels)}
            config.problem_type = adapter.info.problem_type
        else:  # one output is a number, which has no labels
            config.problem_type = adapter.info.problem_type or "regression"
    with torch.device("meta"):
        plain = getattr(transformers, _auto_class(task)).from_config(config)
    body, copied = getattr(plain, plain.base_model_prefix), copy.deepcopy(backbone.base)
    for name in backbone.attached:
        if getattr(body, name, None) is None:  # such as a pooler, for classes that use none
            setattr(copied, name, None)
    setattr(plain, plain.base_model_prefix, copied)
    dtype = next(backbone.base.parameters()).dtype
    head = {name: tensor.to(dtype, copy=True) for name, tensor in adapter.head.items()}
    plain.load_state_dict(head, strict=False, assign=True)
    return plain.eval().requires_grad_(False)


def task_of(adapter: Adapter) -> str:
    """The task of an adapter's head; `DEFAULT_HEAD_TASK` where its files say none."""
    task = adapter.info.task
    return task if task is not None and has_head(task) else DEFAULT_HEAD_TASK
