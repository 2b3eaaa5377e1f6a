"""Rows translated by the model, there and back, and what augmentation makes of them."""

import json
from random import Random

import pytest
from helpers.augmenting import of
from helpers.generation import unspoken

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.data.augmentation.method import Material
from adapters_hub.data.augmentation.translate import Translate
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.inference.translated import translated
from adapters_hub.training.augmentation import augmenter_of

ROWS = [
    Row("the room was clean", "good", "en", "hotel", f"hotel/{n}", fields={"stars": n})
    for n in range(3)
]


@pytest.fixture
def model(tiny, tmp_path):
    return ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "library")


@pytest.fixture
def speaking(model):
    return {"max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": unspoken(model)}


def test_rows_are_translated_as_texts_are(model, speaking):
    made = list(translated(model, ROWS, "de", None, batch_size=2, **speaking))
    texts = model.translate([row.text for row in ROWS], "en", "de", None, **speaking)
    assert [row.text for row in made] == texts
    for row, other in zip(ROWS, made, strict=True):
        assert (other.label, other.domain, other.key) == (row.label, row.domain, row.key)
        assert (other.language, other.fields) == ("de", {**row.fields, "translated": "en>de"})


def test_and_back(model, speaking):
    made = list(translated(model, ROWS, "de", None, back=True, back_adapters=None, **speaking))
    there = model.translate([row.text for row in ROWS], "en", "de", None, **speaking)
    assert [row.text for row in made] == model.translate(there, "de", "en", None, **speaking)
    assert {(row.language, row.fields["translated"]) for row in made} == {("en", "en>de>en")}


def test_what_cannot_be_translated(model):
    with pytest.raises(SettingsError, match="the row is in en already"):
        next(translated(model, ROWS, "en", None))
    with pytest.raises(DataError, match="line 3: a row to be translated must say its language"):
        next(translated(model, [Row("room", where="line 3")], "de", None))


def test_the_command_writes_rows_that_augmentation_draws(model, speaking, tmp_path, capsys):
    backbone = tmp_path / "backbone"
    model.backbone.model.generation_config.update(**speaking)
    model.backbone.model.save_pretrained(backbone)
    model.tokenizer.save_pretrained(backbone)
    data, output = tmp_path / "train.jsonl", tmp_path / "back.jsonl"
    lines = [{"id": n, "text": row.text, "label": ["good", "new"], "language": "en",
              "domain": "hotel"} for n, row in enumerate(ROWS)]  # fmt: skip
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = read_data(data)["train"]
    given = ["--backbone", str(backbone), "--library", str(tmp_path / "library")]
    given += ["--data", str(data), "--language", "en", "--to", "de", "--max-new-tokens", "6"]
    assert main(["translate", "none", *given, "--back", "none", "-o", str(output)]) == 0
    written = read_data(output)["train"]
    assert f"{len(written)} of 3 rows" in capsys.readouterr().err
    assert written
    keys = {row.key for row in train}
    assert all(row.key in keys and row.labels == ("good", "new") for row in written)
    assert all(row.fields == {"translated": "en>de>en"} for row in written)
    values = of("classification", augment={"translate": 1.0}, augment_data=str(output))
    augmenter = augmenter_of(values, _Classes(), model.backbone, train)
    assert augmenter.material.translations.keys() == {row.key for row in written}
    row, words = Translate(1.0).row(train[0], Random(0), augmenter.material)
    assert words
    assert row.text != train[0].text
    assert row.labels == train[0].labels
    assert (
        main(["translate", "none", *given[:-6], "--language", "fr", "--to", "de", "-o", "x"]) == 1
    )
    assert "no train row in fr" in capsys.readouterr().err


def test_only_a_text_that_was_translated_back_stands_for_one_of_its_language():
    row = Row("the room", "good", "en", key="7")
    other = Row("a chamber", language="en")
    back = Row("a room", language="en", fields={"translated": "en>de>en"})
    material = Material(str.split, translations={"7": [row, other, back]})
    drawn, _ = Translate(1.0).row(row, Random(0), material)
    assert (drawn.text, drawn.language) == ("a room", "en")


class _Classes:
    """What of a task the augmenter asks for."""

    from adapters_hub.tasks.declarations.classification import DECLARATION as declaration

    name = "classification"
