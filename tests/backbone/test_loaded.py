"""A model that is loaded already as a backbone: itself, frozen, with its checkpoint's fingerprint."""

import gc
import logging

import pytest
import torch
import transformers
from conftest import auto_class, tiny_config, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model

import adapters_hub as ah
from adapters_hub.backbone.checkpoint import Checkpoint
from adapters_hub.backbone.identity import fingerprint_of_model
from adapters_hub.errors import BackboneError, BackboneMismatchError, SettingsError
from adapters_hub.library.fingerprint import fingerprint

KINDS = ["qwen3", "gpt2", "bert", "modernbert", "mt5", "m2m100"]


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    library.add(lora_folder("qwen3", "two", r=2), name="two")
    return library


def plain(tiny, kind="qwen3", **options):
    return auto_class(kind).from_pretrained(tiny(kind), **options)


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# ── what it gives ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_backbone_that_its_checkpoint_is(kind, tiny, tmp_path, lora_folder, inputs):
    library = ah.Library(tmp_path)
    library.add(lora_folder(kind, "one"), name="one")
    by_name = ah.load_backbone(str(tiny(kind)), library=library)
    given = plain(tiny, kind)
    model = ah.load_backbone(given, library=library)
    facts = ("name", "kind", "bits", "dtype", "fingerprint", "has_lm_head", "untrained", "attached")
    for fact in facts:
        assert getattr(model.backbone, fact) == getattr(by_name.backbone, fact), fact
    assert model.backbone.sites.keys() == by_name.backbone.sites.keys()
    assert model.tokenizer("never again") == by_name.tokenizer("never again")
    batch = dict(inputs)
    if model.backbone.kind == "encoder-decoder":
        batch["decoder_input_ids"] = inputs["input_ids"]
    blends = ["one", None, "one", "0.5*one"]
    with torch.no_grad():
        want = by_name(**batch, adapters=blends).logits
        torch.testing.assert_close(model(**batch, adapters=blends).logits, want, rtol=0, atol=0)
        bare = plain(tiny, kind).eval()(**batch).logits
        torch.testing.assert_close(given(**batch).logits, bare, rtol=0, atol=0)
        merged = model.merge("one")(**batch).logits
    torch.testing.assert_close(merged[0], want[0], atol=1e-3, rtol=1e-3)
    assert (want[0] - bare[0]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_precision_stays_and_its_fingerprint_too(dtype, tiny, library):
    given = plain(tiny, dtype=dtype)
    model = ah.load_backbone(given, library=library)
    assert {p.dtype for p in given.parameters()} == {dtype}
    assert (model.dtype, model.backbone.bits) == (dtype, 16)
    assert model.backbone.fingerprint == fingerprint(tiny("qwen3"))
    model.use("one")
    assert model.embed(["never again"]).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_stays_as_bitsandbytes_made_it(bits, tiny, library, inputs):
    pytest.importorskip("bitsandbytes")
    asked = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    given = plain(tiny, quantization_config=asked, device_map={"": "cpu"}, dtype=torch.float32)
    model = ah.load_backbone(given, library=library)
    assert (model.backbone.bits, model.dtype) == (bits, torch.float32)
    assert model.backbone.fingerprint == fingerprint(tiny("qwen3"))
    with torch.no_grad():
        bare = given(**inputs).logits
        mixed = model(**inputs, adapters=[None, "one", None, "one"]).logits
        torch.testing.assert_close(model(**inputs, adapters=None).logits, bare)
    # other rows decide with a row which of its columns 8 bits are too few for
    assert (mixed[0] - bare[0]).norm() / bare[0].norm() < 0.05
    assert (mixed[1] - bare[1]).norm() / bare[1].norm() > 0.2


def test_a_bare_encoder_with_a_made_up_pooler(tiny, tmp_path):
    """The checkpoint is a masked language model's, so the pooler in memory is random."""
    given = transformers.AutoModel.from_pretrained(tiny("bert"))
    model = ah.load_backbone(given, library=tmp_path)
    assert (model.backbone.kind, model.backbone.has_lm_head) == ("encoder", False)
    assert model.backbone.untrained == {"pooler.dense.weight", "pooler.dense.bias"}
    assert model.backbone.fingerprint == fingerprint(tiny("bert"))
    by_name = ah.load_backbone(str(tiny("bert")), library=tmp_path)
    torch.testing.assert_close(model.embed(["never again"]), by_name.embed(["never again"]))


# ── the user's object ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "bert", "mt5"])
def test_the_object_is_shared_frozen_and_left_without_a_trace(kind, tiny, tmp_path):
    given = plain(tiny, kind).train()
    before = {name: p.data_ptr() for name, p in given.named_parameters()}
    modules = [name for name, _ in given.named_modules()]
    model = ah.load_backbone(given, library=tmp_path)
    assert {n: p.data_ptr() for n, p in given.named_parameters()} == before
    assert [name for name, _ in given.named_modules()] == modules  # BERT's gets no pooler
    assert not any(p.requires_grad for p in given.parameters())
    assert not any(layer.training for layer in model.backbone.sites.values())
    assert hooks_of(given) == len(model.backbone.body_sites) + len(model.backbone.head_sites) - (
        len(model.backbone.attached)
    )
    del model
    gc.collect()
    assert hooks_of(given) == 0


def test_two_models_over_one_object_each_add_just_what_they_are_asked(
    tiny, library, lora_folder, tmp_path, inputs
):
    other = ah.Library(tmp_path / "other")
    other.add(lora_folder("qwen3", "two", r=2), name="one")  # another adapter of the same name
    given = plain(tiny)
    first, second = (ah.load_backbone(given, library=each) for each in (library, other))
    for model, each in ((first, library), (second, other)):
        alone = ah.load_backbone(str(tiny("qwen3")), library=each)
        with torch.no_grad():
            want = alone(**inputs, adapters="one").logits
            torch.testing.assert_close(model(**inputs, adapters="one").logits, want)
            merged = model.merge("one")
            torch.testing.assert_close(merged(**inputs).logits, want, atol=1e-3, rtol=1e-3)
        assert hooks_of(merged) == 0
        with pytest.raises(BackboneError, match="share"):
            model.compile(backend="eager")
    assert hooks_of(given) == 2 * len(first.backbone.sites)
    sites = len(first.backbone.sites)
    with torch.no_grad():
        want = second(**inputs, adapters="one").logits
    del first, model, alone
    gc.collect()
    assert hooks_of(given) == sites
    with torch.no_grad():
        torch.testing.assert_close(second(**inputs, adapters="one").logits, want)


# ── which backbone it is ─────────────────────────────────────────────────────────────────────────


def test_changed_weights_are_another_backbone(tiny, library, caplog):
    given = plain(tiny)
    with torch.no_grad():
        given.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    with caplog.at_level(logging.WARNING):
        model = ah.load_backbone(given, library=library)
    assert model.backbone.fingerprint != fingerprint(tiny("qwen3"))
    assert "layers.1.mlp.up_proj.weight has other numbers" in caplog.text
    with pytest.raises(BackboneMismatchError, match="another backbone"):
        model.use("name:one")


def test_a_grown_vocabulary_is_another_backbone(tiny, library, caplog):
    given = plain(tiny)
    given.resize_token_embeddings(300)
    with caplog.at_level(logging.WARNING):
        model = ah.load_backbone(given, library=library)
    assert model.backbone.fingerprint != fingerprint(tiny("qwen3"))
    assert "embed_tokens.weight is [300, 32], there [256, 32]" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_a_configuration_has_the_fingerprint_of_what_is_saved(kind, tmp_path):
    torch.manual_seed(3)
    given = auto_class(kind).from_config(tiny_config(kind))
    model = ah.load_backbone(given, tokenizer=tiny_tokenizer(), library=tmp_path / "library")
    assert model.backbone.name == type(given).__name__
    assert model.backbone.folder is None
    given.save_pretrained(tmp_path / "saved")
    assert fingerprint(tmp_path / "saved") == model.backbone.fingerprint
    torch.manual_seed(4)
    other = auto_class(kind).from_config(tiny_config(kind))
    assert fingerprint_of_model("", other, None) != model.backbone.fingerprint


def test_a_model_of_the_hub_is_of_the_commit_it_was_loaded_at(hub, tmp_path):
    given = transformers.AutoModelForCausalLM.from_pretrained(Checkpoint(hub, "old").folder)
    given.name_or_path = given.config.name_or_path = hub
    given.config._commit_hash = "b" * 40
    model = ah.load_backbone(given, library=tmp_path)
    assert (model.backbone.name, model.backbone.revision) == (hub, "b" * 40)
    by_name = ah.load_backbone(hub, revision="old", library=tmp_path)
    assert model.backbone.fingerprint == by_name.backbone.fingerprint
    assert ah.load_backbone(given, revision="old", library=tmp_path).backbone.revision == "old"


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


def test_without_a_tokenizer_it_says_so(tmp_path):
    given = auto_class("qwen3").from_config(tiny_config("qwen3"))
    with pytest.raises(SettingsError, match="give tokenizer="):
        ah.load_backbone(given, library=tmp_path)
    given.save_pretrained(tmp_path / "saved")  # a folder without one
    again = auto_class("qwen3").from_pretrained(tmp_path / "saved")
    with pytest.raises(BackboneError, match=r"no tokenizer in it.*give tokenizer="):
        ah.load_backbone(again, library=tmp_path)
    tokenizer = tiny_tokenizer()
    model = ah.load_backbone(again, tokenizer=tokenizer, library=tmp_path)
    assert model.tokenizer is tokenizer
    by_name = ah.load_backbone(tmp_path / "saved", tokenizer=tokenizer, library=tmp_path)
    assert by_name.tokenizer is tokenizer


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bits", 8),
        ("dtype", "auto"),
        ("device", "cpu"),
        ("device_map", "auto"),
        ("attn_implementation", "eager"),
    ],
)
def test_options_of_loading_come_too_late(option, value, tiny, library):
    with pytest.raises(SettingsError, match=f"{option}: the model is loaded already"):
        ah.load_backbone(plain(tiny), library=library, **{option: value})


