"""Rows with a second text, such as a translation: checked, and made from translations of one item.

Knows rows and their fields; what a pair is good for is the task's.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, LanguageError
from adapters_hub.library import languages

PAIR = ("positive", "negatives", "positive_language")  # checked by `pair_rows`, if a task asks


def pair_rows(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> list[Row]:
    """The rows with the text that each should find, ``positive``, checked. Raises `DataError`.

    A row without a ``positive`` gets another text of its ``id``: one of n, some way further on in
    their order that hangs on the id, so over many items every pair of languages occurs. A row with
    no other text stays as it is.
    """
    rows = checked_pairs(rows, columns or {})
    items: dict[str, list[Row]] = {}
    for row in rows:
        if row.key is not None and "positive" not in row.fields:
            items.setdefault(row.key, []).append(row)
    paired = []
    for row in rows:
        if "positive" not in row.fields:
            same = items.get(row.key or "", [])
            at = next((n for n, other in enumerate(same) if other is row), 0)
            others = [other for other in same[at:] + same[:at] if other.text != row.text]
            if others:
                other = others[zlib.crc32(str(row.key).encode()) % len(others)]
                pair = {"positive": other.text, "positive_language": other.language}
                row = replace(row, fields={**row.fields, **pair})
        paired.append(row)
    return paired


def checked_pairs(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows, their pairs checked where they have one. Raises `DataError`."""
    return [replace(row, fields=_pair(row, columns)) for row in rows]


def translations(
    rows: Sequence[Row], columns: Mapping[str, str], targets: Sequence[str] = ()
) -> list[Row]:
    """The rows with their translations: ``fields`` have a ``target`` and a ``target_language``.

    A row without a ``target`` becomes one for every text of its ``id`` in another language, of
    ``targets`` if there are any; a row with one is kept if it is in them. Where just one is asked
    for, targets that name no language are in it. A row with nothing to pair it with stays as it is.
    Raises `DataError` for a pair that does not say both its languages.
    """
    items: dict[str, list[Row]] = {}
    for row in rows:
        if row.key is not None and row.fields.get("target") is None:
            items.setdefault(row.key, []).append(row)
    said = columns.get("target_language", "target_language")
    paired = []
    for row in rows:
        if row.fields.get("target") is None:
            others = [o for o in items.get(row.key or "", []) if o.language != row.language]
            pairs: list[tuple[object, str | None]] = [(o.text, o.language) for o in others]
            if not others:
                paired.append(row)
        else:
            tag = language_tag(row.fields.get("target_language"), said, row.where)
            tag = targets[0] if tag is None and len(targets) == 1 else tag
            pairs = [(row.fields["target"], tag)]
        for text, tag in pairs:
            tags = {columns.get("language", "language"): row.language, said: tag}
            if missing := [name for name, value in tags.items() if value is None]:
                raise DataError(
                    f"{row.where}: field {missing[0]!r} is missing, and translation needs it; say "
                    "it in every row, or ask for one (--language en, --target-language de)"
                )
            if not targets or tag in targets:
                pair = {"target": text, "target_language": tag}
                paired.append(replace(row, fields={**row.fields, **pair}))
    return paired


def language_tag(said: object, name: str, where: str) -> str | None:
    """The canonical tag of what a field says; `DataError` naming it for no language.

    None where it says nothing, or that its language is undetermined.
    """
    try:
        if not said or languages.undetermined(str(said)):
            return None
        return languages.canonical(str(said))
    except LanguageError as error:
        raise DataError(f"{where}: field {name!r}: {error}") from None


def _pair(row: Row, columns: Mapping[str, str]) -> dict[str, object]:
    """A row's fields with those of its pair checked: a text, a list of texts, a language's tag."""
    fields = {name: value for name, value in row.fields.items() if name not in PAIR}
    given = {name: row.fields.get(name) for name in PAIR}
    texts = {"positive": [given["positive"]] if given["positive"] not in (None, "") else []}
    several = given["negatives"] if isinstance(given["negatives"], list) else [given["negatives"]]
    texts["negatives"] = [text for text in several if text not in (None, "")]
    for name, values in texts.items():
        for text in values:
            if not isinstance(text, str) or not text.strip() or not is_text(text):
                shown = columns.get(name, name)
                raise DataError(f"{row.where}: field {shown!r} has {text!r}, which is not text")
    if texts["positive"]:
        fields["positive"] = texts["positive"][0]
    if texts["negatives"]:
        fields["negatives"] = texts["negatives"]
    name = columns.get("positive_language", "positive_language")
    if tag := language_tag(given["positive_language"], name, row.where):
        fields["positive_language"] = tag
    return fields


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
