"""Words of translations that mean each other: learnt from pairs, against a computation in loops."""

import math

import numpy as np
import pytest

from adapters_hub.text.alignment import WordAligner

LEXICON = {
    "hus": "house",
    "stor": "big",
    "lille": "small",
    "rød": "red",
    "bil": "car",
    "by": "town",
}
TEXTS = [
    "stor hus", "lille hus", "rød bil", "stor bil", "lille by", "rød hus", "stor by", "by hus bil",
]  # fmt: skip
PAIRS = [(t.split(), [LEXICON[word] for word in t.split()]) for t in TEXTS]


def test_words_that_occur_together_are_aligned():
    aligner = WordAligner.learn(PAIRS)
    words, others = ["lille", "bil"], ["car", "small"]  # in another order than ever
    weights = aligner.weights(words, others)
    assert weights.shape == (2, 2)
    assert weights[0, 1] > 0.5 > 0.1 > weights[0, 0]
    assert weights[1, 0] > 0.5 > 0.1 > weights[1, 1]
    assert ((weights >= 0) & (weights <= 1)).all()


def test_words_are_the_same_in_capitals():
    aligner = WordAligner.learn(PAIRS)
    np.testing.assert_array_equal(
        aligner.weights(["Stor", "HUS"], ["Big", "House"]),
        aligner.weights(["stor", "hus"], ["big", "house"]),
    )


def test_what_was_never_seen_means_nothing():
    aligner = WordAligner.learn(PAIRS)
    weights = aligner.weights(["fjord", "hus"], ["house", "fjord"])
    assert (weights[0] == 0).all()
    assert (weights[:, 1] == 0).all()
    assert weights[1, 0] > 0
    assert (WordAligner.learn([]).weights(["hus"], ["house"]) == 0).all()


@pytest.mark.parametrize(("words", "others"), [([], ["house"]), (["hus"], []), ([], [])])
def test_empty_texts_have_empty_weights(words, others):
    assert WordAligner.learn([*PAIRS, ([], [])]).weights(words, others).shape == (
        len(words),
        len(others),
    )


def prior(words, others):
    rows = []
    for j in range(words):
        near = [math.exp(-4 * abs(j / words - i / others)) for i in range(others)]
        rows.append([0.08, *(0.92 * value / sum(near) for value in near)])
    return rows


def table(pairs):
    """Expectation and maximisation, a word at a time."""
    vocabulary = {word for words, _ in pairs for word in words}
    t = {}
    for words, others in pairs:
        for other in (None, *others):
            t |= {(other, word): 1 / len(vocabulary) for word in words}
    for _ in range(8):
        counts = dict.fromkeys(t, 0.0)
        for words, others in pairs:
            for word, before in zip(words, prior(len(words), len(others)), strict=True):
                joint = [t[o, word] * p for o, p in zip((None, *others), before, strict=True)]
                for other, value in zip((None, *others), joint, strict=True):
                    counts[other, word] += value / sum(joint)
        total = {}
        for (other, _), count in counts.items():
            total[other] = total.get(other, 0.0) + count
        t = {key: count / (total[key[0]] + 0.3) for key, count in counts.items()}
    return t


def test_the_weights_are_those_of_plain_loops():
    forth, back = table(PAIRS), table([(others, words) for words, others in PAIRS])

    def posterior(t, words, others):
        rows = []
        for word, before in zip(words, prior(len(words), len(others)), strict=True):
            joint = [t.get((o, word), 0) * p for o, p in zip((None, *others), before, strict=True)]
            rows.append([value / sum(joint) for value in joint[1:]])
        return np.array(rows)

    aligner = WordAligner.learn(PAIRS)
    for words, others in PAIRS:
        want = np.sqrt(posterior(forth, words, others) * posterior(back, others, words).T)
        np.testing.assert_allclose(aligner.weights(words, others), want, rtol=1e-9)
