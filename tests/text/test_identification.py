"""Which language a text is in: among which languages, how sure, and what is left undecided."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters_hub.errors import LanguageError, SettingsError
from adapters_hub.text.identification import READ, identify, known_languages

TEXTS = {
    "da": "Værelset var rent, og morgenmaden var god.",
    "de": "Das Zimmer war sauber und das Frühstück war gut.",
    "en": "The room was clean and the breakfast was good.",
    "uk": "Номер був чистий, і сніданок був смачний.",
    "zh": "房间很干净，早餐也很好。",
}


def languages_of(texts, allowed=None, **options):
    return [found.language for found in identify(texts, allowed, **options)]


def test_languages_among_those_allowed_and_among_all():
    assert languages_of([*TEXTS.values()], [*TEXTS]) == [*TEXTS]
    assert languages_of([*TEXTS.values()]) == [*TEXTS]
    assert {"da", "uk", "zh", "yo"} <= known_languages()
    assert identify([]) == []


def test_a_probability_is_among_the_languages_allowed():
    (alone,) = identify([TEXTS["da"]], ["da"])
    (beside,) = identify([TEXTS["da"]], ["da", "sv", "de"])
    assert alone.probability == pytest.approx(1)
    assert 0.5 < beside.probability < 1


def test_a_text_in_another_language_than_those_allowed_is_undecided():
    (found,) = identify([TEXTS["uk"]], ["da", "de"])
    assert (found.language, found.elsewhere) == (None, "uk")


@pytest.mark.parametrize("text", ["", "   \n", "😀🎉", "42 - 17 = 25", "…!?"])
def test_a_text_without_letters_is_undecided(text):
    (found,) = identify([text], ["da", "de"])
    assert (found.language, found.likeliest, found.probability) == (None, None, 0.0)


def test_an_unsure_text_is_undecided():
    (found,) = identify(["Hotel"], [*TEXTS])
    assert found.likeliest is not None
    low = identify(["Hotel"], [*TEXTS], minimum=min(found.probability, 1.0))
    high = identify(["Hotel"], [*TEXTS], minimum=1.0)
    assert high[0].language is None
    assert low[0].likeliest == found.likeliest


def test_mixed_scripts_and_what_stands_before_the_first_letter():
    (found,) = identify([f"😀 4/5 {TEXTS['uk']} (Room 12)"], [*TEXTS])
    assert found.language == "uk"


def test_a_long_text_is_its_beginning():
    text = (TEXTS["de"] + " ") * 3000
    assert len(text) > 100_000
    assert identify([text], [*TEXTS]) == identify([text[:READ]], [*TEXTS])


def test_tags_of_one_language_are_told_apart_by_script():
    assert languages_of(["Ово је лепо место за живот"], ["sr-Latn", "sr", "de"]) == ["sr"]
    assert languages_of(["Ovo je lepo mesto za život"], ["sr-Latn", "sr", "de"]) == ["sr-Latn"]
    assert languages_of([TEXTS["de"]], ["de-AT", "de", "en"]) == ["de"]
    assert languages_of([TEXTS["de"]], ["de-AT", "en"]) == ["de-AT"]


def test_an_identifier_of_the_user():
    def ask(texts):
        return [{"tlh": 0.75, "en": 0.25} for _ in texts]

    (found,) = identify(["nuqneH"], ["en", "tlh"], identifier=ask)
    assert (found.language, found.probability) == ("tlh", 0.75)
    (found,) = identify(["nuqneH"], ["de"], identifier=ask)
    assert (found.language, found.likeliest, found.elsewhere) == (None, None, "tlh")


def test_an_identifier_that_fails():
    def fails(texts):
        raise RuntimeError("no such file")

    with pytest.raises(LanguageError, match=r"RuntimeError: no such file.*name the languages"):
        identify(["a text"], ["de"], identifier=fails)
    with pytest.raises(LanguageError, match="0 results for 1 texts"):
        identify(["a text"], ["de"], identifier=lambda texts: [])
    with pytest.raises(LanguageError, match="probability nan"):
        identify(["a text"], ["de"], identifier=lambda texts: [{"de": float("nan")}])


def test_what_is_no_language_or_no_probability():
    with pytest.raises(LanguageError):
        identify(["a text"], ["hotel"])
    with pytest.raises(SettingsError, match="minimum=2"):
        identify(["a text"], minimum=2)


def test_threads_find_the_same():
    texts = [*TEXTS.values()] * 5
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: identify(texts, [*TEXTS]), range(8)))
    assert all(result == results[0] for result in results)
