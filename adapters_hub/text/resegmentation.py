"""A tokenizer that cuts the same texts in other ways, drawn anew each time.

It normalises, finds words, adds special tokens, cuts and pads as the tokenizer that it stands for;
only the pieces inside words differ. So what calls it need not know, and offsets are right. Knows
fast tokenizers; does not know tasks.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from tokenizers import Encoding, PreTokenizedString, Token, Tokenizer

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.tokenizer import with_engine
from adapters_hub.errors import SettingsError
from adapters_hub.text.pieces import Piece, Segmenter, segmenter_of

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Resegmented:
    """A backbone whose tokenizer draws the pieces of words; ``amount`` as the segmenter takes it.

    ``begin`` before each row: from there on draws come from that generator, and ``changed`` counts
    the words whose pieces are other ones. Raises `SettingsError` for a tokenizer that is not fast,
    or whose words have one segmentation.
    """

    def __init__(self, backbone: Backbone, amount: float) -> None:
        if not backbone.tokenizer.is_fast:
            raise SettingsError(
                f"augment subword: the tokenizer of {backbone.name} is not a fast one, and what "
                "pieces it could have is not known; leave it out"
            )
        self._engine = _Engine(backbone.tokenizer.backend_tokenizer, amount, backbone.name)
        self.backbone = with_engine(backbone, self._engine)

    def begin(self, random: Random) -> None:
        """Start with another row."""
        self._engine.random, self._engine.changed = random, 0

    @property
    def changed(self) -> int:
        """Words that were cut in another way since `begin`."""
        return self._engine.changed


class _Word(NamedTuple):
    """Tokens that are one word to the segmenter: ids, pieces without a prefix, characters."""

    ids: list[int]
    pieces: list[str]
    spans: list[tuple[int, int]]


class _Engine:
    """Stands where transformers has its `tokenizers.Tokenizer`."""

    def __init__(self, real: Tokenizer, amount: float, name: str) -> None:
        described = json.loads(real.to_str())
        model = described["model"]
        added = described["added_tokens"]
        self._segmenter: Segmenter = segmenter_of(model, {t["content"] for t in added}, name)
        self._kept = {token["id"] for token in added}  # which are left alone
        unknown = model.get("unk_token")
        unknown_id = model.get("unk_id") if unknown is None else real.token_to_id(unknown)
        self._kept |= set() if unknown_id is None else {unknown_id}
        self._falls_back = bool(model.get("byte_fallback"))
        self._bytes = "ByteLevel" in json.dumps(described["pre_tokenizer"])
        described |= {"post_processor": None, "truncation": None, "padding": None}
        self._real, self._plain = real, Tokenizer.from_str(json.dumps(described))
        self._amount = amount
        self.random, self.changed = Random(0), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)

    @property
    def encode_special_tokens(self) -> bool:
        """Whether names of special tokens in a text are text."""
        return bool(self._real.encode_special_tokens)

    @encode_special_tokens.setter
    def encode_special_tokens(self, value: bool) -> None:
        self._real.encode_special_tokens = value

    def encode_batch(
        self,
        input: Sequence[str | tuple[str, str]],
        add_special_tokens: bool = True,
        is_pretokenized: bool = False,
    ) -> list[Encoding]:
        """As `Tokenizer.encode_batch`, of texts and pairs of texts."""
        if is_pretokenized:
            raise SettingsError("augment subword: texts are cut, not lists of words")
        self._plain.encode_special_tokens = self._real.encode_special_tokens
        encodings = []
        for item in input:
            texts = (item,) if isinstance(item, str) else item
            parts = [self._drawn(text) for text in texts]
            pair = parts[1] if len(parts) > 1 else None
            encodings.append(self._real.post_process(parts[0], pair, add_special_tokens))
        return encodings

    def _drawn(self, text: str) -> Encoding:
        plain = self._plain.encode(text, add_special_tokens=False)
        tokens: list[tuple[str, int, int, int]] = []
        changed = self.changed
        for word in self._words(plain):
            drawn = self._draw(word)
            if drawn is None:
                known = zip(word.pieces, word.ids, word.spans, strict=True)
                tokens += [(piece, id, *span) for piece, id, span in known]
            else:
                self.changed += 1
                tokens += self._placed(word, drawn, text)
        if self.changed == changed:
            return plain
        sizes = [0, *accumulate(len(letter.encode()) for letter in text)]
        made = PreTokenizedString(text)
        made.tokenize(lambda _: [Token(i, t, (sizes[a], sizes[b])) for t, i, a, b in tokens])
        return made.to_encoding()

    def _words(self, encoding: Encoding) -> Iterator[_Word]:
        """The words of a text; one that the tokenizer does not part from others begins at a space's
        mark.
        """
        word, last = _Word([], [], []), None
        prefix = self._segmenter.prefix
        for id, piece, span, number in zip(
            encoding.ids, encoding.tokens, encoding.offsets, encoding.word_ids, strict=True
        ):
            if word.ids and (number != last or piece.startswith(_SPACE)):
                yield word
                word = _Word([], [], [])
            last = number
            word.ids.append(id)
            word.pieces.append(piece.removeprefix(prefix) if word.pieces else piece)
            word.spans.append(span)
        if word.ids:
            yield word

    def _draw(self, word: _Word) -> list[Piece] | None:
        """Other pieces of a word; None where they are to be the same."""
        if not self._kept.isdisjoint(word.ids):
            return None
        if self._falls_back and any(map(_BYTE.fullmatch, word.pieces)):
            return None
        drawn = self._segmenter.draw("".join(word.pieces), self._amount, self.random)
        if drawn is None or [piece.id for piece in drawn] == word.ids:
            return None
        return drawn

    def _placed(
        self, word: _Word, drawn: list[Piece], text: str
    ) -> list[tuple[str, int, int, int]]:
        """Drawn pieces with the characters of the text that each is of."""
        first, last = word.spans[0][0], word.spans[-1][1]
        whole = "".join(word.pieces)
        letters = text[first:last]
        # of each character of the text: where it begins in the word
        sizes = [len(letter.encode()) if self._bytes else 1 for letter in letters]
        begins = [0, *accumulate(sizes)]
        mark = "Ġ" if self._bytes else _SPACE
        silent = len(whole) - begins[-1]  # marks of a space that the text does not have
        if 0 <= silent <= len(whole) - len(whole.lstrip(mark)):
            owners = [first] * silent + [
                first + number for number, size in enumerate(sizes) for _ in range(size)
            ]
            spans = [(at, at + (place >= silent)) for place, at in enumerate(owners)]
        else:  # normalising changed it: as exact as the tokenizer's own pieces
            known = zip(word.pieces, word.spans, strict=True)
            spans = [span for piece, span in known for _ in piece]
        placed, at = [], 0
        for piece in drawn:
            of_piece = spans[at : at + piece.length]
            placed.append((piece.text, piece.id, of_piece[0][0], of_piece[-1][1]))
            at += piece.length
        return placed
