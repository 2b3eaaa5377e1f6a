"""Spans of words hidden by the mask, or left out where the backbone has none."""

from random import Random

from adapters_hub.data.augmentation.method import (
    Change,
    Material,
    Method,
    marked,
    with_words,
    words_in,
)
from adapters_hub.data.rows import Row

_GOES_ON = 0.8  # the chance that a span has one word more
_LONGEST = 10


class Span(Method):
    """The number is the share of a text's words that are hidden, in expectation.

    Spans are as SpanBERT's (arXiv:1907.10529, §3.1): lengths are geometric with p = 0.2, ten at
    most; starts are uniform. Each hidden word is one mask, so words keep their places; without a
    mask they are left out, with the space before them. One word at least stays.
    """

    name = "span"
    help = "share of the words masked in spans, or left out where the backbone has no mask"
    order = 30

    def change(self, material: Material) -> Change:
        """Masks, where there is one."""
        return "dropped words" if material.mask is None else "masks"

    def row(self, row: Row, random: Random, material: Material) -> tuple[Row, int]:
        """Spans are drawn until they have enough words."""
        spans = words_in(row, material.split)
        exact = self.amount * len(spans)
        wanted = min(int(exact) + (random.random() < exact % 1), len(spans) - 1)
        hidden: set[int] = set()
        while len(hidden) < wanted:
            length = 1
            while length < _LONGEST and random.random() < _GOES_ON:
                length += 1
            start = random.randrange(len(spans))
            for number in range(start, min(start + length, len(spans))):
                if len(hidden) < wanted:
                    hidden.add(number)
        if not hidden:
            return row, 0
        if material.mask is not None:
            return with_words(row, spans, dict.fromkeys(hidden, material.mask), self.name), len(
                hidden
            )
        kept = []
        for number, (_, end) in enumerate(spans):
            if number not in hidden:
                kept.append(row.text[spans[number - 1][1] if number else 0 : end])
        text = "".join(kept).strip() + row.text[spans[-1][1] :]
        return marked(row, self.name, text=text), len(hidden)


METHOD = Span
