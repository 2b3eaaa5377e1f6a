"""A 5-gram model with interpolated, modified Kneser-Ney smoothing, over token ids.

The yardstick for the starter: the same tokens, the same training text (Chen and Goodman 1998, "An
Empirical Study of Smoothing Techniques for Language Modeling", section 3). Everything is sorted
arrays; an n-gram's id is its place among all n-grams of its length.
"""

from __future__ import annotations

import numpy as np


class KneserNey:
    """Probabilities of a token given up to ``order - 1`` tokens before it.

    ``tokens`` (n,): the training text as one array of ids below ``vocabulary``.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int, order: int = 5) -> None:
        self.vocabulary = vocabulary
        text = tokens.astype(np.int64)
        keys, counts, suffixes = [], [], []
        ids = np.zeros(len(text) + 1, dtype=np.int64)  # of the n-gram that starts at each place
        for n in range(1, order + 1):
            size = len(text) - n + 1
            key, first, inverse, count = np.unique(
                ids[:size] * vocabulary + text[n - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            keys.append(key)
            counts.append(count)
            suffixes.append(ids[1 : size + 1][first])
            ids = inverse
        # Below the top an n-gram counts once for each different token it was seen after.
        for n in range(order - 1):
            counts[n] = np.bincount(suffixes[n + 1], minlength=len(keys[n]))
        sizes = [1, *map(len, keys)]
        self.levels = [
            _Level(keys[n], counts[n], vocabulary, contexts=sizes[n]) for n in range(order)
        ]

    def bits(self, row: np.ndarray, prefix: int = 0) -> float:
        """The code length of ``row[prefix:]`` in bits, each token given those before it."""
        row = np.asarray(row, dtype=np.int64)
        chance = np.full(len(row), 1 / self.vocabulary)
        ids = np.zeros(len(row) + 1, dtype=np.int64)
        for n, level in enumerate(self.levels, start=1):
            size = len(row) - n + 1
            if size < 1:
                break
            context = ids[:size]
            ids, chance[n - 1 :] = level.refine(context, row[n - 1 :], chance[n - 1 :])
        return float(-np.log2(chance[prefix:]).sum())


class _Level:
    """The n-grams of one length: their counts, and what their contexts leave to shorter ones."""

    def __init__(
        self, keys: np.ndarray, counts: np.ndarray, vocabulary: int, contexts: int
    ) -> None:
        self.keys, self.counts, self.vocabulary = keys, counts, vocabulary
        ones, twos, threes, fours = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
        y = ones / (ones + 2 * twos)
        self.discounts = np.clip(
            [0, 1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes],
            0,
            [0, 1, 2, 3],
        )
        owner = keys // vocabulary
        taken = self.discounts[np.minimum(counts, 3)]
        self.totals = np.bincount(owner, weights=counts, minlength=contexts)
        self.left = np.bincount(owner, weights=taken, minlength=contexts)

    def refine(
        self, context: np.ndarray, token: np.ndarray, shorter: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams' ids (-1: never seen) and chances, given those by shorter contexts."""
        key = context * self.vocabulary + token
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        seen = (self.keys[place] == key) & (context >= 0)
        count = np.where(seen, self.counts[place], 0)
        total = np.where(context >= 0, self.totals[context], 0)
        discounted = np.maximum(count - self.discounts[np.minimum(count, 3)], 0)
        mixed = (discounted + self.left[context] * shorter) / np.maximum(total, 1)
        return np.where(seen, place, -1), np.where(total > 0, mixed, shorter)
