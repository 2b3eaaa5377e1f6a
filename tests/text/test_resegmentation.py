"""A tokenizer that draws its pieces: the same text, at the same places, by the same seed."""

from random import Random
from types import SimpleNamespace

import pytest
from helpers.tokenizers import KINDS, SCRIPTS
from transformers import PreTrainedTokenizer

from adapters_hub.errors import SettingsError
from adapters_hub.text.resegmentation import Resegmented


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def drawing(tokenizer, amount=0.6):
    return Resegmented(SimpleNamespace(tokenizer=tokenizer, name="tiny"), amount)


def encoded(drawn, text, seed, **options):
    drawn.begin(Random(seed))
    return drawn.backbone.tokenizer(text, **options)


def test_the_text_is_the_same_in_every_script(tokenizer):
    drawn, changed = drawing(tokenizer), 0
    for text in SCRIPTS:
        usual = tokenizer(text)["input_ids"]
        others = [encoded(drawn, text, seed)["input_ids"] for seed in range(8)]
        assert {tokenizer.decode(ids) for ids in others} == {tokenizer.decode(usual)}
        changed += sum(ids != usual for ids in others)
    assert changed > 4 * len(SCRIPTS)


def test_tokens_are_where_their_pieces_are(tokenizer):
    """Together they cover what the usual ones do, in order; pieces of plain letters say so."""
    drawn = drawing(tokenizer)
    for text in SCRIPTS:
        usual = tokenizer(text, return_offsets_mapping=True)
        covered = {n for a, b in usual["offset_mapping"] for n in range(a, b)}
        for seed in range(5):
            other = encoded(drawn, text, seed, return_offsets_mapping=True)
            spans = other["offset_mapping"]
            both = {n for a, b in spans for n in range(a, b)} ^ covered
            assert all(text[n].isspace() for n in both)  # which is trimmed, or a token
            starts = [a for a, b in spans if b]
            assert starts == sorted(starts)
            for piece, (a, b) in zip(other.tokens(), spans, strict=True):
                letters = piece.removeprefix("##").lstrip("▁Ġ")
                if letters.isascii() and letters.isalpha() and text.isascii() and b:
                    assert text[a:b].strip() == letters


def test_nothing_is_drawn_at_zero(tokenizer):
    drawn = drawing(tokenizer, 0.0)
    for text in SCRIPTS:
        assert encoded(drawn, text, 0)["input_ids"] == tokenizer(text)["input_ids"]
        assert drawn.changed == 0


def test_a_seed_gives_the_same_again(tokenizer):
    drawn = drawing(tokenizer)
    first = [encoded(drawn, text, 7)["input_ids"] for text in SCRIPTS]
    assert first == [encoded(drawn, text, 7)["input_ids"] for text in SCRIPTS]
    assert first != [encoded(drawn, text, 8)["input_ids"] for text in SCRIPTS]


def test_special_tokens_pairs_and_windows_are_as_ever(tokenizer):
    drawn = drawing(tokenizer)
    options = {"truncation": "only_second", "max_length": 24, "stride": 3}
    options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True}
    drawn.begin(Random(0))
    context = " ".join(SCRIPTS[:2] * 4)
    windows = drawn.backbone.tokenizer("a clean room", context, **options)
    assert len(windows["input_ids"]) > 2
    for number, ids in enumerate(windows["input_ids"]):
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert len(ids) <= 24
        assert set(windows.sequence_ids(number)) == {None, 0, 1}
    ends = [w[-2][1] for w in windows["offset_mapping"]]
    assert ends == sorted(ends)
    assert ends[-1] == len(context)


def test_names_of_special_tokens_in_a_text(tokenizer):
    drawn = drawing(tokenizer, 1.0)
    ids = encoded(drawn, "the <mask> room", 0)["input_ids"]
    assert ids.count(tokenizer.mask_token_id) == 1
    spelt = encoded(drawn, "the <s room", 0, split_special_tokens=True)["input_ids"]
    usual = tokenizer("the <s room", split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(spelt) == tokenizer.decode(usual)
    assert tokenizer("the <mask>")["input_ids"].count(tokenizer.mask_token_id) == 1


def test_changed_words_are_counted(tokenizer):
    drawn = drawing(tokenizer, 1.0)
    encoded(drawn, SCRIPTS[0], 0)
    assert 0 < drawn.changed <= len(SCRIPTS[0].split()) + 4


def test_a_tokenizer_in_python_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    with pytest.raises(SettingsError, match="not a fast one"):
        drawing(Slow())
