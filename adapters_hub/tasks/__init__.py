"""Tasks by name. A task is one file: its head, how it encodes rows, its loss, its metrics."""

from importlib import import_module
from typing import Any

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Example, Task

_HOME = {
    "language-modeling": ("language_modeling", "LanguageModeling"),
    "classification": ("classification", "Classification"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "token-classification": ("token_classification", "TokenClassification"),
    "retrieval": ("retrieval", "Retrieval"),
    "generation": ("generation", "Generation"),
    "translation": ("translation", "Translation"),
}
NAMES = tuple(_HOME)


def task_class(name: str) -> type[Task]:
    """The class of a task's name, its module imported on first use."""
    if name not in _HOME:
        raise SettingsError(f"task={name!r}: choose one of {', '.join(NAMES)}")
    module, own = _HOME[name]
    found: type[Task] = getattr(import_module(f"adapters_hub.tasks.{module}"), own)
    return found


def make_task(name: str, **options: Any) -> Task:
    """The task of a name; what it takes beside the name is in its class."""
    return task_class(name)(**options)


__all__ = ["NAMES", "Example", "Row", "Task", "make_task", "task_class"]
