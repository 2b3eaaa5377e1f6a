"""Rows replaced with their translations, from a file of them."""

from random import Random

from adapters_hub.data.augmentation.method import TRANSLATED, Change, Material, Method, marked
from adapters_hub.data.rows import Row


class Translate(Method):
    """The number is the probability that a row is replaced with a translation (translate-train).

    One of the texts that `Material` has of the row's ``id`` in other languages is drawn, each as
    likely; of the row's language those that were translated there and back. The row keeps its label
    and its other fields, and is in the translation's language from then on, so it sees that
    language's adapter. A translation that is one of the row's own fields, such as what a query
    should find, is not taken.
    """

    name = "translate"
    help = "probability that a row is replaced with a translation of the same id (--augment-data)"
    order = 10
    reads_translations = True

    def change(self, material: Material) -> Change:
        """All of the text."""
        return "text"

    def row(self, row: Row, random: Random, material: Material) -> tuple[Row, int]:
        """All its words, or none."""
        if random.random() >= self.amount or row.key is None:
            return row, 0
        others = [
            other
            for other in material.translations.get(row.key, ())
            if (other.language != row.language or TRANSLATED in other.fields)
            and other.text not in (row.text, *row.fields.values())
        ]
        if not others:
            return row, 0
        other = others[random.randrange(len(others))]
        words = len(words) if (words := material.split(other.text)) else 1
        return marked(row, self.name, text=other.text, language=other.language), words


METHOD = Translate
