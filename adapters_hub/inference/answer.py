"""Questions and contexts in, answers out."""

from collections.abc import Sequence

import torch

from adapters_hub.data.batches import check_batch_size
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.inference.inputs import texts_of
from adapters_hub.inference.records import collect_records
from adapters_hub.inference.routing import row_blends
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.heads import outputs_of
from adapters_hub.tasks.question_answering import Answer, QuestionAnswering, by_question


@torch.no_grad()
def answer(
    model: Runtime,
    task: QuestionAnswering,
    question: str | Sequence[str],
    context: str | Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
) -> list[Answer]:
    """See `AdaptedModel.answer`."""
    check_batch_size(batch_size)
    questions, contexts = texts_of(question, "question"), texts_of(context, "context")
    if isinstance(question, str):
        questions *= len(contexts)
    elif isinstance(context, str):
        contexts *= len(questions)
    if len(questions) != len(contexts):
        raise SettingsError(
            f"{len(questions)} questions for {len(contexts)} contexts: give one for all, or one "
            "each"
        )
    blends = row_blends(model, contexts, adapters, languages)
    for name in sorted(set(map(model.head_owner, blends))):
        outputs_of(model.resident(name), model.backbone, QuestionAnswering.name)
    rows = [
        Row(context, key=str(number), where=f"row {number}", fields={"question": question})
        for number, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    for row in rows:
        if not row.text.strip():
            raise DataError(f"{row.where}: the context is empty")
    records = collect_records(
        model,
        task,
        task.encode(rows, model.backbone),
        lambda row: blends[int(row.key or 0)],
        batch_size=batch_size,
    )
    return [task.best(windows) for windows in by_question(records)]
