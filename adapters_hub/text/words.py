"""Texts cut into words, for tags of words where nobody says what the words are.

Knows characters of Unicode; does not know tokenizers, languages or tasks.
"""

import unicodedata
from functools import lru_cache

_CHARACTER_IS_WORD = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"))  # kana, Chinese characters

_WITHOUT_SPACES = (
    ("\u0e00", "\u0e7f"),  # Thai
    ("\u0e80", "\u0eff"),  # Lao
    ("\u1000", "\u109f"),  # Burmese and its relatives
    ("\ua9e0", "\ua9ff"),
    ("\uaa60", "\uaa7f"),
    ("\u1780", "\u17ff"),  # Khmer
    ("\u1950", "\u1aaf"),  # Tai Le, New Tai Lue, Tai Tham
    ("\uaa80", "\uaadf"),  # Tai Viet
    ("\ua980", "\ua9df"),  # Javanese
    ("\u1b00", "\u1b7f"),  # Balinese
)
"""Scripts that write words without spaces between them. To find their words takes a dictionary of
each language. Here they are cut at every place where a word can begin, so that a span can."""

_BEFORE_CONSONANT = frozenset("เแโใไເແໂໃໄ")  # vowels of Thai and Lao written before their consonant
_BEHIND_CONSONANT = frozenset("ะาำๅະາຳ")  # letters by category, but never a syllable's first
_STACKS_NEXT = frozenset("\u1039\u17d2\u1a60\ua9c0\u1b44")  # puts the next consonant below this one
_JOINERS = frozenset("\u200c\u200d")


def split_words(text: str) -> list[str]:
    """The words of a text, in order; what is between them is space.

    A word is a run of letters and digits, a sign, or a Chinese or Japanese character. Thai, Lao,
    Khmer, Burmese and other scripts without spaces are cut into their clusters: a consonant with
    the vowels, tones and consonants written around it. Combining marks and joiners belong to what
    they stand behind.
    """
    words: list[str] = []
    last_kind = "space"
    for character in text:
        kind = _kind(character)
        if kind == "mark" and last_kind != "space":
            words[-1] += character  # and the kind stays
            continue
        if kind != "space":
            if words and _goes_on(words[-1], last_kind, character, kind):
                words[-1] += character
            else:
                words.append(character)
        last_kind = kind
    return words


@lru_cache(2**16)
def _kind(character: str) -> str:
    """``space``, ``mark``, ``letter``, ``cluster`` (scripts without spaces), ``alone``, ``sign``.

    A digit counts as a letter in every script.
    """
    if character.isspace():
        return "space"
    if unicodedata.category(character)[0] == "M" or character in _JOINERS:
        return "mark"
    if _within(character, _CHARACTER_IS_WORD):
        return "alone"
    if character.isalpha() and _within(character, _WITHOUT_SPACES):
        return "cluster"
    return "letter" if character.isalnum() or character == "_" else "sign"


def _goes_on(word: str, last_kind: str, character: str, kind: str) -> bool:
    """Whether a character of a kind belongs to the word before it, whose last kind is given."""
    if kind == "letter":
        return last_kind in ("letter", "mark")
    if kind == "cluster":
        stacked = word[-1] in _BEFORE_CONSONANT or word[-1] in _STACKS_NEXT
        return last_kind == "cluster" and (stacked or character in _BEHIND_CONSONANT)
    return False


def _within(character: str, ranges: tuple[tuple[str, str], ...]) -> bool:
    return any(first <= character <= last for first, last in ranges)
