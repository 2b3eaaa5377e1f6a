"""What methods of augmentation work with: lexicons and translations, read or learnt.

Knows settings, rows and which methods read what; does not know tasks or backbones.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapters_hub.data.augmentation.method import (
    TRANSLATED,
    Lexicon,
    Material,
    Method,
    Translated,
)
from adapters_hub.data.dictionary import is_dictionary, read_dictionary
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library import languages
from adapters_hub.text.lexicon import learn_lexicon
from adapters_hub.training.settings import TrainingSettings


def material_of(
    settings: TrainingSettings, methods: Sequence[Method], train: Sequence[Row], material: Material
) -> Material:
    """The ``material`` with what the methods read: of ``--augment-data``, else the train rows.

    Of files only the train split counts. Raises `SettingsError` for a method that finds nothing.
    """
    tags = tuple(dict.fromkeys(map(languages.canonical, settings.augment_language)))
    path = Path(settings.augment_data) if settings.augment_data else None
    lexicon: Lexicon = {}
    translations: Mapping[str, Sequence[Row]] = {}
    dictionary = path is not None and is_dictionary(path)
    rows: Sequence[Row] = train
    if path is not None and not dictionary:
        rows = read_data(path).get("train", [])
    if any(method.reads_lexicon for method in methods):
        words = read_dictionary(path) if path and dictionary else _learnt(train, rows, tags)
        lexicon = _in_languages(words, tags)
        _check_lexicon(lexicon, settings.augment_data, tags, train)
    if any(method.reads_translations for method in methods):
        if path is None or dictionary:
            what = f"{path} is a dictionary" if path else "there is no --augment-data"
            raise SettingsError(
                f"augment translate: {what}; give a file or folder of translations, rows with the "
                "id of the train rows that they translate, in another language"
            )
        translations = _translations(train, rows, tags)
        if not translations:
            raise SettingsError(
                f"augment translate: {path} has no train row with the id of one of the train rows "
                f"in another language{_of(tags)}"
            )
    return replace(material, lexicon=lexicon, translations=translations)


def _learnt(
    train: Sequence[Row], rows: Sequence[Row], tags: Sequence[str]
) -> dict[str | None, dict[str, list[Translated]]]:
    """The lexicon from the languages of train rows into ``tags``, or all, learnt from pairs."""
    sources = {row.language for row in train if row.language}
    pairs = _pairs(rows)
    lexicon: dict[str | None, dict[str, list[Translated]]] = {}
    for (one, other), texts in sorted(pairs.items()):
        wanted = [
            (source, target)
            for source, target in ((one, other), (other, one))
            if source in sources and (not tags or target in tags)
        ]
        if not wanted:
            continue
        forth, back = learn_lexicon(texts, (one, other))
        for source, _ in wanted:
            into = lexicon.setdefault(source, {})
            for word, translated in (forth if source == one else back).items():
                into.setdefault(word, []).extend(translated)
    return lexicon


def _pairs(rows: Iterable[Row]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The pairs of texts of each two languages: of one id, or a row and its positive or target."""
    pairs: dict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)

    def add(language: str | None, text: str, other: object, translation: object) -> None:
        if language and isinstance(other, str) and isinstance(translation, str):
            if language < other:
                pairs[language, other][text, translation] = None
            elif other < language:
                pairs[other, language][translation, text] = None

    items: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        for field in ("positive", "target"):
            add(row.language, row.text, row.fields.get(f"{field}_language"), row.fields.get(field))
        if row.key is not None and row.language:
            items[row.key].setdefault(row.language, row.text)
    for texts in items.values():
        for one in texts:
            for other in texts:
                if one < other:
                    add(one, texts[one], other, texts[other])
    return {languages: list(texts) for languages, texts in pairs.items()}


def _in_languages(lexicon: Lexicon, tags: Sequence[str]) -> Lexicon:
    """The translations in these languages, or all; words without one are left out."""
    kept: dict[str | None, dict[str, Sequence[Translated]]] = {}
    for language, words in lexicon.items():
        for word, translated in words.items():
            if some := [t for t in translated if not tags or t.language in tags]:
                kept.setdefault(language, {})[word] = some
    return kept


def _check_lexicon(
    lexicon: Lexicon, path: str | None, tags: Sequence[str], train: Sequence[Row]
) -> None:
    """`SettingsError` where there is nothing to switch to."""
    if not lexicon:
        sources = sorted({row.language for row in train if row.language})
        raise SettingsError(
            f"augment codeswitch: {path or 'the train rows'} gave no translation of a word from "
            f"{', '.join(sources) or 'the train rows, which name no language'}{_of(tags, 'into')}; "
            "give --augment-data a dictionary (columns word, translation and perhaps language), or "
            "texts in two languages or more with one id each, such as a folder of en.txt and yo.txt"
        )
    there = {t.language for words in lexicon.values() for some in words.values() for t in some}
    if missing := sorted(set(tags) - there):
        raise SettingsError(
            f"augment_language: no word was found in {', '.join(missing)} "
            f"({path or 'the train rows'} has {', '.join(sorted(filter(None, there)))})"
        )


def _translations(
    train: Sequence[Row], rows: Sequence[Row], tags: Sequence[str]
) -> dict[str, list[Row]]:
    """An id's texts in these languages, or all, for each train row's id that has another one."""
    sources: dict[str, set[str | None]] = defaultdict(set)
    for row in train:
        if row.key is not None:
            sources[row.key].add(row.language)
    translations: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        fits = row.language is not None and (not tags or row.language in tags)
        if not fits or row.key is None:
            continue
        others = sources.get(row.key, set())
        if others - {row.language} or (others and TRANSLATED in row.fields):
            translations[row.key].append(row)
    return dict(translations)


def _of(tags: Sequence[str], word: str = "of") -> str:
    return f" {word} {', '.join(tags)}" if tags else ""
