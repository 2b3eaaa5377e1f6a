import pytest

from adapters_hub.errors import AdaptersHubError, LanguageError
from adapters_hub.library import languages


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("de", "de"),
        ("DE", "de"),
        (" de\n", "de"),
        ("deu", "de"),
        ("ger", "de"),
        ("German", "de"),
        ("german", "de"),
        ("Deutsch", "de"),
        ("Swahili", "sw"),
        ("Kiswahili", "sw"),
        ("swa", "sw"),
        ("Українська", "uk"),
        ("Norwegian Bokmål", "nb"),
        ("Swiss German", "gsw"),
        ("Haitian Creole", "ht"),
        ("Brazilian Portuguese", "pt-BR"),
        ("Chinese (Traditional)", "zh-Hant"),
    ],
)
def test_names_and_codes(text, tag):
    assert languages.canonical(text) == tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("pt-BR", "pt-BR"),
        ("pt_br", "pt-BR"),
        ("PT-br", "pt-BR"),
        ("sr-latn", "sr-Latn"),
        ("zh_hant_tw", "zh-Hant-TW"),
        ("es-419", "es-419"),
        ("ca-valencia", "ca-valencia"),
        ("de-DE", "de-DE"),
    ],
)
def test_tags_with_script_region_and_variant(text, tag):
    assert languages.canonical(text) == tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [("iw", "he"), ("in", "id"), ("ji", "yi"), ("mo", "ro"), ("sh", "sr-Latn"), ("tl", "fil")],
)
def test_deprecated_codes(text, tag):
    assert languages.canonical(text) == tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [("cmn", "zh"), ("swh", "sw"), ("arb", "ar"), ("prs", "fa-AF"), ("Mandarin Chinese", "zh")],
)
def test_a_macrolanguage_stands_for_its_main_language(text, tag):
    assert languages.canonical(text) == tag


def test_other_languages_of_a_macrolanguage_stay_themselves():
    assert languages.canonical("yue") == "yue"
    assert languages.canonical("arz") == "arz"


@pytest.mark.parametrize("text", ["de", "pt-BR", "sr-Latn", "zh-Hant-TW", "es-419", "gsw", "he"])
def test_canonical_is_idempotent(text):
    assert languages.canonical(languages.canonical(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "   ", "xyz", "qq", "1", "Klingonese", "en us gb", "../x", "de/../..", "\x00", "en\x00",
     "\ud800", "a" * 300, "und", "mul", "zxx", "und-Latn"],
)  # fmt: skip
def test_what_is_no_language(text):
    assert not languages.is_language(text)
    with pytest.raises(LanguageError, match="not a language") as caught:
        languages.canonical(text)
    assert isinstance(caught.value, AdaptersHubError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("word", ["hotel", "hotels", "legal", "retail", "music", "clinic", "bank"])
def test_words_that_only_begin_like_a_language_are_none(word):
    assert not languages.is_language(word)


@pytest.mark.parametrize(
    ("typo", "hint"),
    [("Germna", "German (de)"), ("Swahilli", "Swahili (sw)"), ("Portuguise", "Portuguese (pt)")],
)
def test_the_error_offers_near_names(typo, hint):
    with pytest.raises(LanguageError) as caught:
        languages.canonical(typo)
    assert repr(typo) in str(caught.value)
    assert hint in str(caught.value)


def test_the_error_shows_how_to_write_a_language_if_nothing_is_near():
    with pytest.raises(LanguageError, match="such as de, pt-BR, Swahili"):
        languages.canonical("qqqqqqqqqq")


@pytest.mark.parametrize(
    ("tag", "name"),
    [("de", "German"), ("pt-BR", "Portuguese (Brazil)"), ("zh-Hant", "Chinese (Traditional)")],
)
def test_english_names(tag, name):
    assert languages.name(tag) == name


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("de", ["en", "de", "de-AT"], ("de", 0)),
        ("pt-BR", ["pt-PT", "es"], ("pt-PT", 5)),
        ("gsw", ["de", "fr"], ("de", 8)),
        ("de-AT", ["de", "en"], ("de", 4)),
        ("bs", ["hr", "sl"], ("hr", 8)),
        ("swh", ["sw"], ("sw", 0)),
        ("German", ["de"], ("de", 0)),
        ("sr-Latn", ["sr", "ru"], ("sr", 5)),
    ],
)
def test_closest(wanted, offered, expected):
    assert languages.closest(wanted, offered) == expected
    assert languages.closest(wanted, reversed(offered)) == expected


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("uk", ["ru"]),
        ("be", ["ru", "uk"]),
        ("ca", ["es", "fr"]),
        ("gl", ["es"]),
        ("af", ["nl"]),
        ("nn", ["da"]),
        ("sw", ["en", "fr", "ar"]),
        ("yue", ["zh"]),
        ("zh-TW", ["zh"]),
        ("zh-Hant", ["zh-Hans"]),
        ("de", []),
    ],
)
def test_closest_never_crosses_the_limit(wanted, offered):
    assert languages.closest(wanted, offered) is None


def test_the_limit_is_a_choice():
    assert languages.distance("uk", "ru") == 24
    assert languages.closest("uk", ["ru"], max_distance=23) is None
    assert languages.closest("uk", ["ru"], max_distance=24) == ("ru", 24)
    assert languages.closest("pt-BR", ["pt-PT"], max_distance=0) is None


def test_equal_distances_go_to_the_wanted_tag_then_the_shorter_then_the_alphabet():
    assert languages.distance("en-US", "en") == languages.distance("en", "en-US") == 0
    for wanted in ("en-US", "en"):
        assert languages.closest(wanted, ["en-US", "en"]) == (wanted, 0)
    assert languages.closest("en-US-x-mine", ["en-US", "en"]) == ("en", 0)
    offered = ["de-LI", "de-CH", "de-AT"]
    assert len({languages.distance("de", tag) for tag in offered}) == 1
    assert languages.closest("de", offered)[0] == "de-AT"


def test_closest_refuses_what_is_no_language():
    with pytest.raises(LanguageError):
        languages.closest("hotel", ["de"])
