"""Files and Hub data sets → rows with text, label, language and domain, in splits.

Knows formats and fields; does not know tokenizers, tasks or models. Every complaint names the
file, the line and the field.
"""

import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from adapters_hub.data.formats import SUFFIXES, records, suffix_of
from adapters_hub.data.records import RowMaker
from adapters_hub.data.rows import Record, Row
from adapters_hub.errors import DataError
from adapters_hub.extras import require
from adapters_hub.library import languages

log = logging.getLogger(__name__)

_SPLITS = {
    "train": "train", "training": "train", "dev": "dev", "validation": "dev", "valid": "dev",
    "val": "dev", "eval": "dev", "evaluation": "dev", "test": "test", "testing": "test",
}  # fmt: skip
_CODE = re.compile(r"[a-z]{2}|[a-z]{2,3}(-[a-z]{4})?(-[a-z]{2})?")

Splits = dict[str, list[Row]]


def read_data(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    label_separator: str | None = None,
    fields: Iterable[str] = (),
) -> Splits:
    """Read a file, a folder of files, or a Hub data set id.

    JSON Lines, CSV, TSV (tabs and line ends separate, quotes are text) and Parquet, with a ``text``
    field (or SQuAD's ``context``, or a list of ``words``) and optional ``label`` (or a list of
    them), ``language``, ``domain`` and ``id`` (equal for translations of one item). All else is in
    `Row.fields`, and checked by the task that needs it: ``fields`` names those fields of tasks that
    ``columns`` may map too.

    ``columns`` maps these names to the file's columns; ``label_separator`` stands between the
    labels of a text (an empty one is none of them). A file's split is the part of its name, else of
    the folders it is in, that says train, dev or test, else train; a language may be said by the
    file name too (``de.train.jsonl``). A text file has a text a line, whose ``id`` is the line's
    number, so files of one folder are parallel line by line; in a folder only those are read whose
    name says a language (``de.txt``). Hidden files are left out. Raises `DataError`.
    """
    splits: Splits = {}
    for split, row in stream_data(source, columns, label_separator, fields, whole=True):
        splits.setdefault(split, []).append(row)
    return splits


def stream_data(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    label_separator: str | None = None,
    fields: Iterable[str] = (),
    *,
    whole: bool = False,
) -> Iterator[tuple[str, Row]]:
    """The rows of `read_data`, one at a time, each with its split.

    A Hub data set is streamed, not downloaded, unless the ``whole`` of it is wanted.
    """
    make = RowMaker(columns or {}, fields, label_separator)
    path = Path(source)
    if not path.exists():
        for split, table in _hub(str(source), whole):
            for number, record in enumerate(table, 1):
                yield (
                    _SPLITS.get(split, split),
                    make.row(record, None, f"{source}[{split}]:{number}"),
                )
        make.check(str(source))
        return
    for file in data_files(path):
        split, language = _said_by(file, path)
        line = 0
        # files of other folders have other lines
        parallel = suffix_of(file) == ".txt" and path.is_dir()
        folder = file.parent.relative_to(path).as_posix() if parallel else ""
        for line, record in records(file):
            if parallel:
                record = {**record, "id": f"{folder}:{line}"}
            yield split, make.row(record, language, f"{file}:{line}")
        if not line:
            raise DataError(f"{file}: empty, no rows in it")
    make.check(str(path))


def data_files(source: Path) -> list[Path]:
    """The files that the rows of a file or folder come from; `DataError` where there are none."""
    files = [source] if source.is_file() else _files(source)
    if not files:
        raise DataError(f"{source}: no {', '.join(SUFFIXES)} file in this folder")
    return files


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


def check_languages(
    rows: Iterable[Row], language: Iterable[str], source: str, what: str = "train rows"
) -> None:
    """Raise `DataError` for a language that was asked for and that no row is in."""
    have = Counter(row.language for row in rows)
    missing = [tag for tag in map(languages.canonical, language) if not have[tag]]
    if missing:
        without = f"; {have[None]} name no language" if have[None] else ""
        raise DataError(
            f"{source}: no {what} in {', '.join(missing)} (have: "
            f"{', '.join(sorted(tag for tag in have if tag)) or 'none'}{without}): leave it out of "
            "--language, or say which column is the language: --columns language=NAME"
        )


