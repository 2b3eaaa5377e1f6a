"""The bits of each token: their sum is the task's, their characters are the text."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.library.paths import starter_folder
from adapters_hub.playground.tokens import read_text, read_written, spans_of, token_bits
from adapters_hub.tasks.language_modeling import LanguageModeling

BLENDS = [
    Blend(),
    Blend([("de", 1.0)], exact=True),
    Blend([("de", 0.5), ("hotel", -1.0)], exact=True),
]
TEXT = "the room was clean and quiet 房间很干净"


@pytest.fixture(scope="module")
def starter_tokenizer():
    return AutoTokenizer.from_pretrained(starter_folder())


@pytest.mark.parametrize(
    "text",
    [
        "Værelset var rent.",
        "房间很干净，但是早餐",
        "ห้องสะอาด แต่อาหารเช้า",
        "كانت الغُرفة نظيفة",
        "👩‍🚀 e\u0301é",
        " a\n\nb ",
    ],
)
def test_pieces_are_the_text(starter_tokenizer, text):
    ids = starter_tokenizer(text)["input_ids"]
    spans = spans_of(starter_tokenizer, ids)
    assert "".join(piece for piece, _ in spans) == starter_tokenizer.decode(
        ids, skip_special_tokens=True
    )
    assert [token for _, tokens in spans for token in tokens] == list(range(len(ids)))
    assert not any("\ufffd" in piece for piece, _ in spans)


def test_half_a_character_stays_at_the_end(starter_tokenizer):
    ids = starter_tokenizer("ห้อง")["input_ids"][:-1]
    spans = spans_of(starter_tokenizer, ids)
    assert "".join(piece for piece, _ in spans) == starter_tokenizer.decode(
        ids, skip_special_tokens=True
    )
    assert spans[-1][1].stop == len(ids)
    assert spans_of(starter_tokenizer, []) == []


def test_bits_per_byte_are_those_of_the_task(play_model):
    task = LanguageModeling()
    examples = task.encode([Row(TEXT)], play_model.backbone)
    for blend, reading in zip(BLENDS, read_text(play_model, TEXT, BLENDS), strict=True):
        records = collect_records(play_model, task, examples, lambda row, blend=blend: blend)
        expected = task.metrics(records)["bits_per_byte"]
        assert reading.bits_per_byte == pytest.approx(expected, rel=1e-5)
        assert sum(piece.bits or 0 for piece in reading.pieces) == pytest.approx(reading.bits)


def test_a_text_longer_than_a_window_is_read_whole(play_model):
    text = " ".join([TEXT] * 40)
    task = LanguageModeling()
    examples = task.encode([Row(text)], play_model.backbone)
    assert len(examples) > 1
    records = collect_records(play_model, task, examples, lambda row: BLENDS[1])
    (reading,) = read_text(play_model, text, BLENDS[1:2])
    assert reading.bits_per_byte == pytest.approx(task.metrics(records)["bits_per_byte"], rel=1e-5)


def test_bare_beside_bare_is_no_change(play_model):
    (reading,) = read_text(play_model, TEXT, [Blend()])
    assert all(piece.bits == piece.bare for piece in reading.pieces)


@torch.no_grad()
def test_token_bits_are_of_the_row_alone(play_model):
    rows = [[2, 9, 11, 30], [2, 7]]
    bits = token_bits(play_model, rows, BLENDS[1:])
    for row, blend, of_row in zip(rows, BLENDS[1:], bits, strict=True):
        logits = play_model(input_ids=torch.tensor([row]), adapters=[blend]).logits[0].float()
        nats = [-logits[i].log_softmax(-1)[token].item() for i, token in enumerate(row[1:])]
        assert of_row == pytest.approx([n / math.log(2) for n in nats], abs=1e-4)


def test_what_is_written_is_read_behind_its_prompt(play_model):
    prompt, written, blend = [2, 9, 11], [30, 12, 7], BLENDS[2]
    pieces = read_written(play_model, prompt, written, blend)
    (bits,) = token_bits(play_model, [prompt + written], [blend])
    assert sum(piece.bits for piece in pieces) == pytest.approx(sum(bits[2:]))


def test_nothing_to_read(play_model):
    with pytest.raises(SettingsError, match="no text"):
        read_text(play_model, "", [Blend()])


def test_an_encoder_reads_nothing(tiny):
    import adapters_hub as ah

    model = ah.load_backbone(str(tiny("bert")), library=tiny("bert").parent / "none")
    with pytest.raises(BackboneError, match="does not predict the next token"):
        read_text(model, TEXT, [Blend()])
