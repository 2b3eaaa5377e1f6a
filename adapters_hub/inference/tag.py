"""Texts in, tagged spans out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.heads import label_names
from adapters_hub.tasks.token_classification import _NEVER, TokenClassification, spans_of


@dataclass(frozen=True)
class Entity:
    """A span of a text, ``text[start:end]`` in characters; the mean probability of its tags."""

    text: str
    label: str
    score: float
    start: int
    end: int


@torch.no_grad()
def tag(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
) -> list[list[Entity]]:
    """See `AdaptedModel.tag`. Rows may use heads with different tags."""
    from adapters_hub.inference.records import collect_records

    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    blends = model.blends(len(texts), adapters, languages)
    owners = [model.head_owner(blend) for blend in blends]
    names = {
        owner: label_names(model.resident(owner), model.backbone, TokenClassification.name)
        for owner in sorted(set(owners))
    }
    found: dict[int, list[Entity]] = {}
    for labels in dict.fromkeys(names.values()):
        task = TokenClassification(labels, max_length=model.backbone.max_tokens or _NEVER)
        rows = [
            Row(text, key=str(i))
            for i, (text, owner) in enumerate(zip(texts, owners, strict=True))
            if names[owner] == labels
        ]
        examples = task.encode(rows, model.backbone)
        records = collect_records(
            model, task, examples, lambda row: blends[int(row.key or 0)], batch_size=batch_size
        )
        for row, example, record in zip(rows, examples, records, strict=True):
            own = []
            for kind, first, behind in spans_of(record["predicted"]):
                start, end = example.target.spans[first][0], example.target.spans[behind - 1][1]
                score = sum(record["scores"][first:behind]) / (behind - first)
                own.append(Entity(row.text[start:end], kind, score, start, end))
            found[int(row.key or 0)] = own
    return [found[i] for i in range(len(texts))]
