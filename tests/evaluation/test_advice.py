"""Advice on backbones: what is counted, by another way; what is said of it; the command."""

import math

import pytest
import torch
from conftest import TEXTS, WORDS
from helpers.data_files import write

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError
from adapters_hub.evaluation.advice import Known, Measured, Sample, advise, recommendation


def rows():
    """Three languages of which two have an id's translation in English, one of them unknown."""
    made = []
    for number, word in enumerate(WORDS):
        key = f"None/{number}"
        made += [
            Row(f"the {word}", language="en", key=key),
            Row(f"{word} was", language="de", key=key),
            Row(f"ξ{word} ψ", language="el", key=key),
            Row(f"{word} and {word}", language="sv"),
        ]
    return made


def test_texts_with_their_translations():
    sample = Sample.of(rows(), 5)
    assert list(sample.texts) == ["de", "el", "en", "sv"]
    assert {len(texts) for texts in sample.texts.values()} == {5}
    assert sample.translations.keys() == {"de", "el"}
    for own, other in zip(sample.texts["de"], sample.translations["de"], strict=True):
        assert own.removesuffix(" was") == other.removeprefix("the ")
    assert list(sample.only(["sv", "de"]).texts) == ["sv", "de"]
    with pytest.raises(DataError, match=r"no rows in fr \(have: de, el, en, sv\)"):
        sample.only(["fr"])
    with pytest.raises(DataError, match="no row names its language"):
        Sample.of([Row("a")], 5)


def test_a_positive_is_a_translation_too():
    pairs = [Row(f"w{n}", language="yo", fields={"positive": f"e{n}"}) for n in range(4)]
    assert Sample.of(pairs, 3).translations == {"yo": ["e0", "e1", "e2"]}


@pytest.mark.slow
def test_what_an_encoder_and_a_decoder_know(tiny):
    sample = Sample.of(rows(), 12)
    encoder, decoder = str(tiny("bert")), str(tiny("qwen3"))
    measured = {one.backbone: one for one in advise([encoder, decoder], sample, batch_size=4)}
    for one in measured.values():
        assert one.seconds > 0
        assert one.memory > 2**26
        assert list(one.known) == list(sample.texts)
        assert one.known["de"].unknown == 0
        assert one.known["el"].unknown > 0.3
        assert "el" in one.hardly()

    model = ah.load_backbone(encoder)
    vectors = [
        model.embed(some["de"], adapters=None) for some in (sample.texts, sample.translations)
    ]
    nearest = (vectors[0] @ vectors[1].T).argmax(1)
    hits = (nearest == torch.arange(12)).float().mean()
    known = measured[encoder].known["de"]
    assert known.finds == pytest.approx(hits)
    assert known.bits is known.surplus is None
    tokenizer = model.backbone.tokenizer
    sizes = [
        sum(len(tokenizer.tokenize(text)) for text in some["de"])
        for some in (sample.texts, sample.translations)
    ]
    assert known.longer == pytest.approx(sizes[0] / sizes[1])
    assert known.tokens == pytest.approx(sizes[0] / 24)  # two words a text

    plain = ah.load_backbone(decoder)
    nats = 0.0
    for text in sample.texts["sv"]:
        ids = torch.tensor([plain.tokenizer(text)["input_ids"]])
        logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), adapters=None).logits
        nats += torch.nn.functional.cross_entropy(
            logits[0, :-1], ids[0, 1:], reduction="sum"
        ).item()
    size = sum(len(text.encode()) for text in sample.texts["sv"])
    known = measured[decoder].known
    assert known["sv"].bits == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert known["sv"].surplus is None
    assert known["de"].surplus > 0
    assert known["de"].finds is None


def test_the_one_that_knows_most_is_recommended_and_of_equals_the_faster():
    good, bad = Known(0, 1.2, 1.0, finds=0.99), Known(0.02, 2.0, 1.9, finds=0.6)
    slow = Measured("slow", "encoder", 2.0, 2**30, {"de": good, "yo": bad})
    fast = Measured("fast", "encoder", 1.0, 2**30, {"de": good, "yo": bad})
    assert good.reasons() == []
    assert fast.hardly() == {
        "yo": [
            "2.0% of the tokens are unknown",
            "40% of the texts do not find their translation",
            "1.9 times the tokens of the translations",
        ]
    }
    said = recommendation([fast, slow])
    assert "recommended: fast" in said
    assert (
        "fast: knows 1 of 2 languages; a training step takes 1.00 s, the process 1,024 MiB" in said
    )
    assert "--objective match" in said
    assert "should pay in yo" in said
    assert Known(0, 1, longer=1.9, surplus=1.2).reasons() == []
    assert Known(0, 1, surplus=1.7).reasons() == ["1.7 times the bits of the translations"]
    whole = Measured("whole", "decoder", 1.0, 2**30, {"de": good})
    assert "No language stands out" in recommendation([whole])


@pytest.mark.slow
def test_the_command(tiny, tmp_path, capsys):
    lines = [
        {"text": text, "language": tag, "id": n}
        for n, text in enumerate(TEXTS)
        for tag in ("en", "de")
    ]
    data = write(tmp_path / "texts.jsonl", lines)
    given = ["advise", "--data", str(data), "--backbone", str(tiny("gpt2")), "--batch-size", "2"]
    assert main([*given, "--language", "de"]) == 0
    out = capsys.readouterr().out
    assert "| de " in out
    assert "| en " not in out
    assert "knows 1 of 1 languages" in out
    assert main(["advise", "--data", str(data), "--backbone", "no/such-model"]) == 1
    assert "no/such-model" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_of_a_backbone_comes_through(tmp_path):
    with pytest.raises(BackboneError):
        advise([str(tmp_path)], Sample.of(rows(), 3))
