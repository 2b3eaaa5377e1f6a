"""Embeddings: pooling against plain computations, mixed rows, files, and an encoder in use."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTS, in_double
from helpers.retrieval import moved, new, pair
from peft import PeftModel

import adapters_hub as ah
from adapters_hub.errors import HeadError, SettingsError
from adapters_hub.library.adapter_file import AdapterInfo, read_adapter
from adapters_hub.tasks import pooling
from adapters_hub.tasks.pooling import padded_parts, pool
from adapters_hub.tasks.retrieval import Retrieval

KINDS = ("bert", "xlm-roberta", "modernbert", "qwen3", "gpt2", "mt5", "m2m100")


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_the_plain_computation(load, kind, pooling):
    model = load(kind)
    got = model.embed(TEXTS, pooling=pooling)
    assert got.shape == (len(TEXTS), 32)
    assert got.dtype == torch.float32
    body = model.backbone.base.encoder if kind in ("mt5", "m2m100") else model.backbone.base
    for text, vector in zip(TEXTS, got, strict=True):
        inputs = model.backbone.tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            states = body(**inputs).last_hidden_state[0]
        plain = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        torch.testing.assert_close(vector, plain / plain.norm(), atol=1e-5, rtol=1e-4)


def test_pooling_does_not_hang_on_the_side_of_the_padding():
    states = torch.randn(2, 3, 4)
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    got = pool(states, mask, ["last", "cls"])
    torch.testing.assert_close(got[0], states[0, 2] / states[0, 2].norm())
    torch.testing.assert_close(got[1], states[1, 0] / states[1, 0].norm())


@pytest.mark.parametrize("kind", ["bert", "qwen3", "mt5"])
def test_a_mixed_batch_is_each_row_alone(load, kind):
    model = in_double(load(kind))
    model.add(moved(new(model, "first", Retrieval(pooling="last", query_prompt="the "))))
    model.add(moved(new(model, "second", Retrieval(pooling="mean", query_prompt="staff "))))
    adapters = ["first", "second", None, "0.5*second", "first"]
    mixed = model.embed(TEXTS, adapters, prompt_name="query")
    for number, (text, blend) in enumerate(zip(TEXTS, adapters, strict=True)):
        alone = model.embed(text, [blend], prompt_name="query")
        torch.testing.assert_close(mixed[number], alone[0], atol=1e-6, rtol=1e-5)
    small = model.embed(TEXTS, adapters, batch_size=2, prompt_name="query")
    torch.testing.assert_close(mixed, small, atol=1e-6, rtol=1e-5)
    assert (model.embed(TEXTS, "first")[0] @ mixed[0]).abs() < 0.9999  # the prompt counts


def test_a_batch_is_cut_by_length_where_that_pays():
    parts = padded_parts(torch.tensor([3, 30, 4, 29, 3, 31]))
    assert [part.tolist() for part in parts] == [[0, 2, 4], [1, 3, 5]]
    assert [part.tolist() for part in padded_parts(torch.tensor([5, 4, 5, 5]))] == [[0, 1, 2, 3]]
    assert [part.tolist() for part in padded_parts(torch.tensor([7]))] == [[0]]
    lengths = torch.randint(1, 200, (64,), generator=torch.Generator().manual_seed(0))
    parts = padded_parts(lengths)
    assert sorted(torch.cat(parts).tolist()) == list(range(64))
    padded = sum(len(part) * int(lengths[part].max()) for part in parts)
    assert padded < 1.2 * int(lengths.sum()) < 64 * int(lengths.max())


@pytest.mark.parametrize("kind", ["bert", "qwen3", "mt5"])
def test_a_batch_cut_by_length_has_the_vectors_and_gradients_of_the_whole(load, kind, monkeypatch):
    model, task = in_double(load(kind)), Retrieval()
    adapters = [moved(new(model, name)).map(torch.Tensor.double) for name in ("one", "two")]
    model.add(adapters[0])
    learning = model.add(adapters[1].trainable(), trained=True)
    rows = [pair("the room", " ".join(TEXTS * 3)), pair(" ".join(TEXTS * 2), "staff", "quiet")]
    examples = task.encode(rows, model.backbone)
    batch = task.collate(examples, model.backbone)
    blends = [model.resolve(b) for b in ("two", "one + two", None, "0.5*two", "one")]
    forwards = []
    whole = pooling.hidden_states
    monkeypatch.setattr(
        pooling, "hidden_states", lambda *given: forwards.append(1) or whole(*given)
    )

    def run():
        with model.bank.using(model.plan(blends)):
            outputs = task.outputs(model, batch, [])
        weights = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
        return outputs, torch.autograd.grad((outputs * weights).sum(), learning.parameters())

    vectors, gradients = run()
    assert len(forwards) > 1
    forwards.clear()
    monkeypatch.setattr(pooling, "_WORTH", 1.0)
    expected, expected_gradients = run()
    assert len(forwards) == 1
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_no_texts_and_empty_texts(load):
    model = load("qwen3")
    assert model.embed([]).shape == (0, 32)
    assert model.embed(["", "the room"]).isfinite().all()
    assert model.embed("the room").shape == (1, 32)


def test_a_domain_adapter_says_how_to_embed_over_a_language_adapter(load):
    model = load("bert")
    model.add(moved(new(model, "de", Retrieval(pooling="cls"), language="de")))
    task = Retrieval(pooling="mean", query_prompt="the ")
    model.add(moved(new(model, "law", task, domain="law")))
    both = model.embed(TEXTS, "de + law", prompt_name="query")
    torch.testing.assert_close(both, model.embed(TEXTS, "de + law", prompt="the ", pooling="mean"))
    assert not torch.allclose(both, model.embed(TEXTS, "de + law"))
    alone = model.embed(TEXTS, "de")
    torch.testing.assert_close(alone, model.embed(TEXTS, "de", pooling="cls"))


def test_a_name_of_no_prompt_is_refused(load):
    model = load("bert")
    model.embed(TEXTS, prompt_name="query")
    with pytest.raises(SettingsError, match="'qurey': choose one of document, query"):
        model.embed(TEXTS, prompt_name="qurey")


def test_two_ways_to_embed_in_one_blend_are_refused(load):
    model = load("bert")
    model.add(moved(new(model, "one", Retrieval(pooling="cls"))))
    model.add(moved(new(model, "two", Retrieval(pooling="mean"))))
    model.add(moved(new(model, "three", Retrieval(pooling="mean"))))
    with pytest.raises(HeadError, match=r"different ways \(one: cls, \{\}, two: mean"):
        model.embed(TEXTS, "one + two")
    assert model.embed(TEXTS, "two + three").isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2", "mt5"])
def test_saved_loaded_and_in_plain_peft_the_embeddings_are_the_same(load, kind, tmp_path):
    from transformers import AutoModel

    model = load(kind)
    task = Retrieval(pooling="mean", query_prompt="the ", document_prompt="staff ")
    adapter = moved(new(model, "finder", task, domain="hotel"))
    model.add(adapter)
    want = model.embed(TEXTS, "finder", prompt_name="query")
    folder = adapter.save(tmp_path / "finder")
    info = model.library.add(folder, name="kept")
    assert (info.pooling, info.prompts) == ("mean", {"query": "the ", "document": "staff "})
    again = load(kind)
    got = again.embed(TEXTS, "kept", prompt_name="query")
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    assert "feature-extraction" in (folder / "README.md").read_text()

    plain = PeftModel.from_pretrained(
        AutoModel.from_pretrained(model.backbone.folder), folder
    ).eval()
    assert not [n for n, p in plain.named_parameters() if "lora_B" in n and not p.abs().max() > 0]
    body = plain.base_model.model.encoder if kind == "mt5" else plain.base_model.model
    for text, vector in zip(TEXTS, want, strict=True):
        inputs = model.backbone.tokenizer("the " + text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            mean = body(**inputs).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("order", ["de + finder", "finder + de"])
def test_an_exported_blend_embeds_the_same(load, lora_folder, tmp_path, order):
    model = load("qwen3")
    model.library.add(lora_folder("qwen3", "one"), name="de", language="de")
    model.add(moved(new(model, "finder", Retrieval(pooling="mean", query_prompt="the "))))
    want = model.embed(TEXTS, order, prompt_name="query")
    info = model.library.add(model.export(order, tmp_path / "out"), name="both")
    assert (info.task if order[0] == "f" else "retrieval", info.pooling) == ("retrieval", "mean")
    got = model.embed(TEXTS, "both", prompt_name="query")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_old_files_have_no_pooling(lora_folder):
    info = read_adapter(lora_folder("bert", "one"), "one").info
    assert (info.pooling, info.prompts) == (None, {})
    old = {k: v for k, v in info.to_json().items() if k not in ("pooling", "prompts")}
    assert AdapterInfo.from_json(old) == replace(info, path=None)
    for wrong in ({"pooling": 3}, {"prompts": {"query": 3}}, {"prompts": [1]}):
        with pytest.raises(TypeError):
            AdapterInfo.from_json({**old, **wrong})


@pytest.mark.slow
def test_sentence_transformers_loads_what_was_saved(load, tmp_path):
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    model = load("bert")
    adapter = moved(new(model, "finder", Retrieval()))
    model.add(adapter)
    body = models.Transformer(str(model.backbone.folder))
    pooling = models.Pooling(32, "mean")
    theirs = SentenceTransformer(modules=[body, pooling, models.Normalize()], device="cpu")
    theirs.load_adapter(str(adapter.save(tmp_path / "finder")))
    np.testing.assert_allclose(
        theirs.encode(TEXTS), model.encoder("finder").encode(TEXTS), atol=1e-5
    )
