"""Texts in one language in, the same in another out."""

from collections.abc import Sequence
from typing import Any

import torch

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.languages import canonical
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.translation import Translation
from adapters_hub.text.prompts import check_writes, prompt_of


@torch.no_grad()
def translate(
    model: Runtime,
    texts: Sequence[str],
    source: str | Sequence[str],
    target: str | Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
    options: dict[str, Any],
) -> list[str]:
    """See `AdaptedModel.translate`. Rows may go into different languages in one batch."""
    from adapters_hub.inference.generate import continuations

    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    if (options.get("num_return_sequences") or 1) != 1:
        raise SettingsError("num_return_sequences: a text has one translation here")
    backbone = model.backbone
    check_writes(backbone)
    blends = model.blends(len(texts), adapters, languages)
    sources, targets = (_each(said, len(texts)) for said in (source, target))
    rows = [
        Row(text, language=own, fields={"target_language": tag}, where=f"text {number}")
        for number, (text, own, tag) in enumerate(zip(texts, sources, targets, strict=True), 1)
    ]
    known = {blend: prompt_of(model, blend) for blend in set(blends)}
    prompts = [known[blend] for blend in blends]
    ids: list[list[int]] = [[] for _ in rows]
    for prompt in set(prompts):
        own = [number for number, other in enumerate(prompts) if other == prompt]
        task = Translation(prompt=prompt.template, chat=prompt.chat) if prompt else Translation()
        encoded = task.sources([rows[number] for number in own], backbone)
        for number, row_ids in zip(own, encoded, strict=True):
            ids[number] = row_ids
    starts = Translation().starts(rows, backbone) if backbone.kind == "encoder-decoder" else None
    found: list[str] = []
    for at in range(0, len(rows), batch_size):
        batch = slice(at, at + batch_size)
        given = starts[batch] if starts else None
        found += continuations(
            model, blends[batch], ids[batch], options, given, Translation.max_new_tokens
        )
    finish = Translation().finish
    return [finish(text, row, backbone) for text, row in zip(found, rows, strict=True)]


def _each(said: str | Sequence[str], rows: int) -> list[str]:
    """The canonical tag of each row's language, from one for all or one each."""
    tags = [canonical(tag) for tag in ([said] if isinstance(said, str) else said)]
    if isinstance(said, str):
        return tags * rows
    if len(tags) != rows:
        raise SettingsError(f"{len(tags)} languages for {rows} texts: give one, or one a text")
    return tags
