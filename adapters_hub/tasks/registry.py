"""Tasks by name: the modules in `adapters_hub.tasks.declarations`, imported on first use.

Knows no task by name, and brings in no torch until a task's class is asked for.
"""

import pkgutil
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapters_hub.errors import SettingsError
from adapters_hub.tasks import declarations as declared
from adapters_hub.tasks.declaration import Declaration, TaskOptions

if TYPE_CHECKING:
    from adapters_hub.tasks.base import Task

DEFAULT_TASK = "language-modeling"
"""The task of a run that names none: it needs nothing but text."""

DEFAULT_HEAD_TASK = "classification"
"""The task of a head whose files name none."""


@cache
def _modules() -> MappingProxyType[str, str]:
    """A task's name → its module, of which there is one here and one in ``declarations``."""
    names = sorted(module.name for module in pkgutil.iter_modules(declared.__path__))
    pairs = {_declaration_in(module).name: module for module in names}
    if len(pairs) < len(names):
        raise ValueError(f"two of {', '.join(names)} declare a task of one name")
    return MappingProxyType(pairs)


def _declaration_in(module: str) -> Declaration:
    declaration = import_module(f"{declared.__name__}.{module}").DECLARATION
    assert isinstance(declaration, Declaration)
    return declaration


def task_names() -> tuple[str, ...]:
    """The names of all tasks, in the order of the alphabet."""
    return tuple(sorted(_modules()))


def declaration_of(name: str) -> Declaration:
    """What a task declares; `SettingsError` for a name that no task has."""
    if name not in _modules():
        raise SettingsError(f"task={name!r}: choose one of {', '.join(task_names())}")
    return _declaration_in(_modules()[name])


def declarations() -> tuple[Declaration, ...]:
    """What all tasks declare, in the order of their names."""
    return tuple(declaration_of(name) for name in task_names())


def row_fields() -> tuple[str, ...]:
    """The fields of rows that some tasks have beside those that all have."""
    return tuple(dict.fromkeys(name for task in declarations() for name in task.fields))


def has_head(name: str | None) -> bool:
    """Whether a name is that of a task whose adapters bring a head."""
    return name in _modules() and declaration_of(str(name)).auto_class is not None


def task_class(name: str) -> "type[Task]":
    """The class of a task's name; the first use imports its module."""
    declaration = declaration_of(name)
    module = import_module(f"adapters_hub.tasks.{_modules()[name]}")
    task: type[Task] = getattr(module, declaration.class_name)
    return task


def make_task(name: str, *, max_length: int = TaskOptions.max_length, **options: object) -> "Task":
    """The task of a name; the further options that it takes are in its class."""
    return task_class(name)(max_length=max_length, **options)
