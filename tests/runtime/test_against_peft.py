"""PEFT is the oracle: what it saves we run, what we save it runs, to the same logits."""

import pytest
import torch
from conftest import DECODERS, ENCODERS, SEQ2SEQ, auto_class, in_double
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

import adapters_hub as ah
from adapters_hub.tasks.classification import Classification

ALL = (*ENCODERS, *DECODERS, *SEQ2SEQ)
WITH_CLASSIFIER = (*ENCODERS, *DECODERS, "mt5")


@pytest.fixture
def library(tmp_path):
    return ah.Library(tmp_path / "library")


def ours(kind, tiny, library, **options):
    return ah.load_backbone(str(tiny(kind)), library=library, **options)


def decoder_inputs(kind, inputs):
    return {"decoder_input_ids": inputs["input_ids"][:, :5]} if kind in SEQ2SEQ else {}


def class_logits(model, inputs, adapters, labels=3):
    task = Classification(tuple(f"label {n}" for n in range(labels)))
    blends = model.blends(len(inputs["input_ids"]), adapters)
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        return task.logits(model, inputs, model.heads(blends))


@pytest.mark.parametrize("kind", ALL)
def test_language_model_adapter_gives_pefts_logits(kind, tiny, lora_folder, library, inputs):
    options = {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2}}
    source = lora_folder(kind, "one", **options)
    more = decoder_inputs(kind, inputs)
    peft = PeftModel.from_pretrained(auto_class(kind).from_pretrained(tiny(kind)), source)
    peft.eval().double()
    library.add(source, name="one")
    model = in_double(ours(kind, tiny, library).use("one"))
    with torch.no_grad():
        want, bare = (
            peft(**inputs, **more).logits,
            model(**inputs, **more, adapters=[None] * 4).logits,
        )
        got = model(**inputs, **more).logits
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    assert (bare - want).abs().max() > 1e-2


@pytest.mark.parametrize("kind", WITH_CLASSIFIER)
def test_classifier_gives_pefts_logits_and_ours_load_in_peft(
    kind, tiny, lora_folder, library, inputs, tmp_path
):
    source = lora_folder(kind, "cls", labels=3)
    fresh = lambda: AutoModelForSequenceClassification.from_pretrained(tiny(kind), num_labels=3)
    library.add(source, name="cls")
    model = ours(kind, tiny, library)
    got = class_logits(model, inputs, "cls")
    with torch.no_grad():
        want = PeftModel.from_pretrained(fresh(), source).eval()(**inputs).logits
        saved = model.adapter("cls").save(tmp_path / "ours")
        back = PeftModel.from_pretrained(fresh(), saved).eval()(**inputs).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2", "mt5"])
def test_sum_is_pefts_exact_cat(kind, tiny, lora_folder, library, inputs):
    sources = {name: lora_folder(kind, name, r=rank) for name, rank in (("one", 4), ("two", 2))}
    for name, source in sources.items():
        library.add(source, name=name)
    base = auto_class(kind).from_pretrained(tiny(kind))
    peft = PeftModel.from_pretrained(base, sources["one"], adapter_name="one")
    peft.load_adapter(sources["two"], adapter_name="two")
    peft.add_weighted_adapter(["one", "two"], [1.0, 0.5], "both", combination_type="cat")
    peft.set_adapter("both")
    more = decoder_inputs(kind, inputs)
    with torch.no_grad():
        want = peft.eval().double()(**inputs, **more).logits
        model = in_double(ours(kind, tiny, library).use("one + 0.5*two"))
        got = model(**inputs, **more).logits
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", WITH_CLASSIFIER)
def test_export_and_merge_equal_the_blend(kind, tiny, lora_folder, library, inputs, tmp_path):
    library.add(lora_folder(kind, "cls", labels=3), name="cls")
    library.add(lora_folder(kind, "one", r=2), name="one")
    model = ours(kind, tiny, library)
    want = class_logits(model, inputs, "cls - 0.7*one")
    folder = model.export("cls - 0.7*one", tmp_path / "both")
    base = AutoModelForSequenceClassification.from_pretrained(tiny(kind), num_labels=3)
    with torch.no_grad():
        exported = PeftModel.from_pretrained(base, folder).eval()(**inputs).logits
        merged = model.merge("cls - 0.7*one")(**inputs).logits
    torch.testing.assert_close(exported, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(class_logits(model, inputs, "cls - 0.7*one"), want)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2", "m2m100"])
def test_export_and_merge_without_a_head(kind, tiny, lora_folder, library, inputs, tmp_path):
    for name in ("one", "two"):
        library.add(lora_folder(kind, name), name=name)
    model = ours(kind, tiny, library)
    more = decoder_inputs(kind, inputs)
    folder = model.export("one + two", tmp_path / "both", name="both")
    base = auto_class(kind).from_pretrained(tiny(kind))
    with torch.no_grad():
        want = model(**inputs, **more, adapters="one + two").logits
        exported = PeftModel.from_pretrained(base, folder).eval()(**inputs, **more).logits
        merged = model.merge("one + two")
        assert type(merged) is type(base)
        torch.testing.assert_close(exported, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged(**inputs, **more).logits, want, atol=1e-4, rtol=1e-4)
    assert ah.Library(tmp_path / "other").add(folder).name == "both"


def test_a_merged_output_layer_is_the_same_after_saving(
    tiny, lora_folder, library, inputs, tmp_path
):
    """Its weight and its bias are shared with others, and transformers saves what is shared once."""
    folder = lora_folder("bert", "out", target_modules=["decoder", "query"],
                         save={"save_embedding_layers": False})  # fmt: skip
    library.add(folder, name="out")
    model = ours("bert", tiny, library)
    merged = model.merge("out")
    merged.save_pretrained(tmp_path / "merged")
    again = auto_class("bert").from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        want = model(**inputs, adapters="out").logits
        torch.testing.assert_close(merged(**inputs).logits, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again(**inputs).logits, want, atol=1e-5, rtol=1e-5)


def test_an_adapted_pooler_is_no_obstacle_to_merging(tiny, library, inputs, tmp_path):
    base = AutoModel.from_pretrained(tiny("bert"))
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="FEATURE_EXTRACTION")
    adapted = get_peft_model(base, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(tmp_path / "pooled")
    library.add(tmp_path / "pooled", name="pooled")
    model = ours("bert", tiny, library)
    with torch.no_grad():
        want = model(**inputs, adapters="pooled").logits
        torch.testing.assert_close(
            model.merge("pooled")(**inputs).logits, want, atol=1e-5, rtol=1e-5
        )


def test_an_adapter_saved_for_one_class_runs_under_another(tiny, lora_folder, library, inputs):
    """A site's name does not depend on the class it was trained in."""
    library.add(lora_folder("bert", "cls", labels=3), name="cls")
    model = ours("bert", tiny, library)
    with torch.no_grad():
        changed = model(**inputs, adapters="cls").logits
        bare = model(**inputs).logits
    assert (changed - bare).abs().max() > 1e-2
