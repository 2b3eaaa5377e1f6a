"""Texts in, tagged spans out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapters_hub.data.batches import check_batch_size
from adapters_hub.data.rows import Row
from adapters_hub.inference.records import collect_records
from adapters_hub.inference.routing import row_blends
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.heads import label_names
from adapters_hub.tasks.token_classification import TagRecord, TokenClassification, Words, spans_of
from adapters_hub.text.tokenising import NO_LIMIT


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
    check_batch_size(batch_size)
    blends = row_blends(model, texts, adapters, languages)
    owners = [model.head_owner(blend) for blend in blends]
    names = {
        owner: label_names(model.resident(owner), model.backbone, TokenClassification.name)
        for owner in sorted(set(owners))
    }
    entities: list[list[Entity]] = [[] for _ in texts]
    for labels in dict.fromkeys(names.values()):
        task = TokenClassification(labels, max_length=model.backbone.max_tokens or NO_LIMIT)
        rows = [
            Row(text, key=str(number), where=f"text {number + 1}")
            for number, (text, owner) in enumerate(zip(texts, owners, strict=True))
            if names[owner] == labels
        ]
        examples = task.encode(rows, model.backbone)
        records = collect_records(
            model, task, examples, lambda row: blends[int(row.key or 0)], batch_size=batch_size
        )
        for example, record in zip(examples, records, strict=True):
            entities[int(example.row.key or 0)] = _entities(example, record)
    return entities


def _entities(example: Example[Words], record: TagRecord) -> list[Entity]:
    """The spans of one text, from the tags of its words."""
    words = example.target
    text, entities = example.row.text, []
    for kind, first, behind in spans_of(_continued(record["predicted"], words.places)):
        start, end = words.spans[first][0], words.spans[behind - 1][1]
        score = sum(record["scores"][first:behind]) / (behind - first)
        entities.append(Entity(text[start:end], kind, score, start, end))
    return entities


def _continued(tags: Sequence[str], places: Sequence[int | None]) -> list[str]:
    """Tags of words, where words inside one token are one span at most.

    Such words (Chinese characters, clusters of Thai) all have the one tag of their token; were it
    ``B-X``, each of them would begin another span.
    """
    continued = list(tags)
    for number in range(1, len(tags)):
        same_token = places[number] is not None and places[number] == places[number - 1]
        if same_token and tags[number].startswith("B-"):
            continued[number] = f"I-{tags[number][2:]}"
    return continued
