"""Rows of data in another language, by the model: translate-train, and back-translation.

Knows rows and how texts are translated; does not know files or training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adapters_hub.data.augmentation.method import TRANSLATED
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.inference.translate import translate
from adapters_hub.library.languages import canonical
from adapters_hub.runtime.core import ACTIVE, Adapters, Runtime


def translated(
    model: Runtime,
    rows: Sequence[Row],
    target: str,
    adapters: Adapters = ACTIVE,
    *,
    back: bool = False,
    back_adapters: Adapters = ACTIVE,
    batch_size: int = 32,
    **options: object,
) -> Iterator[Row]:
    """Each row with its text in the language ``target``, in order, one batch after the other.

    With ``back`` it is translated on into its row's language, by ``back_adapters``: another way to
    say the same (back-translation, arXiv:1511.06709; as augmentation 1904.12848). All else of a row
    stays, and its field ``translated`` names the languages that its text went through. A text of
    which nothing is left gives no row. ``options`` are `AdaptedModel.translate`'s. Raises
    `SettingsError` for a target that is a row's own language, `DataError` for a row without one.
    """
    target = canonical(target)
    for row in rows:
        if row.language is None:
            raise DataError(f"{row.where}: a row to be translated must say its language")
        if row.language == target:
            raise SettingsError(f"{row.where}: the row is in {target} already")
    for at in range(0, len(rows), batch_size):
        batch = rows[at : at + batch_size]
        kept = [(row, row.text) for row in batch]
        for there in (True, False)[: 1 + back]:
            homes = [str(row.language) for row, _ in kept]
            texts = translate(
                model,
                [text for _, text in kept],
                homes if there else target,
                target if there else homes,
                adapters if there else back_adapters,
                None,
                batch_size,
                dict(options),
            )
            kept = [(row, text) for (row, _), text in zip(kept, texts, strict=True) if text.strip()]
        for row, text in kept:
            home = str(row.language)
            way = (home, target, home)[: 2 + back]
            fields = {**row.fields, TRANSLATED: ">".join(way)}
            yield replace(row, text=text, language=way[-1], fields=fields)
