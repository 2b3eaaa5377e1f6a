"""Dictionaries that users give: a word and its translation a line. Knows formats and languages."""

from pathlib import Path

from adapters_hub.data.augmentation.method import Lexicon, Translated
from adapters_hub.data.formats import SUFFIXES, records, suffix_of
from adapters_hub.data.pairs import language_tag
from adapters_hub.errors import DataError

_COLUMNS = ("word", "translation")


def is_dictionary(path: Path) -> bool:
    """Whether the columns of a file are those of a dictionary."""
    if not path.is_file() or suffix_of(path) not in SUFFIXES:
        return False
    _, first = next(records(path), (0, {}))
    return all(name in first for name in _COLUMNS)


def read_dictionary(path: Path) -> Lexicon:
    """The translations of words, of any language, from a file with the columns ``word`` and
    ``translation``, and ``language``, that of the translation, if it is known.

    Raises `DataError` for a line that lacks one of the two.
    """
    words: dict[str, list[Translated]] = {}
    for line, record in records(path):
        word, translation = (str(record.get(name) or "").strip() for name in _COLUMNS)
        where = f"{path}:{line}"
        if not word or not translation:
            missing = _COLUMNS[bool(word)]
            raise DataError(f"{where}: field {missing!r} is empty")
        language = language_tag(record.get("language"), "language", where)
        if word.casefold() != translation.casefold():
            words.setdefault(word.casefold(), []).append(Translated(translation, language))
    return {None: words}
