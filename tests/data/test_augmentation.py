"""Methods of augmentation on rows: what they change, what they keep, and their numbers."""

import itertools
import json
import re
from random import Random

import pytest

from adapters_hub.data.augmentation.method import Material, Translated, with_words, words_in
from adapters_hub.data.augmentation.registry import methods, methods_of
from adapters_hub.data.dictionary import is_dictionary, read_dictionary
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError

TEXT = "the room was clean, and the staff was very kind"
WORDS = re.findall(r"\w+|,", TEXT)
TAGGED = Row(
    "Anna lives in Paris .",
    language="en",
    fields={"words": ["Anna", "lives", "in", "Paris", "."], "tags": ["B-P", "O", "O", "B-L", "O"]},
)


def only(name, amount):
    (method,) = methods_of({name: amount})
    return method


def split(text):
    return re.findall(r"\[MASK\]|\w+|,", text)


def test_methods_are_applied_in_one_order_however_they_are_given():
    given = {"mixup": 0.2, "subword": 0.1, "translate": 0.5, "span": 0.1, "codeswitch": 0.3}
    names = [method.name for method in methods_of(given)]
    assert names == ["translate", "codeswitch", "span", "subword", "mixup"] == [*methods()]
    assert [method.amount for method in methods_of(given)] == [0.5, 0.3, 0.1, 0.1, 0.2]
    assert methods_of({}) == ()


def test_what_no_method_is_called_lists_those_there_are():
    with pytest.raises(SettingsError, match="augment typo: no such method; there are codeswitch, "):
        methods_of({"typo": 0.1})


@pytest.mark.parametrize("name", ["subword", "span", "codeswitch", "translate", "mixup"])
@pytest.mark.parametrize("amount", [0.0, -0.1, 1.5, float("nan"), float("inf"), "0.1", True])
def test_numbers_that_cannot_be(name, amount):
    if (name, amount) == ("mixup", 1.5):
        assert methods_of({name: amount})  # α is no share
        return
    with pytest.raises(SettingsError, match=f"augment {name}="):
        methods_of({name: amount})


def test_words_of_a_row_are_replaced_where_they_are():
    row = Row(TEXT)
    spans = words_in(row, split)
    assert [TEXT[a:b] for a, b in spans] == WORDS
    other = with_words(row, spans, {0: "la", 3: "très propre"}, "codeswitch")
    assert other.text == "la room was très propre, and the staff was very kind"
    assert other.fields == {"augmented": "codeswitch"}
    assert with_words(row, spans, {}, "codeswitch") is row


# ── spans ────────────────────────────────────────────────────────────────────────────────────────


def test_masked_words_keep_their_places():
    material = Material(split, mask="[MASK]")
    for seed in range(30):
        row, hidden = only("span", 0.4).row(Row(TEXT), Random(seed), material)
        words = split(row.text)
        assert len(words) == len(WORDS)
        assert words.count("[MASK]") == hidden
        assert hidden in (4, 5)  # 0.4 of 11
        assert all(word in ("[MASK]", usual) for word, usual in zip(words, WORDS, strict=True))


def test_the_share_of_hidden_words_is_the_one_asked_for():
    material = Material(split, mask="[MASK]")
    hidden = [only("span", 0.15).row(Row(TEXT), Random(seed), material)[1] for seed in range(3000)]
    assert abs(sum(hidden) / (3000 * len(WORDS)) - 0.15) < 0.01


def test_hidden_words_are_beside_each_other_more_often_than_by_chance():
    material, pairs, hidden = Material(str.split, mask="_"), 0, 0
    text = " ".join(f"w{n}" for n in range(40))
    for seed in range(300):
        words = only("span", 0.2).row(Row(text), Random(seed), material)[0].text.split()
        pairs += sum(a == b == "_" for a, b in itertools.pairwise(words))
        hidden += words.count("_")
    assert pairs / hidden > 0.5  # by chance 0.2


def test_without_a_mask_words_are_left_out():
    for seed in range(30):
        row, gone = only("span", 0.4).row(Row(TEXT), Random(seed), Material(split))
        words = split(row.text)
        assert len(words) == len(WORDS) - gone
        rest = iter(WORDS)
        assert all(word in rest for word in words)  # in their order
        assert row.text == row.text.strip()
        assert "  " not in row.text
    for seed in range(30):
        row, _ = only("span", 1.0).row(Row(TEXT), Random(seed), Material(split))
        assert len(split(row.text)) == 1
    assert only("span", 1.0).row(Row("one"), Random(0), Material(split)) == (Row("one"), 0)
    assert only("span", 1.0).row(Row(""), Random(0), Material(split)) == (Row(""), 0)


def test_masks_and_tags():
    row, hidden = only("span", 0.5).row(TAGGED, Random(1), Material(split, mask="<mask>"))
    assert row.fields["tags"] == TAGGED.fields["tags"]
    assert row.fields["words"].count("<mask>") == hidden > 0
    assert row.text == " ".join(row.fields["words"])


