"""Exact match and F1 against what SQuAD's and MLQA's scripts gave, and cases made by hand."""

import json
from pathlib import Path

import pytest

from adapters_hub.metrics.squad import exact_match, f1, words

SCORES = Path(__file__).parent / "squad_scores.json"
CASES = json.loads(SCORES.read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: ascii(f"{case['language']}-{case['answer']}-{case['gold']}")
)
def test_scores_are_those_of_the_official_scripts(case):
    asked = (case["answer"], case["gold"], case["language"])
    assert exact_match(*asked) == case["exact"]
    assert f1(*asked) == pytest.approx(case["f1"])


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "overlap"),
    [
        ("the Night-Porter!", ["nightporter"], 1, 1),  # case, article, punctuation
        ("a  an the", ["..."], 1, 1),  # gold without a word is no answer, and this has none either
        ("theatre", ["atre"], 0, 0),  # an article is a whole word
        ("two cheese sandwiches", ["cheese sandwiches"], 0, 0.8),
        ("two cheese sandwiches", ["bread", "two sandwiches"], 0, 0.8),  # the best of several
        ("two two two", ["two two one"], 0, 2 / 3),  # words count as often as they come
        ("bread", ["cheese"], 0, 0),
        ("", ["cheese"], 0, 0),
        ("", [], 1, 1),
        ("cheese", [], 0, 0),
        ("“quoted”", ["quoted"], 0, 0),  # SQuAD knows ASCII punctuation only
    ],
)
def test_english_is_counted_as_squad_does(answer, gold, exact, overlap):
    for language in (None, "en", "en-GB"):
        assert exact_match(answer, gold, language) == exact
        assert f1(answer, gold, language) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("language", "answer", "gold", "exact", "overlap"),
    [
        ("de", "der Nachtportier", "Nachtportier", 1, 1),
        ("de", "the Nachtportier", "Nachtportier", 0, 2 / 3),  # no article of German
        ("es", "«el portero»", "portero", 1, 1),
        ("vi", "những căn phòng", "căn phòng", 1, 1),
        ("ar", "الفندق", "فندق", 1, 1),
        ("ru", "«ночной портье»", "ночной портье", 1, 1),
        ("zh", "两个奶酪三明治", "奶酪三明治", 0, 2 * 5 / 12),  # by character
        ("zh", "《奶酪》。", "奶酪", 1, 1),
        ("zh", "在12楼", "12", 0, 0.5),
        ("zh-TW", "奶酪", "奶 酪", 1, 1),
        ("ja", "チーズ", "チー", 0, 0.8),
        ("fr", "la clé", "clé", 0, 2 / 3),  # MLQA has no articles for French
    ],
)
def test_other_languages_are_counted_as_mlqa_does(language, answer, gold, exact, overlap):
    assert exact_match(answer, [gold], language) == exact
    assert f1(answer, [gold], language) == pytest.approx(overlap)


def test_words_in_mixed_scripts():
    assert words("住在 Hotel Miramar 三楼", "zh") == (
        "住", "在", "hotel", "miramar", "三", "楼",
    )  # fmt: skip
