"""Scores of written texts against their references, and which language a text is in.

Knows texts only. chrF (W15-3049), chrF++ (W17-4770) and BLEU (P02-1040) are sacrebleu's (W18-6319),
the language identifier is py3langid's (langid.py, P12-3005); both are optional.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from adapters_hub.errors import SettingsError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from sacrebleu.metrics import BLEU, CHRF

Pairs = Sequence[tuple[str, str]]
_WITHOUT_SPACES = {"zh": "zh", **dict.fromkeys(("ja", "ko", "th", "lo", "km", "my", "bo"), "char")}
"""sacrebleu's tokenizers for languages that put no spaces between words, or mean no words by them.

Those that are just for Japanese and Korean need MeCab, a program beside Python.
"""


def has_sacrebleu() -> bool:
    """Whether sacrebleu is installed."""
    return find_spec("sacrebleu") is not None


def require_scores() -> None:
    """Raise `SettingsError` where what translations are measured with is not installed."""
    missing = [name for name in ("sacrebleu", "py3langid") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"translation is measured with {' and '.join(missing)}: "
            "pip install 'adapters-hub[translation]'"
        )


def chrf(pairs: Pairs) -> float:
    """Corpus chrF of (written, reference) pairs, 0 to 100."""
    return _score("chrf", None, pairs)


def chrf_plus_plus(pairs: Pairs) -> float:
    """Corpus chrF++, which counts words and pairs of words too, 0 to 100."""
    return _score("chrf++", None, pairs)


def bleu(pairs: Pairs, language: str | None = None) -> float:
    """Corpus BLEU, 0 to 100, with the tokenizer for a language (BCP-47 tag)."""
    return _score("bleu", language, pairs)


def signature(score: str, language: str | None = None) -> str:
    """The signature that sacrebleu gives ``chrf``, ``chrf++`` or ``bleu``, for papers to cite."""
    metric = _metric(score, language)
    metric.corpus_score(["a"], [["a"]])  # it knows the number of references from then on
    return str(metric.get_signature())


def _score(score: str, language: str | None, pairs: Pairs) -> float:
    written, references = zip(*pairs, strict=True)
    return float(_metric(score, language).corpus_score(list(written), [list(references)]).score)


def _metric(score: str, language: str | None) -> "BLEU | CHRF":
    from sacrebleu.metrics import BLEU, CHRF

    if score == "bleu":
        base = (language or "").partition("-")[0]
        return BLEU(tokenize=_WITHOUT_SPACES.get(base, "13a"))
    return CHRF(word_order=2 if score == "chrf++" else 0)


def wrong_language(texts: Sequence[str], language: str, languages: Iterable[str]) -> float | None:
    """The share of texts that are not in a language, an empty one among them.

    Each is taken for the likeliest of ``languages``; None where the identifier does not know the
    language, or knows no other.
    """
    wanted = language.partition("-")[0]
    known = {tag.partition("-")[0] for tag in languages} | {wanted}
    known &= _known()
    if wanted not in known or len(known) < 2:
        return None
    identifier = _identifier(frozenset(known))
    wrong = sum(not text.strip() or identifier.classify(text)[0] != wanted for text in texts)
    return wrong / len(texts)


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(_new_identifier().labels)


@lru_cache(maxsize=32)
def _identifier(languages: frozenset[str]) -> "LanguageIdentifier":
    identifier = _new_identifier()
    identifier.set_languages(sorted(languages))
    return identifier


def _new_identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
