"""Drawn segmentations of a word: their distribution, and what is drawn at the ends of its range."""

import itertools
import math
from collections import Counter
from random import Random

import pytest

from adapters_hub.errors import SettingsError
from adapters_hub.text.pieces import (
    BPESegmenter,
    UnigramSegmenter,
    WordPieceSegmenter,
    segmenter_of,
)

SCORES = {
    piece: (number, math.log(chance))
    for number, (piece, chance) in enumerate(
        {"a": 0.2, "b": 0.15, "c": 0.1, "ab": 0.2, "bc": 0.15, "abc": 0.05, "ca": 0.15}.items()
    )
}


def all_segmentations(word):
    for cuts in itertools.product((False, True), repeat=len(word) - 1):
        ends = [n + 1 for n, cut in enumerate(cuts) if cut] + [len(word)]
        pieces = [word[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        if all(piece in SCORES for piece in pieces):
            yield tuple(pieces)


@pytest.mark.parametrize("smoothing", [0.2, 1.0])
def test_unigram_samples_have_the_distribution_of_all_segmentations(smoothing):
    word, draws = "abcab", 20_000
    weights = {
        pieces: math.exp(smoothing * sum(SCORES[piece][1] for piece in pieces))
        for pieces in all_segmentations(word)
    }
    assert len(weights) > 5
    segmenter, random = UnigramSegmenter(SCORES, smoothing), Random(0)
    counts = Counter(
        tuple(piece.text for piece in segmenter.sample(word, random)) for _ in range(draws)
    )
    assert counts.keys() <= weights.keys()
    total = sum(weights.values())
    chi_square = sum(
        (counts[pieces] - draws * weight / total) ** 2 / (draws * weight / total)
        for pieces, weight in weights.items()
    )
    assert chi_square < len(weights) - 1 + 4 * math.sqrt(2 * (len(weights) - 1))


def test_unigram_pieces_have_ids_and_lengths():
    segmenter = UnigramSegmenter(SCORES)
    for seed in range(20):
        pieces = segmenter.sample("abca", Random(seed))
        assert "".join(piece.text for piece in pieces) == "abca"
        assert all((p.id, p.length) == (SCORES[p.text][0], len(p.text)) for p in pieces)
    assert segmenter.sample("abd", Random(0)) is None


def test_the_share_of_unigram_words_that_are_drawn():
    segmenter, random = UnigramSegmenter(SCORES), Random(1)
    drawn = sum(segmenter.draw("abc", 0.3, random) is not None for _ in range(5000))
    assert abs(drawn / 5000 - 0.3) < 0.03


VOCABULARY = {piece: n for n, piece in enumerate(["l", "o", "w", "e", "r", "lo", "low", "er"])}
MERGES = [("l", "o"), ("lo", "w"), ("e", "r")]


def texts(pieces):
    return [piece.text for piece in pieces]


def test_bpe_dropout_at_its_ends():
    segmenter = BPESegmenter(VOCABULARY, MERGES)
    assert segmenter.draw("lower", 0.0, Random(0)) is None  # it stays as it is
    assert texts(segmenter.draw("lower", 1.0, Random(0))) == list("lower")


def test_bpe_dropout_leaves_out_each_merge_as_often_as_it_says():
    """With one merge possible at each step, a word of it is whole with probability 1 - p."""
    segmenter, random = BPESegmenter(VOCABULARY, MERGES), Random(2)
    draws = [segmenter.draw("low", 0.25, random) for _ in range(20_000)]
    counts = Counter(pieces and tuple(texts(pieces)) for pieces in draws)
    assert abs(counts[None] / 20_000 - 0.75**2) < 0.015
    assert abs(counts["lo", "w"] / 20_000 - 0.75 * 0.25) < 0.015
    assert abs(counts["l", "o", "w"] / 20_000 - 0.25) < 0.015


def test_bpe_dropout_tries_again_after_a_merge_was_made():
    """Algorithm 1: what was left out at one step may be merged at the next."""
    segmenter, random = BPESegmenter(VOCABULARY, MERGES), Random(3)
    draws = [segmenter.draw("lower", 0.5, random) for _ in range(20_000)]
    merged = sum(pieces is None or "l" not in texts(pieces) for pieces in draws) / len(draws)
    assert abs(merged - (0.5 + 0.5 * 0.5 * 0.5)) < 0.015  # at once, or after "er" was merged


def test_bpe_with_marks_of_words():
    vocabulary = {piece: n for n, piece in enumerate(["a", "@b", "@b</w>", "ab</w>", "a</w>"])}
    segmenter = BPESegmenter(vocabulary, [("a", "@b</w>")], prefix="@", suffix="</w>")
    assert segmenter.draw("ab", 0.0, Random(0)) is None
    assert texts(segmenter.draw("ab", 1.0, Random(0))) == ["a", "@b</w>"]


def test_word_piece_at_its_ends():
    vocabulary = {piece: n for n, piece in enumerate(["un", "u", "##n", "##do", "##d", "##o"])}
    segmenter = WordPieceSegmenter(vocabulary)
    assert texts(segmenter.draw("undo", 0.0, Random(0))) == ["un", "##do"]
    assert texts(segmenter.draw("undo", 1.0, Random(0))) == ["u", "##n", "##d", "##o"]
    assert segmenter.draw("unda", 1.0, Random(0)) is None
    assert sum(p.length for p in segmenter.draw("undo", 0.5, Random(1))) == 4


def test_a_vocabulary_of_whole_words_is_refused():
    with pytest.raises(SettingsError, match="kind WordLevel, whose words have one"):
        segmenter_of({"type": "WordLevel"}, (), "a backbone")


def test_a_special_token_is_no_piece():
    segmenter = segmenter_of(
        {"type": "Unigram", "vocab": [["<s>", 0.0], ["<", -3.0], ["s", -3.0], [">", -3.0]]},
        {"<s>"},
        "a backbone",
    )
    assert texts(segmenter.sample("<s>", Random(0))) == ["<", "s", ">"]