def test_what_is_no_plain_model_is_refused(tiny, lora_folder, library):
    peft = PeftModel.from_pretrained(plain(tiny), lora_folder("qwen3", "one"))
    held = plain(tiny)
    held.load_adapter(lora_folder("qwen3", "one"))
    compiled = plain(tiny)
    compiled.compile(backend="eager")
    offloaded = plain(tiny)
    offloaded.model.layers[1].to("meta")
    t5 = transformers.AutoModel.from_pretrained(tiny("mt5"))
    for model, said in (
        (peft, "PeftModelForCausalLM holds adapters of PEFT|PeftModel holds adapters of PEFT"),
        (peft.base_model.model, "Qwen3ForCausalLM holds adapters of PEFT"),
        (held, "holds adapters of PEFT"),
        (torch.compile(plain(tiny), backend="eager"), "is compiled"),
        (compiled, "is compiled"),
        (offloaded, r"layers\.1\..*offloaded, or made on the meta device"),
        (t5, "a MT5Model cannot be a backbone"),
        (transformers.AutoModelForSequenceClassification.from_pretrained(tiny("bert")), "heads of"),
        (transformers.BertForPreTraining.from_pretrained(tiny("bert")), "cannot be a backbone"),
        (torch.nn.Linear(2, 2), r"this is a torch\.nn\.modules\.linear\.Linear"),
        (ah.load_backbone(str(tiny("qwen3")), library=library), "this is a adapters_hub"),
    ):
        with pytest.raises(BackboneError, match=said):
            ah.load_backbone(model, library=library)
        if isinstance(model, torch.nn.Module):
            assert not hooks_of(model)
    got = ah.load_backbone(peft.unload(), library=library)
    assert got.backbone.fingerprint == fingerprint(tiny("qwen3"))


def test_peft_may_follow_and_is_as_without_us(tiny, library, lora_folder, inputs):
    """The model is not changed by the class: once ours is gone, PEFT takes it as before."""
    given = plain(tiny)
    model = ah.load_backbone(given, library=library)
    with torch.no_grad():
        want = model(**inputs, adapters="one").logits
    del model
    gc.collect()
    peft = PeftModel.from_pretrained(given, lora_folder("qwen3", "one")).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(**inputs).logits, want)
    fresh = get_peft_model(plain(tiny), LoraConfig(target_modules=["q_proj"]))
    assert isinstance(fresh, PeftModel)
