"""`auto` in blends: each row as alone with its language's adapter, fallbacks, and what fails."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.task_adapters import adapters

import adapters_hub as ah
from adapters_hub.errors import LanguageError, NotFoundError, SettingsError
from adapters_hub.library.paths import bundled_root

TEXTS = {
    "da": "Værelset var rent, og morgenmaden var god.",
    "uk": "Номер був чистий, і сніданок був смачний.",
    "en": "The room was clean and the breakfast was good.",
    "zh": "房间很干净，早餐也很好。",
    "de": "Das Zimmer war sauber, das Frühstück gut.",
}
POLISH = "Pokój był czysty, a śniadanie bardzo smaczne."
ODD = ["", "  \n", "😀🎉😀", "12 / 7", "Hotel"]


@pytest.fixture(scope="module")
def model():
    model = ah.load_backbone("starter", library=bundled_root())
    for adapter in adapters(model).values():
        model.add(adapter)
    return model


@pytest.fixture(autouse=True)
def as_before(model):
    yield
    model.use(None)
    model.identify_by()


def close(one, other):
    assert one == pytest.approx(other, abs=1e-5)


def test_each_row_of_a_mixed_batch_is_that_row_alone(model):
    texts = [*TEXTS.values()]
    mixed = model.classify(texts, "auto + classification")
    for row, (language, text) in zip(mixed, TEXTS.items(), strict=True):
        (alone,) = model.classify(text, f"{language} + classification")
        close(row, alone)
    vectors = model.embed(texts, "0.5*auto - en")
    for row, (language, text) in zip(vectors, TEXTS.items(), strict=True):
        torch.testing.assert_close(row, model.embed(text, f"0.5*{language} - en")[0])
    written = model.generate(texts, "auto", max_new_tokens=4)
    assert written == [
        model.generate(text, language, max_new_tokens=4)[0] for language, text in TEXTS.items()
    ]


def test_contexts_fields_messages_and_tags(model):
    texts, blends = [*TEXTS.values()], [f"{language} + " for language in TEXTS]
    answers = model.answer("What was clean?", texts, "auto + question-answering")
    for found, text, blend in zip(answers, texts, blends, strict=True):
        (alone,) = model.answer("What was clean?", text, blend + "question-answering")
        assert (found.text, found.start) == (alone.text, alone.start)
        assert found.score == pytest.approx(alone.score, abs=1e-4)
    tags = model.tag(texts, "auto + token-classification")
    alone = model.tag(texts, [blend + "token-classification" for blend in blends])
    assert [[s.text for s in row] for row in tags] == [[s.text for s in row] for row in alone]
    rows = [{"text": text} for text in texts]
    by_field = model.generate(rows, "auto + generation", max_new_tokens=3)
    assert by_field == model.generate(rows, [b + "generation" for b in blends], max_new_tokens=3)


def test_a_translation_is_over_the_language_that_it_is_from(model):
    options = {"source": ["da", "de"], "target": "en", "max_new_tokens": 3}
    texts = ["OK", "OK"]  # which no identifier tells apart
    found = model.translate(texts, adapters="auto + translation", **options)
    blends = ["da + translation", "de + translation"]
    assert found == model.translate(texts, adapters=blends, **options)


def test_a_blend_a_row_and_an_encoder(model):
    texts = [TEXTS["uk"], TEXTS["da"], TEXTS["de"]]
    blends = ["auto + retrieval", None, "de + retrieval"]
    found = model.embed(texts, blends)
    expected = model.embed(texts, ["uk + retrieval", None, "de + retrieval"])
    torch.testing.assert_close(found, expected)
    encoder = model.encoder("auto + retrieval")
    vectors = encoder.encode(texts, convert_to_tensor=True)
    expected = [
        model.encoder(f"{tag} + retrieval").encode(TEXTS[tag]) for tag in ("uk", "da", "de")
    ]
    for vector, one in zip(vectors, expected, strict=True):
        torch.testing.assert_close(vector, torch.from_numpy(one))
    told = model.encoder("auto + retrieval", languages="da")
    assert str(told.blend) == "da + retrieval"


@pytest.mark.parametrize(("term", "instead"), [("auto", None), ("auto?", None), ("auto?en", "en")])
def test_rows_without_a_language_fall_back(model, term, instead):
    texts = [*ODD, POLISH, f"😀 {TEXTS['uk']} (Room 12)"]
    blends = model.blends_of(texts, f"{term} + classification")
    bare = f"{instead} + classification" if instead else "classification"
    assert [str(blend) for blend in blends] == [bare] * 6 + ["uk + classification"]
    for row, alone in zip(
        model.classify(texts[:5], f"{term} + classification"),
        model.classify(texts[:5], bare),
        strict=True,
    ):
        close(row, alone)


def test_what_was_found_is_shown(model):
    found = model.languages_of([TEXTS["da"], "😀", POLISH, "Hotel"], "en")
    assert [row.language for row in found] == ["da", None, None, None]
    assert [str(row.blend) for row in found] == ["da", "en", "en", "en"]
    assert found[0].reason == "identified"
    assert found[0].probability > 0.9
    assert "no letters" in found[1].reason
    assert "seems to be in pl" in found[2].reason
    assert "undecided" in found[3].reason
    assert model.languages_of([]) == []


def test_a_language_without_an_adapter_gets_its_proxy_where_asked(model):
    (found,) = model.languages_of(POLISH, "proxy")
    assert found.language == "pl"
    assert {*found.blend.terms} >= {"ru", "uk"}
    assert sum(weight for _, weight in found.blend.weights) == pytest.approx(1)
    assert "without an adapter" in found.reason
    one, other = model.embed([POLISH, TEXTS["da"]], "auto?proxy")
    torch.testing.assert_close(one, model.embed(POLISH, found.blend)[0])
    torch.testing.assert_close(other, model.embed(TEXTS["da"], "da")[0])
    torch.testing.assert_close(one, model.embed(POLISH, "proxy:pl")[0])


def test_a_long_text_is_classified_by_its_language(model):
    text = (TEXTS["de"] + " ") * 2500
    assert len(text) > 100_000
    assert str(model.blends_of(text, "auto")[0]) == "de"


def test_a_language_that_is_given_is_not_looked_for(model):
    def never(texts):
        raise AssertionError

    model.identify_by(identifier=never)
    blends = model.blends_of(["OK", "OK"], "auto + hotel", languages=["da", "uk"])
    assert [str(blend) for blend in blends] == ["da + hotel", "uk + hotel"]


def test_the_languages_looked_for_and_another_identifier(model):
    model.identify_by(["en", "de"])
    assert model.languages_of(TEXTS["da"])[0].language is None
    model.identify_by(identifier=lambda texts: [{"fr": 1.0}] * len(texts))
    assert str(model.blends_of(TEXTS["da"], "auto")[0]) == "fr"


def test_an_identifier_that_fails_leaves_nothing_behind(model):
    def fails(texts):
        raise OSError("no such file")

    model.identify_by(identifier=fails)
    with pytest.raises(LanguageError, match="OSError: no such file"):
        model.classify([*TEXTS.values()], "auto + classification")
    model.identify_by()
    assert len(model.classify([*TEXTS.values()], "auto + classification")) == len(TEXTS)


def test_an_active_blend_may_be_auto(model):
    model.use("auto + classification")
    assert str(model.active) == "auto + name:classification"
    assert model.labels == ("good", "bad")
    close(model.classify(TEXTS["uk"])[0], model.classify(TEXTS["uk"], "uk + classification")[0])
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(SettingsError, match="no texts"):
        model(input_ids=ids)
    with pytest.raises(SettingsError, match="no texts"):
        model.merge("auto + hotel")
    with pytest.raises(NotFoundError, match='no adapter for "nowhere"'):
        model.classify(TEXTS["uk"], "auto?nowhere + classification")


def test_load_takes_auto_and_a_proxy():
    model = ah.load("auto", "hotel", library=bundled_root())
    assert str(model.active) == "auto + name:hotel"
    assert str(model.blends_of(TEXTS["da"])[0]) == "da + hotel"
    model = ah.load("proxy:pl", "hotel", library=bundled_root())
    assert {*model.active.terms} >= {"ru", "uk", "hotel"}


def test_a_library_without_language_adapters(model, tmp_path):
    alone = ah.load_backbone("starter", library=tmp_path)
    with pytest.raises(NotFoundError, match="no adapter of a language alone"):
        alone.embed("a text", "auto")


def test_threads(model):
    texts, blend = [*TEXTS.values()], "auto + classification"
    expected = model.classify(texts, blend)

    def use(number):
        fallback = "?en" if number % 2 else ""
        return model.classify(texts, f"auto{fallback} + classification")

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(use, range(8)):
            for row, same in zip(result, expected, strict=True):
                close(row, same)