# ── code-switching ───────────────────────────────────────────────────────────────────────────────

LEXICON = {
    "en": {
        "the": [Translated("le", "fr", 3.0), Translated("la", "fr", 1.0), Translated("il", "it")],
        "room": [Translated("la chambre", "fr")],
        "paris": [Translated("New York", "xx")],
    }
}


def test_words_are_replaced_with_their_translations():
    material = Material(split, lexicon=LEXICON)
    row, changed = only("codeswitch", 1.0).row(Row(TEXT, language="en"), Random(0), material)
    assert changed == 3
    assert row.language == "en"
    assert "la chambre was clean, and" in row.text
    other = Row(TEXT, language="de")
    assert only("codeswitch", 1.0).row(other, Random(0), material) == (other, 0)


def test_how_often_languages_and_translations_are_drawn():
    material, texts = Material(split, lexicon=LEXICON), []
    for seed in range(3000):
        row, _ = only("codeswitch", 0.5).row(Row("The", language="en"), Random(seed), material)
        texts.append(row.text)
    assert abs(texts.count("The") / 3000 - 0.5) < 0.03
    assert abs(texts.count("il") / 3000 - 0.25) < 0.03
    assert abs(texts.count("le") / 3000 - 0.1875) < 0.03
    assert abs(texts.count("la") / 3000 - 0.0625) < 0.03


def test_a_phrase_stands_for_one_tagged_word():
    material = Material(split, lexicon=LEXICON)
    row, changed = only("codeswitch", 1.0).row(TAGGED, Random(0), material)
    assert changed == 1
    assert row.text == "Anna lives in New York ."
    assert row.fields["words"] == ["Anna", "lives", "in", "New York", "."]
    assert row.fields["tags"] == TAGGED.fields["tags"]


def test_a_dictionary_is_of_any_language_but_not_into_the_rows_own(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text(
        "word\ttranslation\tlanguage\nRoom\tZimmer\tde\nroom\tRaum\tde\nroom\troom\tnl\n"
    )
    assert is_dictionary(path)
    lexicon = read_dictionary(path)
    assert lexicon == {None: {"room": [Translated("Zimmer", "de"), Translated("Raum", "de")]}}
    material = Material(split, lexicon=lexicon)
    for language, changed in (("en", 1), (None, 1), ("de", 0)):
        row = Row("the ROOM", language=language)
        assert only("codeswitch", 1.0).row(row, Random(0), material)[1] == changed


def test_dictionaries_without_a_language_and_with_gaps(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text(json.dumps({"word": "room", "translation": "Zimmer"}) + "\n")
    assert read_dictionary(path) == {None: {"room": [Translated("Zimmer", None)]}}
    path.write_text('{"word": "room", "translation": "Zimmer"}\n{"word": "a", "translation": ""}\n')
    with pytest.raises(DataError, match=r"words.jsonl:2: field 'translation' is empty"):
        read_dictionary(path)
    path.write_text('{"text": "a room"}\n')
    assert not is_dictionary(path)
    assert not is_dictionary(tmp_path)


# ── translations ─────────────────────────────────────────────────────────────────────────────────


def test_a_row_becomes_its_translation_and_says_so():
    german, french = Row("das Zimmer", language="de"), Row("la chambre", language="fr")
    material = Material(split, translations={"7": [german, french, Row("room", language="en")]})
    row = Row("the room", "good", "en", key="7", fields={"positive": "la chambre"})
    seen = [only("translate", 0.5).row(row, Random(seed), material) for seed in range(200)]
    texts = [other.text for other, _ in seen]
    assert set(texts) == {"the room", "das Zimmer"}  # what it should find is not taken
    assert abs(texts.count("das Zimmer") / 200 - 0.5) < 0.1
    other, words = next(pair for pair in seen if pair[1])
    assert (other.label, other.language, other.key, words) == ("good", "de", "7", 2)
    assert other.fields == {"positive": "la chambre", "augmented": "translate"}
    alone = Row("the room", language="en", key="8")
    assert only("translate", 1.0).row(alone, Random(0), material) == (alone, 0)


def test_methods_that_changed_a_row_are_all_named():
    material = Material(split, mask="_", lexicon=LEXICON)
    row, _ = only("codeswitch", 1.0).row(Row("the room", language="en"), Random(0), material)
    row, _ = only("span", 0.5).row(row, Random(0), material)
    assert row.fields["augmented"] == "codeswitch span"


def test_partners_are_other_rows_and_the_rows_own_share_is_the_larger():
    mixup = only("mixup", 0.4)
    drawn = [mixup.partner(2, 5, Random(seed)) for seed in range(500)]
    assert {partner for partner, _ in drawn} == {0, 1, 3, 4}
    assert all(0.5 <= share <= 1 for _, share in drawn)
    assert mixup.partner(0, 1, Random(0))[0] == 0
