"""What a task says of itself before torch is there: names, tags, settings, a sample.

Knows no model, no rows and no file. Each module of `adapters_hub.tasks.declarations` makes one
`Declaration`; the task itself is the module of the same name beside this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from adapters_hub.data.augmentation.method import Change
from adapters_hub.errors import SettingsError

_Value = TypeVar("_Value")


def option(default: _Value, help: str) -> _Value:
    """A field of a task's options: its default, and what ``--help`` says of it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The settings that every task has; those of one task are fields of a subclass.

    Raises `SettingsError` for values that cannot work.
    """

    max_length: int = option(256, "tokens a text is cut at, or into (language, questions)")

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise SettingsError(f"max_length={self.max_length}: must be 1 or more")


@dataclass(frozen=True)
class Sample:
    """The data that a recipe trains on where nobody names any.

    ``folder`` lies beside the recipes, ``settings`` are what suits it there, ``name`` is that of
    the adapter.
    """

    folder: str = "data"
    settings: Mapping[str, object] = field(default_factory=dict)
    name: str = "my-hotel"


@dataclass(frozen=True)
class Declaration:
    """One task: what flags, cards and the registry need to know of it.

    ``class_name`` is its class in the module of the same name in `adapters_hub.tasks`.
    ``pipeline_tag`` is the Hub's, ``auto_class`` the class of transformers whose head its adapters
    bring (None: they bring none), ``peft_task_type`` PEFT's word for that class. ``fields`` are
    those of its rows that not every task has: `Row.fields` has them under these names.
    ``objectives``: what it is called as a way to teach a language; none where it teaches what to do
    with one. ``withstands``: the changes by augmentation that leave a row's targets right.
    """

    name: str
    class_name: str
    pipeline_tag: str
    options: type[TaskOptions] = TaskOptions
    fields: tuple[str, ...] = ()
    auto_class: str | None = None
    peft_task_type: str | None = None
    objectives: tuple[str, ...] = ()
    withstands: tuple[Change, ...] = ()
    sample: Sample = field(default_factory=Sample)
