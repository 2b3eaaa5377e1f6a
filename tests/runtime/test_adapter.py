"""One adapter, to a PEFT folder and back: precision, which sites it has, what a failure leaves."""

import json

import pytest
import torch
from conftest import in_double
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

import adapters_hub as ah
from adapters_hub.errors import (
    AdapterFileError,
    BackboneMismatchError,
    HeadError,
    LibraryError,
    UnsupportedAdapterError,
)
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime import tensors
from adapters_hub.tasks import make_task

LM_HEAD = {"target_modules": ["lm_head"], "save": {"save_embedding_layers": False}}


@pytest.fixture
def model(tiny, tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="de", language="de")
    return ah.load_backbone(str(tiny("qwen3")), library=library)


def new(model, task, name="new"):
    """An adapter for a task whose every tensor is random."""
    info = AdapterInfo(name=name, task=task.name, labels=task.labels)
    lora = LoraConfig(
        r=3, target_modules="all-linear", task_type=task.peft_task_type(model.backbone)
    )
    adapter = task.new_adapter(info, model.backbone, lora)
    torch.manual_seed(0)
    return adapter.map(lambda tensor: torch.randn_like(tensor) * 0.2)


def test_what_all_linear_excludes_is_not_adapted_and_peft_agrees(model, tmp_path, inputs):
    task = make_task("language-modeling")
    lora = LoraConfig(r=2, target_modules="all-linear", exclude_modules=["o_proj", "down_proj"],
                      task_type="CAUSAL_LM")  # fmt: skip
    info = AdapterInfo(name="new", task=task.name)
    adapter = task.new_adapter(info, model.backbone, lora)
    assert adapter.factors
    assert not any(site.endswith(("o_proj", "down_proj")) for site in adapter.factors)
    adapter = adapter.map(lambda tensor: torch.randn_like(tensor) * 0.2)
    model.add(adapter)
    adapter.save(tmp_path / "new")
    base = AutoModelForCausalLM.from_pretrained(model.backbone.folder)
    with torch.no_grad():
        want = PeftModel.from_pretrained(base, tmp_path / "new").eval()(**inputs).logits
        got = model(**inputs, adapters="new").logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_a_classifier_over_an_encoder_is_what_peft_loads(kind, tiny, tmp_path, inputs):
    """The checkpoint has no pooler, so where the class has one it belongs to the head."""
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "none")
    task = make_task("classification", label_names=("a", "b", "c"))
    adapter = new(model, task)
    assert not any(site.startswith("pooler") for site in adapter.factors)
    folder = adapter.save(tmp_path / "saved")
    model.add(adapter)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny(kind), num_labels=3)
    with torch.no_grad():
        want = PeftModel.from_pretrained(plain, folder).eval()(**inputs).logits
        blends = model.blends(4, "new")
        with model.adapted(4, "new"):
            got = task.logits(model, inputs, model.heads(blends))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_language_adapter_has_no_site_its_class_lacks(kind, tiny, tmp_path, inputs):
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "none")
    adapter = new(model, make_task("language-modeling"))
    assert set(adapter.factors) == set(model.backbone.lm_sites)
    assert not any(site.startswith("pooler") for site in adapter.factors)
    model.add(adapter)
    plain = AutoModelForMaskedLM.from_pretrained(tiny(kind))
    assert model.merge("new").state_dict().keys() == plain.state_dict().keys()


def test_heads_and_bodies_of_different_precision_meet(tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "cls", labels=2), name="mood", labels=["bad", "good"])
    full = ah.load_backbone(str(tiny("qwen3")), library=library)
    half = ah.load_backbone(str(tiny("qwen3")), library=library, bits=16)
    want, got = (m.classify(["lovely view"], "mood")[0]["good"] for m in (full, half))
    assert got == pytest.approx(want, abs=0.05)
    merged = half.merge("mood")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert merged(**inputs).logits.shape == (4, 2)
    stored = full.adapter("mood").map(lambda tensor: tensor.bfloat16())
    library.add(stored.save(tmp_path / "half"), name="half", labels=["bad", "good"])
    assert full.classify(["lovely view"], "half")[0]["good"] == pytest.approx(want, abs=0.02)


