"""Texts in, labels with their probabilities out."""

from collections.abc import Sequence
from enum import Enum
from typing import Final

import torch

from adapters_hub.data.batches import by_length, check_batch_size
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.inference.routing import row_blends
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.classification import Classification, LabelNumbers
from adapters_hub.tasks.heads import label_names, multi_label
from adapters_hub.text.tokenising import encode_texts


class NoTopK(Enum):
    """The type of `NO_TOP_K`, where ``top_k`` was not given; None there means all labels."""

    NO_TOP_K = "not given"

    def __repr__(self) -> str:
        return "NO_TOP_K"


NO_TOP_K: Final = NoTopK.NO_TOP_K
TopK = int | None
Scored = dict[str, str | float]
"""``{"label": …, "score": …}``, as of a transformers pipeline."""


@torch.no_grad()
def classify(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
) -> list[dict[str, float]]:
    """See `AdaptedModel.classify`. Rows may use heads with different labels, of both kinds."""
    check_batch_size(batch_size)
    blends = row_blends(model, texts, adapters, languages)
    owners = list(map(model.head_owner, blends))
    tasks = {}
    for name in dict.fromkeys(owners):
        adapter = model.resident(name)
        names = label_names(adapter, model.backbone, Classification.name)
        tasks[name] = Classification(names, multi_label=multi_label(adapter))
    encoded = encode_texts(texts, model.backbone)
    results: list[dict[str, float]] = [{} for _ in texts]
    for batch_rows in by_length([len(ids) for ids in encoded], batch_size):
        for task in dict.fromkeys(tasks[owners[row]] for row in batch_rows):
            rows = [row for row in batch_rows if tasks[owners[row]] == task]
            examples: list[Example[LabelNumbers]] = [
                Example(encoded[row], Row(texts[row]), None) for row in rows
            ]
            batch = task.collate(examples, model.backbone)
            blends_of_rows = [blends[row] for row in rows]
            with model.bank.using(model.plan(blends_of_rows)):
                logits = task.logits(model, batch, model.heads(blends_of_rows))
            for row, scores in zip(rows, task.probabilities(logits).tolist(), strict=True):
                pairs = zip(task.label_names, scores, strict=True)
                results[row] = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return results


def as_pipeline(results: Sequence[dict[str, float]], top_k: TopK) -> list[list[Scored]]:
    """Each text's ``top_k`` most probable labels (None: all), as of a transformers pipeline."""
    return [
        [{"label": label, "score": score} for label, score in [*result.items()][:top_k]]
        for result in results
    ]


def check_top_k(top_k: TopK) -> None:
    """Raise `SettingsError` for what is neither a whole number from 1 on nor None."""
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1 or top_k is True):
        raise SettingsError(f"top_k={top_k!r}: must be a whole number, 1 or more, or None for all")
