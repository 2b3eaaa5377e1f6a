"""Filters: which text blocks are good sentences of the language they claim to be in."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np

PRETRAIN = [
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs",
    "ru", "zh", "ja", "ko", "tr", "vi", "fi", "hu", "el",
]  # fmt: skip
KEPT_OUT = ["da", "uk", "id", "sv"]
LANGUAGES = [*PRETRAIN, *KEPT_OUT]
UNSPACED = {"zh", "ja"}
MAX_CHARS = 400

_CYRILLIC, _GREEK, _HANGUL = "\u0400-\u04ff", "\u0370-\u03ff\u1f00-\u1fff", "\uac00-\ud7af"
_HAN, _KANA = "\u3400-\u4dbf\u4e00-\u9fff", "\u3040-\u30ff"
_SCRIPT = {
    "ru": re.compile(f"[{_CYRILLIC}]"),
    "uk": re.compile(f"[{_CYRILLIC}]"),
    "el": re.compile(f"[{_GREEK}]"),
    "ko": re.compile(f"[{_HANGUL}]"),
    "zh": re.compile(f"[{_HAN}]"),
    "ja": re.compile(f"[{_HAN}{_KANA}]"),
}
_FOREIGN = re.compile(f"[{_CYRILLIC}{_GREEK}{_HANGUL}{_HAN}{_KANA}\u0590-\u06ff\u0900-\u0fff]")
_KANA_RE = re.compile(f"[{_KANA}]")
_CYRILLIC_ONLY = {"ru": re.compile("[іїєґІЇЄҐ]"), "uk": re.compile("[ыэъёЫЭЪЁ]")}
_PLACEHOLDER = re.compile(r"%[-\d$.#(]*[a-zA-Z1-9@(]|\{[^}]*\}|\$[({A-Za-z]|\\[a-z]|[<>|=]{2}")
_JUNK = re.compile(r"https?://\S+\s*$|^[\W\d]*$|@\w+\.\w+|^\S+\(\d\w*\)|^[-/$#]")
_SENTENCE = re.compile(r"(?<=[.!?…])\s+(?=[\W\d]*[^\W\d_])|(?<=[。！？])")


def accept(text: str, language: str, *, message: bool = False) -> str | None:
    """Return the normalised text where it is worth training on, else None."""
    text = unicodedata.normalize("NFC", text).strip(" •*–—-\t")
    least = {"zh": 9, "ja": 11, "ko": 13}.get(language, 25)
    if len(text) < least or _JUNK.search(text) or "\ufffd" in text:
        return None
    if _PLACEHOLDER.search(text) and (message or len(_PLACEHOLDER.findall(text)) > 2):
        return None
    if language not in UNSPACED and text.count(" ") < 2:
        return None
    letters = sum(map(str.isalpha, text))
    if letters + text.count(" ") < 0.8 * len(text):
        return None
    if sum(map(str.isupper, text)) > 0.4 * letters:
        return None
    script = _SCRIPT.get(language)
    if script is None:
        return text if len(_FOREIGN.findall(text)) <= 0.05 * letters else None
    if len(script.findall(text)) < (0.35 if language in ("zh", "ja", "ko") else 0.6) * letters:
        return None
    kana = bool(_KANA_RE.search(text))
    if (language == "zh" and kana) or (language == "ja" and not kana):
        return None
    other = _CYRILLIC_ONLY.get(language)
    return None if other and other.search(text) else text


def segments(text: str, language: str) -> Iterator[str]:
    """Split a long block at sentence ends into pieces of at most MAX_CHARS characters."""
    if len(text) <= MAX_CHARS:
        yield text
        return
    joiner = "" if language in UNSPACED else " "
    piece = ""
    for sentence in _SENTENCE.split(text):
        if piece and len(piece) + len(sentence) >= MAX_CHARS:
            yield piece
            piece = ""
        piece = f"{piece}{joiner}{sentence}" if piece else sentence
    if len(piece) <= MAX_CHARS:
        yield piece


class Deduplicator:
    """Remember texts of one language; near duplicates share their three smallest shingle hashes."""

    def __init__(self, language: str) -> None:
        self.unspaced = language in UNSPACED
        self.seen: set[int] = set()

    def is_new(self, text: str) -> bool:
        """Tell whether neither the text nor a near copy of it came before, and remember it."""
        plain = re.sub(r"[\W\d_]+", " ", text.casefold()).strip()
        if self.unspaced:
            grams = {plain[i : i + 6] for i in range(max(1, len(plain) - 5))}
        else:
            words = plain.split()
            grams = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
        sketch = sorted(zlib.crc32(gram.encode()) for gram in grams)[:3]
        keys = {hash(plain), hash(tuple(sketch))}
        if keys & self.seen:
            return False
        self.seen |= keys
        return True


class LanguageCheck:
    """Naive Bayes over hashed byte 4-grams: finds lines filed under the wrong language.

    It is trained on the labelled text itself; a few percent of wrong labels do not move the
    counts of the right language much, while whole untranslated pages are found reliably.
    """

    BUCKETS = 1 << 17

    def __init__(self, samples: dict[str, list[str]]) -> None:
        self.languages = sorted(samples)
        table = np.zeros((self.BUCKETS, len(self.languages)), dtype=np.float64)
        for column, language in enumerate(self.languages):
            ids, _ = self._ids(samples[language])
            table[:, column] = np.bincount(ids, minlength=self.BUCKETS)
        table += 0.1
        self.table = np.log(table / table.sum(axis=0)).astype(np.float32)

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        raw = [f"  {text.lower()} ".encode() for text in texts]
        data = np.frombuffer(b"".join(raw) + b"   ", dtype=np.uint8).astype(np.uint32)
        code = data[:-3] | data[1:-2] << 8 | data[2:-1] << 16 | data[3:] << 24
        lengths = np.array([len(item) for item in raw])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return ((code * np.uint32(2654435761)) >> np.uint32(15)).astype(np.int64), starts

    def wrong(self, texts: list[str], language: str, margin: float = 0.12) -> np.ndarray:
        """Return a mask of the texts that another language explains clearly better."""
        column = self.languages.index(language)
        mask = []
        for begin in range(0, len(texts), 5000):
            ids, starts = self._ids(texts[begin : begin + 5000])
            scores = np.add.reduceat(self.table[ids], starts, axis=0)
            lengths = np.diff(np.append(starts, len(ids)))
            mask.append((scores.max(axis=1) - scores[:, column]) / lengths > margin)
        return np.concatenate(mask) if mask else np.zeros(0, dtype=bool)
