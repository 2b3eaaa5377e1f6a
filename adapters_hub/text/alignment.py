"""Which words of a text and of its translation mean each other, learnt from the pairs alone.

IBM model 1 (Brown et al., 1993, §4) with fast_align's prior for words at like places (Dyer et al.,
2013, eq. 1-2), in both directions. Knows words as texts; does not know tokenizers or languages.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Pair = tuple[Sequence[str], Sequence[str]]
"""The words of a text, and those of its translation."""

_ROUNDS = 8  # of expectation-maximisation
_NOTHING = 0.08  # the prior that a word has no counterpart
_DIAGONAL = 4.0  # how much words at like places are favoured
_UNSEEN = 0.3  # occurrences that each word is taken to have had with none of its counterparts
_MOST_CELLS = 20_000_000  # pairs of words that are learnt from: 1.5 GB


@dataclass(frozen=True)
class WordAligner:
    """How likely words are translated by each other."""

    forth: "_Table"
    back: "_Table"

    @classmethod
    def learn(cls, pairs: Iterable[Pair]) -> "WordAligner":
        """From pairs, of very many the first."""
        kept: list[Pair] = []
        cells = 0
        for words, others in pairs:
            cells += (len(words) + 1) * (len(others) + 1)
            if cells > _MOST_CELLS:
                break
            kept.append((_alike(words), _alike(others)))
        return cls(_learn(kept), _learn([(others, words) for words, others in kept]))

    def weights(self, words: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """How surely each word means each other one (words, others), from 0 to 1.

        The geometric mean of both directions, so a word without a counterpart has small weights.
        """
        if not words or not others:
            return np.zeros((len(words), len(others)))
        words, others = _alike(words), _alike(others)
        forth = self.forth.posterior(words, others)
        return np.sqrt(forth * self.back.posterior(others, words).T)


@dataclass(frozen=True)
class _Table:
    """t(word | other): other words' numbers begin at 1, 0 is nothing."""

    words: dict[str, int]
    others: dict[str, int]
    keys: np.ndarray  # other · words + word, sorted
    values: np.ndarray

    def posterior(self, words: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """How likely each word comes from each other one (words, others); what is new from none."""
        if not len(self.keys):  # learnt from nothing
            return np.zeros((len(words), len(others)))
        a = np.array([self.words.get(word, -1) for word in words])
        b = np.array([0, *(self.others.get(other, -1) for other in others)])
        keys = b[None, :] * len(self.words) + a[:, None]
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        there = (self.keys[places] == keys) & (a[:, None] >= 0) & (b[None, :] >= 0)
        joint = np.where(there, self.values[places], 0.0) * _prior(len(words), len(others))
        return (joint / np.maximum(joint.sum(1, keepdims=True), 1e-300))[:, 1:]


def _learn(pairs: Sequence[Pair]) -> _Table:
    words: dict[str, int] = {}
    others: dict[str, int] = {}
    keys, priors, groups = [], [], []
    for left, right in pairs:
        a = np.array([words.setdefault(word, len(words)) for word in left], dtype=np.int64)
        b = np.array([0, *(others.setdefault(o, len(others) + 1) for o in right)], dtype=np.int64)
        keys.append(np.stack(np.broadcast_arrays(b[None, :], a[:, None]), -1).reshape(-1, 2))
        priors.append(_prior(len(left), len(right)).reshape(-1))
        groups.append(np.full(len(left), len(b)))
    both = np.concatenate([np.zeros((0, 2), dtype=np.int64), *keys])
    unique, cell = np.unique(both[:, 0] * len(words) + both[:, 1], return_inverse=True)
    prior = np.concatenate([np.zeros(0), *priors])
    sizes = np.concatenate([np.zeros(0, dtype=np.int64), *groups])
    word = np.repeat(np.arange(len(sizes)), sizes)  # of each cell, among all words of all texts
    source = unique // max(1, len(words))
    values = np.full(len(unique), 1.0 / max(1, len(words)))
    for _ in range(_ROUNDS):
        joint = values[cell] * prior
        joint /= np.bincount(word, joint)[word]
        counts = np.bincount(cell, joint, minlength=len(unique))
        values = counts / (np.bincount(source, counts)[source] + _UNSEEN)
    return _Table(words, others, unique, values)


def _prior(words: int, others: int) -> np.ndarray:
    """How likely each word comes from nothing and from each place (words, 1 + others)."""
    apart = np.arange(words)[:, None] / max(1, words) - np.arange(others)[None, :] / max(1, others)
    near = np.exp(-_DIAGONAL * np.abs(apart))
    if others:
        near *= (1 - _NOTHING) / near.sum(1, keepdims=True)
    return np.concatenate((np.full((words, 1), _NOTHING), near), 1)


def _alike(words: Sequence[str]) -> list[str]:
    return [word.casefold() for word in words]
