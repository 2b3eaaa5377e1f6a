"""Drawn segmentations: the pieces of a word, which a tokenizer would always cut in one way.

A word is a string in the alphabet of the tokenizer's model: bytes as characters, or with the mark
of a space before it. Knows the models of `tokenizers` by their JSON; does not know texts.
"""

import heapq
import math
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate, chain, pairwise
from random import Random
from typing import Any, ClassVar, NamedTuple

from adapters_hub.errors import SettingsError

_SMOOTHING = 0.2  # Kudo's α, as MVR (arXiv:2103.08490) has it for XLM-R
_MOST_KEPT = 100_000  # words whose lattices are kept


class Piece(NamedTuple):
    """A piece of a word: its name in the vocabulary, its id, and how many characters it has."""

    text: str
    id: int
    length: int


class Segmenter(ABC):
    """Draws the pieces of words for one kind of vocabulary; ``prefix`` marks those that go on."""

    kind: ClassVar[str]
    prefix: str = ""

    @abstractmethod
    def draw(self, word: str, amount: float, random: Random) -> list[Piece] | None:
        """The pieces of a word, in order; None where it is to stay as it is."""


class UnigramSegmenter(Segmenter):
    """Subword regularisation (arXiv:1804.10959, §3.2) for a unigram language model.

    A share ``amount`` of the words is drawn, each from all its segmentations x with
    P(x) ∝ Π p(piece)^0.2: forward sums over the lattice, then backward sampling.
    """

    kind = "Unigram"

    def __init__(
        self, scores: Mapping[str, tuple[int, float]], smoothing: float = _SMOOTHING
    ) -> None:
        """``scores``: a piece → its id and log probability."""
        self._scores = scores
        self._smoothing = smoothing
        self._longest = max(map(len, scores), default=0)
        self._lattices: dict[str, list[tuple[list[int], list[float]]] | None] = {}

    def draw(self, word: str, amount: float, random: Random) -> list[Piece] | None:
        """A share ``amount`` of the words is drawn; see the class."""
        return None if random.random() >= amount else self.sample(word, random)

    def sample(self, word: str, random: Random) -> list[Piece] | None:
        """A segmentation of a word; None where the vocabulary has none."""
        if word not in self._lattices:
            if len(self._lattices) >= _MOST_KEPT:
                self._lattices.clear()
            self._lattices[word] = self._lattice(word)
        lattice = self._lattices[word]
        if lattice is None:
            return None
        pieces, end = [], len(word)
        while end:
            starts, sums = lattice[end]
            chosen = bisect(sums, random.random() * sums[-1], hi=len(sums) - 1)
            text = word[starts[chosen] : end]
            pieces.append(Piece(text, self._scores[text][0], len(text)))
            end = starts[chosen]
        return pieces[::-1]

    def _lattice(self, word: str) -> list[tuple[list[int], list[float]]] | None:
        """Of each end: where pieces that end there start, and cumulated how likely each is."""
        forward = [0.0] + [-math.inf] * len(word)  # log of the sum over all ways to get there
        lattice: list[tuple[list[int], list[float]]] = [([], [])]
        for end in range(1, len(word) + 1):
            starts, logs = [], []
            for start in range(max(0, end - self._longest), end):
                known = self._scores.get(word[start:end])
                if known is not None and forward[start] > -math.inf:
                    starts.append(start)
                    logs.append(forward[start] + self._smoothing * known[1])
            most = max(logs, default=0.0)
            shares = [math.exp(log - most) for log in logs]
            if starts:
                forward[end] = most + math.log(sum(shares))
            lattice.append((starts, [*accumulate(shares)]))
        return None if forward[-1] == -math.inf else lattice


