"""What augmentation is asked for: flags, what is refused before training, lexicons from pairs."""

import pytest
from helpers.augmenting import WORDS, load, of, rows_of, write_dictionary, write_translations

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.registry import task_class
from adapters_hub.training.augmentation import augmenter_of
from adapters_hub.training.settings import parse_settings


@pytest.fixture
def dictionary(tmp_path):
    return write_dictionary(tmp_path)


@pytest.fixture
def translations(tmp_path):
    return write_translations(tmp_path)


# ── what is refused before anything is trained ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("task", "kind", "augment", "message"),
    [
        ("question-answering", "bert", {"codeswitch": 0.3}, "codeswitch: it changes words, and the "
         r"targets of question-answering would no longer be right; leave it out \(subword can"),
        ("question-answering", "bert", {"span": 0.3}, "span: it changes masks"),
        ("token-classification", "qwen3", {"span": 0.3}, "span: it changes dropped words"),
        ("token-classification", "bert", {"translate": 0.3}, "translate: it changes text"),
        ("language-modeling", "bert", {"span": 0.3}, "span: it changes masks"),
        ("retrieval", "bert", {"mixup": 0.3}, "mixup: it changes embeddings"),
        ("matching", "bert", {"subword": 0.3}, "the targets of match.*no method can be used"),
        ("classification", "mt5", {"mixup": 0.3}, "is an encoder-decoder, whose two parts embed"),
        ("classification", "bert", {"codeswitch": 0.3}, "the train rows gave no translation of a "
         "word from en; give --augment-data a dictionary"),
        ("classification", "bert", {"translate": 0.3}, "translate: there is no --augment-data"),
    ],
)  # fmt: skip
def test_methods_that_do_not_go_are_refused(task, kind, augment, message, tiny, tmp_path):
    model = load(tiny(kind), tmp_path)
    rows, kind = rows_of(task), task_class(task)
    values = of(task, augment=augment)
    made = kind.from_rows(values.task_options, {"train": rows, "dev": [], "test": []}, {})
    with pytest.raises(SettingsError, match=message):
        augmenter_of(values, made, model.backbone, rows)


def test_data_that_does_not_go_is_refused(tiny, tmp_path, dictionary, translations):
    model, rows = load(tiny("bert"), tmp_path), rows_of("classification")
    kind = task_class("classification")

    def refuse(message, **values):
        chosen = of("classification", **values)
        task = kind.from_rows(chosen.task_options, {"train": rows}, {})
        with pytest.raises(SettingsError, match=message):
            augmenter_of(chosen, task, model.backbone, rows)

    refuse("augment_data: no method of --augment reads it", augment_data=dictionary)
    refuse("augment_data: no method", augment={"span": 0.1}, augment_data=dictionary)
    refuse("augment_language: no method", augment={"span": 0.1}, augment_language=("fr",))
    given = {"augment": {"codeswitch": 0.3}, "augment_data": dictionary}
    refuse("gave no translation of a word from en into yo", **given, augment_language=("yo",))
    refuse(r"found in yo \(.*has fr\)", **given, augment_language=("yo", "fr"))
    refuse("words.tsv is a dictionary", augment={"translate": 0.3}, augment_data=dictionary)
    given = {"augment": {"translate": 0.3}, "augment_data": translations}
    refuse("has no train row with the id of one .* of yo", **given, augment_language=("yo",))


def test_packed_texts_are_refused(tiny, tmp_path):
    values = of("language-modeling", augment={"subword": 0.1}, packing=True)
    model = load(tiny("qwen3"), tmp_path)
    task = task_class("language-modeling")()
    with pytest.raises(SettingsError, match=r"packed texts are cut into tokens once.*--no-packing"):
        augmenter_of(values, task, model.backbone, [Row("a")])


def test_flags():
    resolved = parse_settings(["--augment", "subword=0.1", "mixup=0.2", "--augment-language", "yo"])
    assert resolved.settings.augment == {"subword": 0.1, "mixup": 0.2}
    assert resolved.settings.augment_language == ("yo",)
    with pytest.raises(SettingsError, match="command line: augment: write NAME=NUMBER"):
        parse_settings(["--augment", "subword"])
    with pytest.raises(SettingsError, match="augment subword=much: 'much' is no number"):
        parse_settings(["--augment", "subword=much"])
    with pytest.raises(SettingsError, match="augment subwords: no such method"):
        parse_settings(["--augment", "subwords=0.1"])


# ── words from pairs ─────────────────────────────────────────────────────────────────────────────


def test_a_lexicon_is_learnt_from_a_folder_of_parallel_texts(tiny, tmp_path):
    folder = tmp_path / "parallel"
    folder.mkdir()
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b] * 3
    lines = {
        "en": [f"{a} {b}" for a, b in pairs],
        "fr": [f"{WORDS[a]} {WORDS[b]}" for a, b in pairs],
        "da": ["ord her"] * len(pairs),
    }
    for tag, texts in lines.items():
        (folder / f"{tag}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    values = of("classification", augment={"codeswitch": 1.0}, augment_data=str(folder),
                augment_language=("fr",))  # fmt: skip
    rows = rows_of("classification")
    task = task_class("classification").from_rows(values.task_options, {"train": rows}, {})
    augmenter = augmenter_of(values, task, load(tiny("bert"), tmp_path).backbone, rows)
    lexicon = augmenter.material.lexicon
    assert lexicon.keys() == {"en"}
    assert {word: some[0].text for word, some in lexicon["en"].items()} == WORDS


@pytest.mark.parametrize("field", ["id", "positive", "target"])
def test_a_lexicon_is_learnt_from_the_train_rows_themselves(field, tiny, tmp_path):
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b] * 3
    rows = []
    for number, (a, b) in enumerate(pairs):
        text, other = f"{a} {b}", f"{WORDS[a]} {WORDS[b]}"
        if field == "id":
            rows += [Row(text, "x", "en", key=str(number)), Row(other, "y", "fr", key=str(number))]
        else:
            fields = {field: other, f"{field}_language": "fr"}
            rows.append(Row(text, "xy"[number % 2], "en", fields=fields))
    values = of("classification", augment={"codeswitch": 1.0})
    task = task_class("classification").from_rows(values.task_options, {"train": rows}, {})
    augmenter = augmenter_of(values, task, load(tiny("bert"), tmp_path).backbone, rows)
    known = {word: some[0].text for word, some in augmenter.material.lexicon["en"].items()}
    assert known == WORDS
    assert augmenter.material.lexicon.keys() == ({"en", "fr"} if field == "id" else {"en"})