def with_held_out(splits: Splits, share: float = 0.1) -> Splits:
    """The same splits with a dev and a test split, cut from train where the data bring none.

    Rows with one ``id`` or one text are cut together, and so is what hangs on them through others:
    translations of an item stay on one side, and all questions on a context in every language.
    """
    train = splits.get("train", [])
    missing = [name for name in ("dev", "test") if not splits.get(name)]
    if not missing:
        return splits
    out: Splits = {name: list(splits.get(name, [])) for name in ("dev", "test")} | {"train": []}
    for row, digest in zip(train, _together(train), strict=True):
        place = int.from_bytes(digest[:4], "big") / 2**32
        slot = int(place / share)
        out[missing[slot] if slot < len(missing) else "train"].append(row)
    return out


def _together(rows: Sequence[Row]) -> list[bytes]:
    """A digest for each row, the same for rows that an id or a text joins: that of all of theirs.

    Not the least of them, which would put large groups where small digests go.
    """
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = parents[parent]  # half the way for who asks next
            node = parents[node]
        return node

    nodes = [("text", unicodedata.normalize("NFC", row.text)) for row in rows]
    for row, node in zip(rows, nodes, strict=True):
        if row.key:
            parents[root(node)] = root(("id", row.key))
    groups: dict[tuple[str, str], set[bytes]] = {}
    for row, node in zip(rows, nodes, strict=True):
        digest = hashlib.sha256((row.key or row.text).encode()).digest()
        groups.setdefault(root(node), set()).add(digest)
    whole = {
        node: (
            digests.pop()
            if len(digests) == 1
            else hashlib.sha256(b"".join(sorted(digests))).digest()
        )
        for node, digests in groups.items()
    }
    return [whole[root(node)] for node in nodes]


def _files(folder: Path) -> list[Path]:
    """The data files at any depth, but for hidden ones, which are tools' copies.

    Text files may be anything, such as a licence: only those named after a language are data.
    """
    files = sorted(
        file
        for file in folder.rglob("*")
        if suffix_of(file) in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    named = [f for f in files if suffix_of(f) != ".txt" or _said_by(f, folder)[1]]
    if left_out := [str(file.relative_to(folder)) for file in files if file not in named]:
        log.warning(
            "%s: left out, since their names say no language (as de.txt does): %s",
            folder,
            ", ".join(left_out[:8]) + (", …" if len(left_out) > 8 else ""),
        )
    return named


def _said_by(file: Path, root: Path) -> tuple[str, str | None]:
    """The split and the language that a file's name says; a folder's may say the split instead."""
    parts = _name_parts(_stem(file))
    folders = () if file == root else file.relative_to(root).parent.parts
    splits: set[str] = set()
    for name in (_stem(file), *reversed(folders)):
        splits = splits or {_SPLITS[part] for part in _name_parts(name) if part in _SPLITS}
    if len(splits) > 1:
        raise DataError(f"{file}: its name says {' and '.join(sorted(splits))}; let it say one")
    said = "-".join(part for part in parts if part not in _SPLITS)
    # a lone code of three letters may be a word (new, all): only a text file is named after it
    code = _CODE.fullmatch(said) and (len(said) != 3 or suffix_of(file) == ".txt")
    language = said if code and languages.is_language(said) else None
    return (splits.pop() if splits else "train"), language


def _stem(file: Path) -> str:
    """A file's name without its format, and without what says that it is compressed."""
    return file.name[: file.name.lower().rindex(suffix_of(file))]


def _name_parts(name: str) -> list[str]:
    return [part for part in re.split(r"[._\-]", name.lower()) if part]


def _hub(name: str, whole: bool) -> Iterator[tuple[str, Iterable[Record]]]:
    if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name) or Path(name).suffix in SUFFIXES:
        raise DataError(f"{name}: no such file or folder")
    datasets = require("datasets", "data", f"{name}: no such file or folder; a Hub data set")
    try:
        loaded = datasets.load_dataset(name, streaming=not whole)
    except Exception as error:  # the library raises many kinds, all of which mean this
        raise DataError(
            f"{name}: no such file or folder, and not to be had as a Hub data set "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    for split, table in loaded.items():
        parts = {
            column: getattr(feature, "feature", feature)  # of a list, what is in it
            for column, feature in (table.features or {}).items()  # a streamed one may not know
        }
        names = {c: p.names for c, p in parts.items() if isinstance(p, datasets.ClassLabel)}
        yield split, (_with_class_names(record, names) for record in table)


def _with_class_names(record: Record, names: Mapping[str, list[str]]) -> Record:
    """The record with the names of its classes for their numbers; -1 is the Hub's "no class"."""

    def name(value: object, classes: list[str]) -> object:
        if isinstance(value, list):
            return [name(item, classes) for item in value]
        return classes[value] if isinstance(value, int) and value >= 0 else None

    named = {column: name(record[column], classes) for column, classes in names.items()}
    return {**record, **named}