class BPESegmenter(Segmenter):
    """BPE-dropout (arXiv:1910.13267, algorithm 1): at each step of merging, each merge that is
    possible is left out with probability ``amount``.
    """

    kind = "BPE"

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Collection[tuple[str, str]],
        prefix: str = "",
        suffix: str = "",
    ) -> None:
        """``prefix`` stands before all symbols but a word's first, ``suffix`` behind its last."""
        self._vocabulary = vocabulary
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.prefix, self._suffix = prefix, suffix
        self._merges: dict[str, int] = {}  # of a word, if none is left out

    def draw(self, word: str, amount: float, random: Random) -> list[Piece] | None:
        """Every word is merged anew; None for one of which no merge was left out."""
        if word not in self._merges:
            if len(self._merges) >= _MOST_KEPT:
                self._merges.clear()
            self._merges[word] = len(word) - len(self._merged(word, lambda: False))
        merges, made = self._merges[word], 0
        while made < merges and random.random() >= amount:
            made += 1
        if made == merges:
            return None
        drawn = chain([False] * made, [True], iter(lambda: random.random() < amount, None))
        pieces = self._merged(word, drawn.__next__)
        if any(piece.text not in self._vocabulary for piece in pieces):
            return None
        return pieces

    def _merged(self, word: str, leaves_out: Callable[[], bool]) -> list[Piece]:
        """A word's pieces; ``leaves_out`` is asked of each merge that is the first possible."""
        symbols = [*word[:1], *(self.prefix + letter for letter in word[1:])]
        symbols[-1] = f"{symbols[-1]}{self._suffix}"
        ends = list(range(1, len(word) + 1))  # of the symbol at each place
        before = list(range(-1, len(word) - 1))  # the place of the symbol before it
        queue: list[tuple[int, int, str, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(word):
                one, other = symbols[left], symbols[right]
                rank = self._ranks.get((one, other))
                if rank is not None:
                    heapq.heappush(queue, (rank, left, one, other))

        for left, right in pairwise(range(len(word))):
            offer(left, right)
        left_out = []
        while queue:
            best = heapq.heappop(queue)
            _, left, one, other = best
            right = ends[left]
            if symbols[left] != one or right >= len(word) or symbols[right] != other:
                continue  # one of them is part of a longer symbol by now
            if leaves_out():
                left_out.append(best)
                continue
            symbols[left], symbols[right] = one + other[len(self.prefix) :], ""
            ends[left] = ends[right]
            if ends[left] < len(word):
                before[ends[left]] = left
            for merge in left_out:  # each may be made at the next step
                heapq.heappush(queue, merge)
            left_out.clear()
            offer(before[left], left)
            offer(left, ends[left])
        return [
            Piece(symbol, self._vocabulary.get(symbol, -1), ends[start] - start)
            for start, symbol in enumerate(symbols)
            if symbol
        ]


class WordPieceSegmenter(Segmenter):
    """MaxMatch-Dropout (arXiv:2209.04126): of the pieces that fit, the longest is taken, but each
    that is longer than a character is passed over with probability ``amount``.
    """

    kind = "WordPiece"

    def __init__(self, vocabulary: Mapping[str, int], prefix: str = "##") -> None:
        self._vocabulary = vocabulary
        self.prefix = prefix
        self._longest = max(map(len, vocabulary), default=0)

    def draw(self, word: str, amount: float, random: Random) -> list[Piece] | None:
        """Every word is matched anew; one that then has no piece for its rest stays as it is."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                text = (self.prefix if start else "") + word[start:end]
                known = self._vocabulary.get(text)
                if known is not None and (end == start + 1 or random.random() >= amount):
                    pieces.append(Piece(text, known, end - start))
                    start = end
                    break
            else:
                return None
        return pieces


def segmenter_of(model: Mapping[str, Any], reserved: Collection[str], name: str) -> Segmenter:
    """What draws pieces for a tokenizer's model, which is that of its JSON.

    No piece is one of ``reserved``: names of special tokens. Raises `SettingsError`, naming the
    backbone, for a model whose words have one segmentation.
    """
    kind = model.get("type")
    if kind == "Unigram":
        scores = {
            piece: (number, score)
            for number, (piece, score) in enumerate(model["vocab"])
            if piece not in reserved
        }
        return UnigramSegmenter(scores)
    if kind == "BPE":
        halves = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        merges = [(one, other) for one, other in halves]
        prefix, suffix = (
            model.get(f"{name}") or ""
            for name in ("continuing_subword_prefix", "end_of_word_suffix")
        )
        return BPESegmenter(model["vocab"], merges, prefix, suffix)
    if kind == "WordPiece":
        return WordPieceSegmenter(model["vocab"], model.get("continuing_subword_prefix") or "")
    raise SettingsError(
        f"augment subword: the tokenizer of {name} is of the kind {kind}, whose words have one "
        "segmentation; leave it out (BPE, Unigram and WordPiece have several)"
    )
