"""Which rows a run trains and measures on: of the languages and domains asked for, in splits.

Knows settings, data and tasks by their interface; knows neither adapters nor backbones.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.pairs import language_tag
from adapters_hub.data.reading import (
    Splits,
    check_languages,
    read_data,
    select,
    with_held_out,
)
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.library import languages
from adapters_hub.progress import bar
from adapters_hub.tasks import task_class
from adapters_hub.tasks.base import Example, Task
from adapters_hub.tasks.registry import row_fields
from adapters_hub.text.identification import identify
from adapters_hub.training.corpus import count_texts, packs, surveyed
from adapters_hub.training.settings import TrainingSettings

OTHERS = "dev of others"
"""The split of dev rows in languages that were not asked for."""

STOPPING = "dev to stop by"
"""The split of dev rows in the languages of ``dev_language``."""


_CHUNK = 10_000  # rows that are encoded at once


def encoded(task: Task, rows: Sequence[Row], backbone: Backbone, show: bool) -> list[Example]:
    """A task's examples of rows, encoded a chunk at a time, so that a bar says what is left."""
    examples: list[Example] = []
    with bar(len(rows), "tokenising", "rows", show=show) as done:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            examples += task.encode(chunk, backbone)
            done.update(len(chunk))
    return examples


AUTO = "auto"
"""Among the languages asked for: rows that name none get the one that their text is in."""


def languages_of(settings: TrainingSettings) -> tuple[str, ...]:
    """The languages asked for, as canonical tags, each once; ``auto`` is none of them."""
    asked = (tag for tag in settings.language if tag != AUTO)
    return tuple(dict.fromkeys(map(languages.canonical, asked)))


def read_rows(settings: TrainingSettings) -> Splits:
    """All rows of the data that settings name, with the fields of every task.

    Of a run that packs its texts the train rows only stand for them; see `surveyed`.
    """
    if packs(settings):
        if AUTO in settings.language:
            raise SettingsError(
                "--language auto looks at every text before the first step, and this data is "
                "packed as it is read: say the languages, in the rows or in the files' names, or "
                "leave --packing out"
            )
        return surveyed(settings)
    return read_data(settings.data, settings.columns, settings.label_separator, row_fields())


@dataclass(frozen=True)
class RunRows:
    """The rows of a run, by its settings.

    ``languages`` are those asked for, as tags, of which ``trained`` must have train rows (None:
    all of them) and the others rows in some split; ``other_languages`` keeps test rows in those
    that were not asked for, and their dev rows as a split of their own; ``say`` prints a line.
    The dev rows that a run stops by are a split of their own too, where it says their languages.
    """

    settings: TrainingSettings
    languages: tuple[str, ...]
    trained: Sequence[str] | None
    other_languages: bool
    say: Callable[[str], None]

    def read(self) -> Splits:
        """The rows of the data that the settings name; see `of`."""
        return self._chosen(read_rows(self.settings))

    def of(self, splits: Mapping[str, Sequence[Row]]) -> Splits:
        """The rows that the run takes of these, with dev and test, as the task takes them.

        Raises `DataError` where there are none to train on.
        """
        return self._chosen(
            {name: [_with_canonical_tag(row) for row in rows] for name, rows in splits.items()}
        )

    def _chosen(self, read: Splits) -> Splits:
        settings, task = self.settings, task_class(self.settings.task)
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
        if AUTO in settings.language:
            read = {name: self._identified(name, rows) for name, rows in read.items()}
        if not packs(settings):
            read = with_held_out(read)
        splits = {name: read.get(name, []) for name in ("train", "dev", "test")}
        if self.other_languages and self.languages and not task.across:
            splits[OTHERS] = [r for r in splits["dev"] if r.language not in (*self.languages, None)]
        if settings.dev_language and not task.across:
            splits[STOPPING] = self._stopping(splits["dev"])
        self._say_without_language(splits)
        if (
            len(self.languages) == 1 and AUTO not in settings.language
        ):  # the one asked for is what rows that name none are in
            (tag,) = self.languages
            for name, rows in splits.items():
                splits[name] = [r if r.language else replace(r, language=tag) for r in rows]
        if task.across:
            splits = {name: self._prepared(rows) for name, rows in splits.items()}
            if settings.dev_language:
                splits[STOPPING] = self._stopping(splits["dev"])
        self._check_languages(splits)
        for name in splits:
            kept = name in ("test", OTHERS) and self.other_languages and not task.across
            if not kept and name != STOPPING:
                splits[name] = select(splits[name], self.languages or None)
        if not splits["train"]:
            raise DataError(f"{settings.data}: no train rows in any language")
        if not task.across:
            splits = {name: self._prepared(rows) for name, rows in splits.items()}
        return splits

    def _identified(self, split: str, rows: Sequence[Row]) -> list[Row]:
        """Rows with the language of their text where they name none; says how many of which.

        One is looked for among the languages asked for, or all; the undecided still name none.
        """
        without = [row for row in rows if row.language is None]
        if not without:
            return [*rows]
        identified = identify([row.text for row in without], self.languages or None)
        counts = Counter(one.language for one in identified)
        unsure = counts.pop(None, 0)
        listed = ", ".join(f"{tag} {count}" for tag, count in sorted(counts.items())) or "none"
        self.say(
            f"{len(without)} of {len(rows)} {split} rows name no language; found by their texts: "
            f"{listed}" + (f"; {unsure} undecided" if unsure else "")
        )
        named = iter(identified)
        return [r if r.language else replace(r, language=next(named).language) for r in rows]

    def _stopping(self, dev: Sequence[Row]) -> list[Row]:
        """The dev rows that choose the best state; `DataError` for a language that has none."""
        tags = {languages.canonical(tag) for tag in self.settings.dev_language}
        have = sorted({row.language for row in dev if row.language})
        if missing := sorted(tags - {*have}):
            raise DataError(
                f"{self.settings.data}: no dev rows in {', '.join(missing)} (have: "
                f"{', '.join(have) or 'none'}): leave it out of --dev-language"
            )
        return [row for row in dev if row.language in tags]

    def _check_languages(self, splits: Splits) -> None:
        """Raise `DataError` for a language that was asked for and has no rows."""
        source = self.settings.data
        tags = self.languages if self.trained is None else map(languages.canonical, self.trained)
        needed = set(tags) & set(self.languages)
        check_languages(splits["train"], sorted(needed), source)
        check_languages(_all(splits), self.languages, source, "rows")

    def _say_without_language(self, splits: Splits) -> None:
        """Print how many rows name no language, if one was asked for."""
        for split, rows in splits.items():
            count = count_texts(row for row in rows if row.language is None)
            if count and self.languages:
                (taken, *others) = self.languages
                one = not others and AUTO not in self.settings.language
                how = (
                    "they fit any, and see no language adapter" if not one else f"taken as {taken}"
                )
                self.say(f"{count} of {count_texts(rows)} {split} rows name no language: {how}")

    def _prepared(self, rows: Sequence[Row]) -> list[Row]:
        settings = self.settings
        return task_class(settings.task).prepare(rows, settings.columns, settings.task_options)


def _all(splits: Splits) -> Iterable[Row]:
    return (row for rows in splits.values() for row in rows)


def _with_canonical_tag(row: Row) -> Row:
    """A row that no file was read for, with its language as a file's rows have it."""
    return replace(row, language=language_tag(row.language, "language", row.where or "a row"))


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
