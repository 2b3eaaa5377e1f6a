"""Texts that may not fit into memory: surveyed and tokenised once, packed, read from disk.

Knows settings, the language-model task and what a backbone's rows are. What is made is kept in the
cache of `datasets`; a later run on the same files, with the same tokenizer, takes it from there.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, overload

import numpy as np

from adapters_hub import progress
from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.packing import Documents, PackedRows, Packer, write_rows
from adapters_hub.data.reading import Splits, data_files, stream_data
from adapters_hub.data.rows import Row
from adapters_hub.data.survey import Group, Survey
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.extras import require
from adapters_hub.library.atomic import atomic_write
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.language_modeling import LanguageModeling, Packed
from adapters_hub.tasks.registry import row_fields
from adapters_hub.training.settings import TrainingSettings

_LARGE = 256 * 2**20
"""Bytes of files that are packed unless a run says otherwise."""

_FORMAT = 1
_CHUNK = 1000  # texts tokenised at a time
_GROUP, _TEXTS = "group", "texts"  # fields of a row that stands for others


def packs(settings: TrainingSettings) -> bool:
    """Whether a run packs its texts: as ``packing`` says, else where they are large."""
    if settings.task != LanguageModeling.name or settings.objective in ("match", "contrastive"):
        return False
    asked = settings.value("packing")
    if asked is not None or not os.path.exists(settings.data):
        return bool(asked)
    if sum(file.stat().st_size for file in data_files(Path(settings.data))) < _LARGE:
        return False
    _, row = next(_stream(settings))
    return not row.fields.get("positive")


def surveyed(settings: TrainingSettings) -> Splits:
    """Dev and test rows; of train, a row without text for each language and domain there is."""
    survey = _survey(settings)
    train = [
        replace(row, fields={_GROUP: number, _TEXTS: survey.texts[group]})
        for number, (group, row) in enumerate(survey.first.items())
    ]
    return {"train": train, "dev": survey.dev, "test": survey.test}


def count_texts(rows: Iterable[Row]) -> int:
    """How many texts rows are, of which one of `surveyed` stands for all of its group."""
    return sum(cast("int", row.fields.get(_TEXTS, 1)) if not row.text else 1 for row in rows)


@dataclass(frozen=True)
class PackedCorpus(Sequence[Example[int]]):
    """The train rows of a run, packed; an example is read from disk each time it is asked for.

    ``stands_for`` has the row of each group's number; ``digest`` is that of all that it is made of.
    """

    rows: PackedRows
    stands_for: Mapping[int, Row]
    limit: int
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example[int]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example[int]]: ...
    def __getitem__(self, place: int | slice) -> Example[int] | Sequence[Example[int]]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        tokens, documents = self.rows[place]
        row = self.stands_for[int(self.rows.groups[place])]
        return Packed(list(tokens), replace(row, key=f"{row.where}/{place}"), documents=documents)

    def owned(
        self, owner: Callable[[Row], int | None]
    ) -> tuple[np.ndarray, dict[tuple[Hashable, Hashable], np.ndarray]]:
        """Who each example trains (rows,), -1 for no one, and the examples to draw from.

        Those of each (owner and language, domain), as `draw_batches` takes them.
        """
        owners = np.full(len(self), -1, dtype=np.int32)
        members: dict[tuple[Hashable, Hashable], np.ndarray] = {}
        for number, row in self.stands_for.items():
            of_group = np.flatnonzero(self.rows.groups == number)
            whose = owner(row)
            if whose is not None and len(of_group):
                owners[of_group] = whose
                part = (whose, row.language), row.domain
                # rows that name no language are another group than those of the one they are in
                members[part] = np.concatenate([members.get(part, of_group[:0]), of_group])
        return owners, members

    def known_by(self, owner: Callable[[Row], int | None]) -> list[tuple[Example[int], int]]:
        """An example of each group that someone owns, with its owner, for a checkpoint's facts.

        Its tokens are those of no text, but the digest of all texts.
        """
        owned = [(row, owner(row)) for row in self.stands_for.values()]
        tokens = list(self.digest.encode())
        return [(Example(tokens, row, 0), number) for row, number in owned if number is not None]

    def __str__(self) -> str:
        tokens = int(self.rows.lengths.sum())
        full = tokens / (len(self) * self.limit)
        return f"{tokens:,} tokens in {len(self):,} rows of {self.limit} ({full:.1%} full)"


def packed_corpus(
    settings: TrainingSettings, task: LanguageModeling, backbone: Backbone, train: Sequence[Row]
) -> PackedCorpus:
    """The texts of the groups that rows of `surveyed` stand for, tokenised and packed.

    Raises `DataError` where no text is left to train on, `SettingsError` for rows of another kind.
    """
    if any(_GROUP not in row.fields for row in train):
        raise SettingsError(
            "packing=True: rows that are given are in memory already; give the name of a file, a "
            "folder or a Hub data set instead, or leave it out"
        )
    survey = _survey(settings)
    groups = list(survey.first)
    stands_for: dict[int, Row] = {}
    for row in train:
        number = row.fields[_GROUP]
        assert isinstance(number, int)
        stands_for[number] = row
    limit = task.row_limit(backbone)
    facts = [_FORMAT, _tokenizer_facts(backbone), limit, [groups[n] for n in sorted(stands_for)]]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = _folder(settings) / f"{digest}.arrow"
    numbers = {groups[number]: number for number in stands_for}
    with _locked(path):
        if not path.exists():
            rows = _packed(survey, settings, task, backbone, numbers)
            partial = path.with_suffix(".partial")
            write_rows(partial, rows)  # and its index, under the name that it keeps
            os.replace(partial, path)
    packed = PackedRows(path)
    if not len(packed):
        raise DataError(f"{settings.data}: no text long enough to train on")
    return PackedCorpus(packed, stands_for, limit, f"{_folder(settings).name}/{digest}")


def _packed(
    survey: Survey,
    settings: TrainingSettings,
    task: LanguageModeling,
    backbone: Backbone,
    numbers: Mapping[Group, int],
) -> Iterator[tuple[int, Documents]]:
    """The packed rows of the groups that have a number, each with that."""
    packers = {number: Packer(task.row_limit(backbone)) for number in numbers.values()}
    total = sum(survey.bytes[group] for group in numbers)
    rows = (
        row for row in survey.train_rows(_stream(settings)) if (row.language, row.domain) in numbers
    )
    with progress.bar(total, "tokenising", "B", scale=True) as bar:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            for example in task.encode(chunk, backbone):
                number = numbers[example.row.language, example.row.domain]
                for documents in packers[number].add(example.input_ids):
                    yield number, documents
            bar.update(sum(len(row.text.encode()) for row in chunk))
    for number, packer in packers.items():
        for documents in packer.rest():
            yield number, documents


def _survey(settings: TrainingSettings) -> Survey:
    path = _folder(settings) / "survey.json"
    with _locked(path):
        if path.exists():
            return Survey.from_json(path.read_text(encoding="utf-8"))
        survey = Survey.of(progress.over(_stream(settings), "reading", "rows"))
        with atomic_write(path) as file:
            file.write(survey.to_json().encode())
        return survey


def _locked(path: Path) -> AbstractContextManager[object]:
    """One process at a time makes a file; the others wait for it."""
    filelock = require("filelock", "data", "packing")
    lock: AbstractContextManager[object] = filelock.FileLock(path.with_suffix(".lock"))
    return lock


def _stream(settings: TrainingSettings) -> Iterator[tuple[str, Row]]:
    return stream_data(settings.data, settings.columns, settings.label_separator, row_fields())


def _folder(settings: TrainingSettings) -> Path:
    """Where what is made of a run's data is kept; another one for files that have changed."""
    cache = Path(require("datasets", "data", "packing").config.HF_DATASETS_CACHE)
    source = Path(settings.data)
    facts: list[object] = [_FORMAT, sorted(settings.columns.items()), settings.label_separator]
    if source.exists():
        files = [(str(file), file.stat()) for file in data_files(source.resolve())]
        facts += [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    else:
        builder = require("datasets", "data", "packing").load_dataset_builder(settings.data)
        facts += [settings.data, builder.config.name, builder.hash]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = cache / "adapters_hub" / digest
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tokenizer_facts(backbone: Backbone) -> list[object]:
    """What the rows of a text hang on, beside the text."""
    tokenizer = backbone.tokenizer
    rules = getattr(tokenizer, "backend_tokenizer", None)
    known = (
        rules.to_str() if rules is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    )
    return [backbone.kind, tokenizer.eos_token_id, hashlib.sha256(known.encode()).hexdigest()]
