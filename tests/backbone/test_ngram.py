"""The 5-gram yardstick of the starter's recipe: a distribution, and Chen and Goodman's formulas."""

import sys

import numpy as np
import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "starter"))
from ngram import KneserNey

TEXT = np.random.default_rng(0).integers(0, 7, 400)


@pytest.mark.parametrize("context", [[], [1], [1, 2], [6, 6, 6], [3, 1, 4, 1, 5, 2]])
def test_chances_of_all_tokens_add_up_to_one(context):
    model = KneserNey(TEXT, 8, order=4)  # token 7 never occurs
    bits = [model.bits(np.array([*context, token]), len(context)) for token in range(8)]
    assert sum(2**-b for b in bits) == pytest.approx(1.0)
    assert max(bits) < 40


def test_a_bigram_by_hand():
    text, vocabulary = TEXT[:60], 7
    pairs = {}
    for pair in zip(text[:-1].tolist(), text[1:].tolist(), strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    after = [sum(1 for _, token in pairs if token == t) for t in range(vocabulary)]

    def discounts(counts):
        n = [max(1, sum(1 for c in counts if c == k)) for k in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1])
        raw = [k + 1 - (k + 2) * y * n[k + 1] / n[k] for k in range(3)]
        return [0, *(min(max(d, 0), k + 1) for k, d in enumerate(raw))]

    d1, d2 = discounts(after), discounts(pairs.values())
    total = sum(after)
    left = sum(d1[min(c, 3)] for c in after) / total
    one = [max(c - d1[min(c, 3)], 0) / total + left / vocabulary for c in after]
    context = int(text[0])
    own = {token: c for (first, token), c in pairs.items() if first == context}
    rest = sum(d2[min(c, 3)] for c in own.values()) / sum(own.values())
    for token in range(vocabulary):
        seen = own.get(token, 0)
        two = max(seen - d2[min(seen, 3)], 0) / sum(own.values()) + rest * one[token]
        bits = KneserNey(text, vocabulary, order=2).bits(np.array([context, token]), 1)
        assert bits == pytest.approx(-np.log2(two))


def test_text_it_has_read_is_cheap_and_unknown_text_is_not_infinite():
    model = KneserNey(np.tile(np.arange(50), 20), 60)
    assert model.bits(np.arange(50), 5) / 45 < 0.2
    assert np.isfinite(model.bits(np.array([59, 58, 57, 59])))
