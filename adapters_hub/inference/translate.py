"""Texts in one language in, the same in another out."""

from collections.abc import Sequence

import torch

from adapters_hub.data.batches import check_batch_size
from adapters_hub.data.rows import Row
from adapters_hub.errors import LanguageError, SettingsError
from adapters_hub.inference.generate import continuations
from adapters_hub.inference.inputs import each_row
from adapters_hub.inference.routing import row_blends
from adapters_hub.library.languages import UNDETERMINED, canonical
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
    options: dict[str, object],
) -> list[str]:
    """See `AdaptedModel.translate`. Rows may go into different languages in one batch."""
    check_batch_size(batch_size)
    if (options.get("num_return_sequences") or 1) != 1:
        raise SettingsError("num_return_sequences: a text has one translation here")
    backbone = model.backbone
    check_writes(backbone)
    sources = _tags(source, len(texts), "source")
    blends = row_blends(model, texts, adapters, languages, known=sources)
    targets = _tags(target, len(texts), "target")
    rows = [
        Row(text, language=from_tag, fields={"target_language": to_tag}, where=f"text {number}")
        for number, (text, from_tag, to_tag) in enumerate(
            zip(texts, sources, targets, strict=True), 1
        )
    ]
    prompt_by_blend = {blend: prompt_of(model, blend) for blend in set(blends)}
    prompts = [prompt_by_blend[blend] for blend in blends]
    ids: list[list[int]] = [[] for _ in rows]
    for prompt in set(prompts):
        numbers = [number for number, other in enumerate(prompts) if other == prompt]
        task = Translation(prompt=prompt.template, chat=prompt.chat) if prompt else Translation()
        encoded = task.sources([rows[number] for number in numbers], backbone)
        for number, row_ids in zip(numbers, encoded, strict=True):
            ids[number] = row_ids
    starts = Translation().starts(rows, backbone) if backbone.kind == "encoder-decoder" else None
    written: list[str] = []
    for at in range(0, len(rows), batch_size):
        batch = slice(at, at + batch_size)
        given = starts[batch] if starts else None
        written += continuations(
            model, blends[batch], ids[batch], options, given, Translation.max_new_tokens
        )
    finish = Translation().finish
    return [finish(text, row, backbone) for text, row in zip(written, rows, strict=True)]


def _tags(given: str | Sequence[str], rows: int, what: str) -> list[str]:
    """The canonical tag of each row's language, from one for all or one each.

    Raises `LanguageError` with the row for what is no language, or an undetermined one.
    """
    tags = []
    for number, language in enumerate(each_row(given, rows, what), 1):
        place = what if isinstance(given, str) else f"{what} of text {number}"
        if language.strip().lower() in UNDETERMINED:
            raise LanguageError(
                f"{place}: {language!r} says that the language is not known, and a translation "
                "needs it; give the language, or leave the text out"
            )
        try:
            tags.append(canonical(language))
        except LanguageError as error:
            raise LanguageError(f"{place}: {error}") from None
    return tags
