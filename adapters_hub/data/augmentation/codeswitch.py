"""Words replaced with their translations."""

from random import Random

from adapters_hub.data.augmentation.method import (
    Change,
    Material,
    Method,
    with_words,
    words_in,
)
from adapters_hub.data.rows import Row


class Codeswitch(Method):
    """The number is the probability that a word with a translation is replaced with one.

    As CoSDA-ML (arXiv:2006.06402) a word at a time, each into a language of its own: first one of
    those that have a translation is drawn, then a translation, by how often it was seen. Words are
    looked up without regard to case. A row stays in its language.
    """

    name = "codeswitch"
    help = "probability that a word with a translation is replaced with one (--augment-data)"
    order = 20
    reads_lexicon = True

    def change(self, material: Material) -> Change:
        """Words, each for a word or a phrase."""
        return "words"

    def row(self, row: Row, random: Random, material: Material) -> tuple[Row, int]:
        """Each word is drawn by itself."""
        known = [
            lexicon
            for language in dict.fromkeys((row.language, None))
            if (lexicon := material.lexicon.get(language))
        ]
        spans = words_in(row, material.split) if known else []
        others: dict[int, str] = {}
        for number, (start, end) in enumerate(spans):
            word = row.text[start:end].casefold()
            candidates = [t for lexicon in known for t in lexicon.get(word, ())
                     if t.language is None or t.language != row.language]  # fmt: skip
            if candidates and random.random() < self.amount:
                languages = sorted({t.language or "" for t in candidates})
                language = languages[random.randrange(len(languages))]
                of_it = [t for t in candidates if (t.language or "") == language]
                (chosen,) = random.choices(of_it, [t.weight for t in of_it])
                others[number] = chosen.text
        return with_words(row, spans, others, self.name), len(others)


METHOD = Codeswitch
