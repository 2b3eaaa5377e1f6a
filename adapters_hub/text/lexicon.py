"""What words are translated by, learnt from pairs of texts alone.

Words are aligned by `WordAligner`; a word's translation is the word that it means most, with what
comes from it too and is joined to that without a space: in scripts without spaces, characters.
Knows texts; does not know files or tokenizers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from adapters_hub.data.augmentation.method import Translated
from adapters_hub.text.alignment import WordAligner
from adapters_hub.text.words import split_words

_SURE = 0.4  # the least weight of a link
_SEEN = 2  # the least number of links of a word to a translation
_SHARE = 0.2  # the least share of a word's links that a translation has
_MOST = 3  # translations of a word
_LONGEST = 6  # characters, or words that are joined otherwise

Words = dict[str, list[Translated]]


def learn_lexicon(
    pairs: Sequence[tuple[str, str]], languages: tuple[str, str]
) -> tuple[Words, Words]:
    """The translations of words, casefolded, of each side of pairs of texts into the other.

    ``languages`` are those of the two sides. Left out are signs, and words that stay as they are.
    """
    cut = [(split_words(text), split_words(other)) for text, other in pairs]
    aligner = WordAligner.learn(cut)
    forth: defaultdict[str, Counter[str]] = defaultdict(Counter)
    back: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (text, other), (words, others) in zip(pairs, cut, strict=True):
        weights = aligner.weights(words, others)
        plain, plain_others = ([word.casefold() for word in side] for side in (words, others))
        origins = aligner.back.posterior(plain_others, plain)
        _count(forth, words, others, other, weights, origins)
        origins = aligner.forth.posterior(plain, plain_others)
        _count(back, others, words, text, weights.T, origins)
    return _kept(forth, languages[1]), _kept(back, languages[0])


def _count(
    links: defaultdict[str, Counter[str]],
    words: Sequence[str],
    others: Sequence[str],
    text: str,
    weights: np.ndarray,
    comes_from: np.ndarray,
) -> None:
    """Add what each word of a text is translated by in the other ``text``, whose words are
    ``others``.

    ``weights`` (words, others) say how surely they mean each other, ``comes_from`` (others, words)
    from which word each other one comes.
    """
    if not words or not others:
        return
    spans, end = [], 0
    for other in others:
        start = text.index(other, end)
        end = start + len(other)
        spans.append((start, end))
    best_of = np.where(comes_from.max(1) >= _SURE, comes_from.argmax(1), -1).tolist()
    for number, best in enumerate(weights.argmax(1).tolist()):
        linked = [origin == number for origin in best_of]
        if not linked[best] or weights[number, best] < _SURE or not _is_word(words[number]):
            continue
        first = last = best
        while first > 0 and linked[first - 1] and spans[first - 1][1] == spans[first][0]:
            first -= 1
        while last < len(others) - 1 and linked[last + 1] and spans[last][1] == spans[last + 1][0]:
            last += 1
        phrase = text[spans[first][0] : spans[last][1]]
        if last - first < _LONGEST and _is_word(others[first]) and _is_word(others[last]):
            links[words[number].casefold()][phrase] += 1


def _kept(links: defaultdict[str, Counter[str]], language: str) -> Words:
    lexicon: Words = {}
    for word, counts in links.items():
        total = counts.total()
        alike: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for phrase, count in counts.items():
            alike[phrase.casefold()][phrase] = count
        best = sorted(alike.values(), key=lambda forms: -forms.total())[:_MOST]
        kept = [
            Translated(max(forms, key=lambda form: forms[form]), language, float(forms.total()))
            for forms in best
            if forms.total() >= _SEEN and forms.total() >= _SHARE * total
        ]
        kept = [translated for translated in kept if translated.text.casefold() != word]
        if kept:
            lexicon[word] = kept
    return lexicon


def _is_word(text: str) -> bool:
    """Whether it has a letter; a digit is the same in most languages."""
    return any(letter.isalpha() for letter in text)