def test_export_of_half_precision_adapters_is_exact(model, tmp_path, inputs):
    stored = model.adapter("de").map(lambda tensor: tensor.bfloat16())
    model.library.add(stored.save(tmp_path / "half"), name="half")
    blend = "0.7*half - 0.3*de"
    folder = model.export(blend, tmp_path / "both")
    other = ah.load_backbone(model.backbone.name, library=tmp_path / "other")
    other.library.add(folder)
    with torch.no_grad():
        want = model(**inputs, adapters=blend).logits
        torch.testing.assert_close(
            other(**inputs, adapters="both").logits, want, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
def test_export_of_an_adapter_on_the_lm_head_first(kind, tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder(kind, "head", **LM_HEAD), name="head")
    library.add(lora_folder(kind, "one"), name="one")
    model = in_double(ah.load_backbone(str(tiny(kind)), library=library))
    if kind == "mt5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    folder = model.export("head + one", tmp_path / "out")
    plain = type(model.backbone.model).from_pretrained(tiny(kind))
    with torch.no_grad():
        want = model(**inputs, adapters="head + one").logits
        got = PeftModel.from_pretrained(plain, folder).eval().double()(**inputs).logits
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_merging_into_a_tied_head_leaves_the_embedding(tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "head", **LM_HEAD), name="head")
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    merged = model.merge("head")
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        want = model(**inputs, adapters="head").logits
        for plain in (merged, again):
            torch.testing.assert_close(plain(**inputs).logits, want, atol=1e-4, rtol=1e-4)


def test_a_failed_write_leaves_what_was_there(model, tmp_path, monkeypatch):
    folder = model.export("de", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert "The sum of de" in (folder / "README.md").read_text()
    assert json.loads(before["adapter_config.json"])["r"] == 4

    def full(info):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write_card", full)
    for target in ("out", "new"):
        with pytest.raises(LibraryError, match="No space left"):
            model.export("2*de", tmp_path / target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"library", "out"}


def test_saving_into_a_folder_keeps_what_else_is_in_it(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    folder = model.export("de", tmp_path / "out")
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert ah.Library(tmp_path / "other").add(folder, name="x").rank == 4


def test_a_head_alone_is_no_peft_adapter(model, tmp_path):
    task = make_task("classification", label_names=("a", "b"))
    info = AdapterInfo(name="head", task=task.name, labels=task.labels)
    with pytest.raises(AdapterFileError, match="only a head"):
        task.new_adapter(info, model.backbone, None).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "module"),
    [("qwen3", "lm_head"), ("qwen3", "input_layernorm"), ("bert", "LayerNorm"), ("bert", "cls")],
)
def test_a_trained_copy_of_a_part_of_the_backbone_is_refused(
    kind, module, tiny, lora_folder, tmp_path
):
    library = ah.Library(tmp_path / "library")
    sites = ["q_proj"] if kind == "qwen3" else ["query"]
    source = lora_folder(kind, module, target_modules=sites, modules_to_save=[module])
    model = ah.load_backbone(str(tiny(kind)), library=library)
    with pytest.raises(UnsupportedAdapterError, match=r"modules_to_save holds .*trained copy"):
        model.use(library.add(source, name="x").name)


def test_a_backbone_that_lacks_the_adapted_layers_is_not_noted_as_its_own(
    tiny, lora_folder, tmp_path
):
    library = ah.Library(tmp_path / "library")
    with pytest.raises(BackboneMismatchError, match="it has no weight for"):
        library.add(lora_folder("bert", "one"), name="x", backbone=str(tiny("qwen3")))
    assert library.names() == []
    for kind in ("bert", "qwen3", "gpt2", "mt5", "m2m100", "modernbert"):
        info = library.add(lora_folder(kind, "one"), name=kind, backbone=str(tiny(kind)))
        assert info.fingerprint


def test_labels_must_be_as_many_as_the_heads_outputs(lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    source = lora_folder("qwen3", "cls", labels=2)
    for labels in (["a", "b", "c"], "ab"):
        with pytest.raises(AdapterFileError, match="no tensor of the head has that many rows"):
            library.add(source, name="x", labels=labels)
    assert library.add(source, name="x", labels=["a", "b"]).labels == ("a", "b")


def test_a_regression_head_has_no_labels(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "stars", labels=1), name="stars")
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    with pytest.raises(HeadError, match="one output, a regression"):
        model.classify("lovely", "stars")


def test_saved_again_in_another_precision_is_as_written(model, tmp_path):
    stored = model.adapter("de").map(lambda tensor: tensor.bfloat16())
    stored.save(model.library.root / "half")
    assert model.library.verify("half") == ["no content hash was stored"]
    again = ah.Library(tmp_path / "other").add(model.library.root / "half")
    assert ah.Library(tmp_path / "other").verify(again.name) == []


def test_an_export_over_an_export_leaves_one_whole_adapter(model, tmp_path):
    folder = model.export("de", tmp_path / "out")
    model.export("2*de", folder)
    assert {path.name for path in tmp_path.iterdir()} == {"library", "out"}
    assert "The sum of 2.0*de" in (folder / "README.md").read_text()
