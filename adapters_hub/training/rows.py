"""The rows that a run trains and measures on, chosen of its data as its settings say.

Knows rows and settings, and tasks by their interface; brings in no model.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from adapters_hub.data.reading import Splits, select, with_held_out
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.library import languages
from adapters_hub.tasks.base import Example, Task
from adapters_hub.training.settings import TrainingSettings


def languages_of(settings: TrainingSettings) -> tuple[str, ...]:
    """The languages asked for, as canonical tags, each once."""
    return tuple(dict.fromkeys(map(languages.canonical, settings.language)))


def chosen_rows(
    read: Splits, settings: TrainingSettings, task: type[Task], *, other_languages: bool = False
) -> Splits:
    """The rows of the languages and domains asked for, with dev and test, as the task takes them.

    ``other_languages`` keeps test rows in languages that were not asked for. Raises `DataError`
    where no rows are left to train on.
    """
    tags = languages_of(settings)

    def prepared(rows: Sequence[Row]) -> list[Row]:
        return task.prepare(rows, settings.columns, settings.task_options)

    domains = {row.domain for rows in read.values() for row in rows}
    if settings.domain and not domains & {*settings.domain, None}:
        there = ", ".join(sorted(str(domain) for domain in domains))
        raise DataError(
            f"{settings.data} has no rows of the domain {', '.join(settings.domain)} ({there})"
        )
    read = {name: select(rows, None, settings.domain or None) for name, rows in read.items()}
    if not read.get("train"):
        raise DataError(
            f"{settings.data}: no train rows; by the names of its files, all are for "
            + " and ".join(name for name, rows in read.items() if rows)
        )
    read = with_held_out(read)
    splits = {name: read.get(name, []) for name in ("train", "dev", "test")}
    if len(tags) == 1:  # the one asked for is what rows that name none are in
        (tag,) = tags
        for name, rows in splits.items():
            splits[name] = [r if r.language else replace(r, language=tag) for r in rows]
    if task.across:
        splits = {name: prepared(rows) for name, rows in splits.items()}
    have = sorted({str(row.language) for row in splits["train"]})
    for name in splits:
        if name != "test" or not other_languages or task.across:
            splits[name] = select(splits[name], tags or None)
    if not splits["train"]:
        raise DataError(
            f"{settings.data}: no train rows in {', '.join(tags) or 'any language'} "
            f"(have: {', '.join(have) or 'none'})"
        )
    if not task.across:
        splits = {name: prepared(rows) for name, rows in splits.items()}
    return splits


def with_owners(
    examples: Sequence[Example], owner: Callable[[Row], int | None]
) -> tuple[list[Example], list[int]]:
    """The examples that someone owns, and who."""
    pairs = [(example, owner(example.row)) for example in examples]
    mine = [(example, number) for example, number in pairs if number is not None]
    return [example for example, _ in mine], [number for _, number in mine]


def fixed_share(row: Row) -> float:
    """A number in [0, 1) that is always the same for a row."""
    return zlib.crc32(f"{row.language}/{row.key or row.text}".encode()) / 2**32
