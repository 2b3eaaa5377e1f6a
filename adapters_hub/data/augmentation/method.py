"""What a method of augmentation says of itself, and what it does to a row.

Knows rows; does not know the methods.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar, Literal

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError

Change = Literal["segmentation", "words", "masks", "dropped words", "text", "embeddings"]
"""What a method changes: the pieces that words are cut into; words, each for another or some;
words, each for the mask; how many words there are; the whole text; the vectors that go into a
model. A task's declaration says which of them leave its targets right.
"""

AUGMENTED = "augmented"
"""The field of a changed row that names the methods which changed it."""

TRANSLATED = "translated"
"""The field of a row that a model translated: the languages its text went through, as en>de>en."""


@dataclass(frozen=True)
class Translated:
    """What a word may be replaced with: a word or a phrase, in a language, seen so often."""

    text: str
    language: str | None
    weight: float = 1.0


Lexicon = Mapping[str | None, Mapping[str, Sequence[Translated]]]
"""A language (None: any) → its words, casefolded → their translations."""


@dataclass(frozen=True)
class Material:
    """What methods work with.

    ``split`` cuts a text into its words, in order. ``mask`` is the backbone's token for a hidden
    word, None where it has none. ``translations`` are an id's rows in the languages asked for.
    """

    split: Callable[[str], list[str]] = str.split
    mask: str | None = None
    lexicon: Lexicon = field(default_factory=dict)
    translations: Mapping[str, Sequence[Row]] = field(default_factory=dict)


class Method(ABC):
    """One method, with its number. Raises `SettingsError` for a number that cannot be.

    A method that changes rows has `row`. What changes tokens or vectors is done by who has them.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    """What the number means, in a few words; for ``--help``."""

    order: ClassVar[int]
    """Methods are applied in this order, however they are given."""

    share: ClassVar[bool] = True
    """Whether the number is a share, from 0 to 1; else it is any above 0."""

    reads_lexicon: ClassVar[bool] = False
    reads_translations: ClassVar[bool] = False

    def __init__(self, amount: float) -> None:
        if not 0 < amount < float("inf") or (self.share and amount > 1):
            most = ", at most 1" if self.share else ""
            raise SettingsError(
                f"augment {self.name}={amount:g}: must be above 0{most}; leave it out for none"
            )
        self.amount = amount

    def change(self, material: Material) -> Change:
        """What it changes, with this material."""
        raise NotImplementedError

    def row(self, row: Row, random: Random, material: Material) -> tuple[Row, int]:
        """The row changed, and how many of its words were; the same row and 0 where none were."""
        return row, 0


def marked(row: Row, method: str, **changes: object) -> Row:
    """The row with changes, and the method's name added to its field `AUGMENTED`."""
    given = changes.pop("fields", row.fields)
    assert isinstance(given, Mapping)
    names = f"{given.get(AUGMENTED, '')} {method}".strip()
    return replace(row, fields={**given, AUGMENTED: names}, **changes)  # type: ignore[arg-type]


def words_in(row: Row, split: Callable[[str], list[str]]) -> list[tuple[int, int]]:
    """The characters of each word of a row's text: those of its field ``words``, if it has some."""
    given = row.fields.get("words")
    words = given if isinstance(given, list) else split(row.text)
    spans, end = [], 0
    for word in words:
        start = row.text.find(str(word), end)
        if start < 0:
            return []  # which the task complains about
        end = start + len(str(word))
        spans.append((start, end))
    return spans


def with_words(
    row: Row, spans: Sequence[tuple[int, int]], others: Mapping[int, str], method: str
) -> Row:
    """The row with other texts for some of its words, by number; all else stays where it is."""
    if not others:
        return row
    parts, end = [], 0
    for number, (start, stop) in enumerate(spans):
        parts += [row.text[end:start], others.get(number, row.text[start:stop])]
        end = stop
    text = "".join([*parts, row.text[end:]])
    fields = row.fields
    if isinstance(fields.get("words"), list):
        fields = {**fields, "words": parts[1::2]}
    return marked(row, method, text=text, fields=fields)
