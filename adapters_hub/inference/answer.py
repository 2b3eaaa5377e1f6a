"""Questions and contexts in, answers out."""

from collections.abc import Sequence

import torch

from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.heads import outputs_of
from adapters_hub.tasks.question_answering import Answer, QuestionAnswering, by_question


@torch.no_grad()
def answer(
    model: Runtime,
    task: QuestionAnswering,
    questions: str | Sequence[str],
    contexts: str | Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
) -> list[Answer]:
    """See `AdaptedModel.answer`."""
    from adapters_hub.inference.records import collect_records

    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    one = isinstance(questions, str) and isinstance(contexts, str)
    rows = 1 if one else max(len(x) for x in (questions, contexts) if not isinstance(x, str))
    questions = [questions] * rows if isinstance(questions, str) else list(questions)
    contexts = [contexts] * rows if isinstance(contexts, str) else list(contexts)
    if len(questions) != len(contexts):
        raise DataError(f"{len(questions)} questions for {len(contexts)} contexts: one each")
    blends = model.blends(rows, adapters, languages)
    for name in sorted(set(map(model.head_owner, blends))):
        outputs_of(model.resident(name), model.backbone, QuestionAnswering.name)
    asked = [
        Row(context, key=str(i), where=f"row {i}", fields={"question": question})
        for i, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    for row in asked:
        if not row.text.strip():
            raise DataError(f"{row.where}: the context is empty")
    records = collect_records(
        model,
        task,
        task.encode(asked, model.backbone),
        lambda row: blends[int(row.key or 0)],
        batch_size=batch_size,
    )
    return [task.best(own) for own in by_question(records)]
