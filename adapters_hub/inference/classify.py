"""Texts in, labels with their probabilities out."""

from collections.abc import Sequence

import torch

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.heads import label_names, multi_label
from adapters_hub.text.tokenising import encode_texts


@torch.no_grad()
def classify(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
) -> list[dict[str, float]]:
    """See `AdaptedModel.classify`. Rows may use heads with different labels, of both kinds."""
    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    blends = model.blends(len(texts), adapters, languages)
    owners = list(map(model.head_owner, blends))
    tasks = {}
    for name in dict.fromkeys(owners):
        adapter = model.resident(name)
        names = label_names(adapter, model.backbone, Classification.name)
        tasks[name] = Classification(names, multi_label=multi_label(adapter))
    encoded = encode_texts(texts, model.backbone, 10**9)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    found: dict[int, dict[str, float]] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for task in dict.fromkeys(tasks[owners[i]] for i in rows):
            mine = [i for i in rows if tasks[owners[i]] == task]
            batch = task.collate([Example(encoded[i], Row(texts[i])) for i in mine], model.backbone)
            own = [blends[i] for i in mine]
            with model.bank.using(model.plan(own)):
                logits = task.logits(model, batch, model.heads(own))
            for i, scores in zip(mine, task.probabilities(logits).tolist(), strict=True):
                pairs = zip(task.label_names, scores, strict=True)
                ranked = sorted(pairs, key=lambda pair: -pair[1])
                found[i] = dict(ranked)
    return [found[i] for i in range(len(texts))]
