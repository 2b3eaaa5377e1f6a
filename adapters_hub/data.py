"""Files and Hub data sets → rows with text, label, language and domain, in splits.

Knows formats and fields; does not know tokenizers, tasks or models. Every complaint names the
file, the line and the field.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters_hub import languages
from adapters_hub.errors import DataError, LanguageError
from adapters_hub.tasks.base import Row

FIELDS = ("text", "label", "language", "domain", "id")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "test": "test"}

Splits = dict[str, list[Row]]


def read_data(source: str | Path, columns: Mapping[str, str] | None = None) -> Splits:
    """Read a file, a folder of files, or a Hub data set id.

    JSON Lines, CSV, TSV and Parquet, with a ``text`` field and optional ``label``, ``language``,
    ``domain`` and ``id`` (equal for translations of one item). ``columns`` maps these names to the
    file's own. A file's split is the part of its name that says train, dev or test, else train; a
    language may be said by the file name too (``de.train.jsonl``). Raises `DataError`.
    """
    columns = dict(columns or {})
    if unknown := set(columns) - set(FIELDS):
        raise DataError(f"columns: {sorted(unknown)} is none of {', '.join(FIELDS)}")
    path = Path(source)
    splits: Splits = {}
    if not path.exists():
        for split, records in _hub(str(source)):
            rows = [
                _row(r, columns, None, f"{source}[{split}]:{n}") for n, r in enumerate(records, 1)
            ]
            splits.setdefault(_SPLITS.get(split, split), []).extend(rows)
        return splits
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
    for file in files:
        parts = re.split(r"[.\-]", file.name.removesuffix(file.suffix))
        split = next((_SPLITS[part] for part in parts if part in _SPLITS), "train")
        said = [part for part in parts if part not in _SPLITS]
        language = said[0] if len(said) == 1 and len(said[0]) == 2 else None
        language = language if language and languages.is_language(language) else None
        numbered = list(_records(file))
        if not numbered:
            raise DataError(f"{file}: empty, no rows in it")
        splits.setdefault(split, []).extend(
            _row(record, columns, language, f"{file}:{line}") for line, record in numbered
        )
    return splits


def select(
    rows: Iterable[Row],
    language: Iterable[str] | None = None,
    domain: Iterable[str] | None = None,
) -> list[Row]:
    """The rows in these languages and domains; a row that names none fits any."""
    tags = None if language is None else {languages.canonical(tag) for tag in language}
    domains = None if domain is None else set(domain)
    return [
        row
        for row in rows
        if (tags is None or row.language is None or row.language in tags)
        and (domains is None or row.domain is None or row.domain in domains)
    ]


def with_held_out(splits: Splits, share: float = 0.1) -> Splits:
    """The same splits with a dev and a test split, cut from train where the data bring none.

    Rows are cut by their ``id`` (else their text), so translations of an item stay on one side.
    """
    train = splits.get("train", [])
    missing = [name for name in ("dev", "test") if not splits.get(name)]
    if not missing:
        return splits
    out: Splits = {name: list(splits.get(name, [])) for name in ("dev", "test")} | {"train": []}
    for row in train:
        digest = hashlib.sha256((row.key or row.text).encode()).digest()
        place = int.from_bytes(digest[:4], "big") / 2**32
        slot = int(place / share)
        out[missing[slot] if slot < len(missing) else "train"].append(row)
    return out


def _records(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        if file.suffix == ".parquet":
            yield from enumerate(_parquet(file), 1)
        elif file.suffix in (".csv", ".tsv"):
            with open(file, encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
                for record in reader:
                    yield reader.line_num, record
        else:
            with open(file, encoding="utf-8-sig") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield number, _json(line, file, number)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise DataError(f"{file}: not CSV ({error})") from None


def _json(line: str, file: Path, number: int) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}:{number}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{file}:{number}: one JSON object a line is expected")
    return record


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{file}: Parquet needs pyarrow: pip install 'adapters-hub[data]'"
        ) from None
    try:
        return parquet.read_table(file).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not Parquet ({error})") from None


def _hub(name: str) -> Iterator[tuple[str, Iterable[Mapping[str, Any]]]]:
    if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name) or Path(name).suffix in SUFFIXES:
        raise DataError(f"{name}: no such file or folder")
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: no such file or folder; for a Hub data set: pip install 'adapters-hub[data]'"
        ) from None
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds, all of which mean this
        raise DataError(
            f"{name}: no such file or folder, and not to be had as a Hub data set "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    for split, table in loaded.items():
        names = getattr(table.features.get("label"), "names", None)
        yield split, (_with_label_name(record, names) for record in table)


def _with_label_name(record: Mapping[str, Any], names: list[str] | None) -> Mapping[str, Any]:
    if names is None or not isinstance(record.get("label"), int):
        return record
    return {**record, "label": names[record["label"]]}


def _row(
    record: Mapping[str, Any], columns: Mapping[str, str], language: str | None, where: str
) -> Row:
    values = {name: record.get(columns.get(name, name)) for name in FIELDS}
    text = values["text"]
    if not isinstance(text, str) or not text.strip():
        name = columns.get("text", "text")
        have = ", ".join(str(key) for key in record)
        what = "empty" if name in record else f"missing (there: {have})"
        what = what if text is None or isinstance(text, str) else f"{text!r}, not text"
        raise DataError(f"{where}: field {name!r} is {what}")
    said = values["language"] or language
    try:
        tag = languages.canonical(str(said)) if said else None
    except LanguageError as error:
        raise DataError(
            f"{where}: field {columns.get('language', 'language')!r}: {error}"
        ) from None
    domain = str(values["domain"]) if values["domain"] not in (None, "") else None
    label = str(values["label"]) if values["label"] not in (None, "") else None
    key = None if values["id"] in (None, "") else f"{domain}/{values['id']}"
    used = {columns.get(name, name) for name in FIELDS}
    rest = {name: value for name, value in record.items() if name not in used}
    return Row(text, label, tag, domain, key, where, rest)
