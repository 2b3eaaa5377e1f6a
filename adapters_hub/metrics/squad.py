"""Exact match and F1 of answers as SQuAD counts them (arXiv:1606.05250, 1806.03822) and MLQA, by
language (arXiv:1910.07475).

Knows texts only. English, and rows that name no language, are counted by SQuAD's rules; every
other language by MLQA's: its articles, all of Unicode's punctuation, Chinese by character.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",
}
"""What MLQA takes for articles. Its other languages, and those it does not have, have none."""
_BY_CHARACTER = {
    "zh": re.compile(r"([\u4e00-\u9fa5])"),
    "ja": re.compile(r"([\u3040-\u30ff\u4e00-\u9fa5])"),  # not in MLQA; the same idea
}


@lru_cache(maxsize=65536)
def words(text: str, language: str | None = None) -> tuple[str, ...]:
    """The words of an answer that count: in lower case, without punctuation and articles."""
    language = (language or "en").partition("-")[0]
    text = text.lower()
    if language == "en":
        text = "".join(c for c in text if c not in string.punctuation)
    else:
        text = "".join(c for c in text if not _is_punctuation(c))
    if language in _ARTICLES:
        text = re.sub(_ARTICLES[language], " ", text)
    if language in _BY_CHARACTER:
        text = _BY_CHARACTER[language].sub(r" \1 ", text)
    return tuple(text.split())


def exact_match(answer: str, gold: Sequence[str], language: str | None = None) -> float:
    """1.0 if the answer has just the words of one of the gold answers; no gold: none is right."""
    given = words(answer, language)
    return float(any(given == words(text, language) for text in _gold(gold, language)))


def f1(answer: str, gold: Sequence[str], language: str | None = None) -> float:
    """The best F1 over the words of each gold answer; no words against none is 1.0."""
    return max(
        _f1(words(answer, language), words(text, language)) for text in _gold(gold, language)
    )


def _gold(gold: Sequence[str], language: str | None) -> list[str]:
    """Gold answers with a word in them; without any, to give none is what is right."""
    return [text for text in gold if words(text, language)] or [""]


def _f1(given: tuple[str, ...], gold: tuple[str, ...]) -> float:
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given) & Counter(gold)).values())
    return 2 * common / (len(given) + len(gold))


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
