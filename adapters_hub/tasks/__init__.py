"""Tasks by name. A task is one file: its head, how it encodes rows, its loss, its metrics."""

from typing import Any

from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Example, Row, Task

NAMES = (
    "language-modeling", "classification", "question-answering", "token-classification",
    "retrieval",
)  # fmt: skip


def make_task(name: str, **options: Any) -> Task:
    """The task of a name; what it takes beside the name is in its class."""
    from adapters_hub.tasks.classification import Classification
    from adapters_hub.tasks.language_modeling import LanguageModeling
    from adapters_hub.tasks.question_answering import QuestionAnswering
    from adapters_hub.tasks.retrieval import Retrieval
    from adapters_hub.tasks.tokens import TokenClassification

    known: tuple[type[Task], ...] = (
        LanguageModeling,
        Classification,
        QuestionAnswering,
        TokenClassification,
        Retrieval,
    )
    classes = {task.name: task for task in known}
    if name not in classes:
        raise SettingsError(f"task={name!r}: choose one of {', '.join(classes)}")
    return classes[name](**options)


__all__ = ["NAMES", "Example", "Row", "Task", "make_task"]
