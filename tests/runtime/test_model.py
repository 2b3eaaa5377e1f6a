"""`AdaptedModel`: names to rows, heads, generation, exclusions; every row as if it were alone."""

import pytest
import torch
from conftest import DECODERS, ENCODERS, SEQ2SEQ, TEXTS
from helpers import in_threads

import adapters_hub as ah
from adapters_hub.errors import (
    AdapterFileError,
    AmbiguousTermError,
    BackboneError,
    BackboneMismatchError,
    HeadError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.runtime.adapter import Adapter


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), language="de")
    library.add(
        lora_folder("qwen3", "two", r=2, target_modules=["q_proj", "up_proj"]), domain="hotel"
    )
    library.add(lora_folder("qwen3", "cls", labels=2), name="mood", labels=["bad", "good"])
    return library


@pytest.fixture
def model(tiny, library):
    return ah.load_backbone(str(tiny("qwen3")), library=library)


MIXED = ["de + hotel", None, "hotel - 0.5*de", "de"]


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS, *SEQ2SEQ])
def test_row_of_a_mixed_batch_equals_that_row_alone(kind, tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path)
    library.add(lora_folder(kind, "one"), language="de")
    library.add(lora_folder(kind, "two", r=2), domain="hotel")
    model = ah.load_backbone(str(tiny(kind)), library=library)
    model.backbone.model.double()  # an untrained model magnifies what float32 rounds off
    if kind in SEQ2SEQ:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    with torch.no_grad():
        mixed = model(**inputs, adapters=MIXED).logits
        for row, blend in enumerate(MIXED):
            alone = {key: value[row : row + 1] for key, value in inputs.items()}
            torch.testing.assert_close(
                mixed[row : row + 1], model(**alone, adapters=[blend]).logits, atol=1e-9, rtol=1e-9
            )


def test_a_bare_row_is_the_backbone_itself(model, inputs, tiny):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny("qwen3")).eval()
    with torch.no_grad():
        want = plain(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, want)
        torch.testing.assert_close(model(**inputs, adapters=MIXED).logits[1], want[1])


def test_use_swaps_and_a_failed_use_changes_nothing(model, inputs):
    model.use("de")
    with torch.no_grad():
        german = model(**inputs).logits
        with pytest.raises(NotFoundError, match=r'no adapter for "klingon \(tlh\)".*closest'):
            model.use("de + klingon")
        assert str(model.active) == "de"
        torch.testing.assert_close(model(**inputs).logits, german)
        assert (model.use(None)(**inputs).logits - german).abs().max() > 1e-3


def test_blends_weigh_and_cancel(model, inputs):
    with torch.no_grad():
        bare = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, adapters="de - de").logits, bare)
        twice = model(**inputs, adapters="de + de").logits
        torch.testing.assert_close(model(**inputs, adapters=2 * ah.Blend.of("de")).logits, twice)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"use_cache": False},
        {"do_sample": True, "top_k": 1},
    ],
)
def test_generation_of_a_mixed_batch_equals_each_row_alone(model, options):
    texts = TEXTS[:4]
    mixed = model.generate(texts, adapters=MIXED, max_new_tokens=6, **options)
    alone = [
        model.generate(text, adapters=[blend], max_new_tokens=6, **options)[0]
        for text, blend in zip(texts, MIXED, strict=True)
    ]
    assert mixed == alone
    assert len(set(mixed)) > 1


def test_encoder_decoder_generates_and_an_encoder_says_no(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path)
    library.add(lora_folder("mt5", "one"), language="de")
    model = ah.load_backbone(str(tiny("mt5")), library=library)
    both = model.generate(TEXTS[:2], adapters=["de", None], max_new_tokens=5, num_beams=2)
    assert both[1] == model.generate(TEXTS[1], max_new_tokens=5, num_beams=2)[0]
    with pytest.raises(BackboneError, match="encoder"):
        ah.load_backbone(str(tiny("bert")), library=library).generate("the room")


def test_classify_mixes_heads_with_different_labels(model, lora_folder):
    model.library.add(
        lora_folder("qwen3", "stars", labels=3), name="stars", labels=["low", "middle", "high"]
    )
    model.library.add(lora_folder("qwen3", "mood2", labels=2), name="mood2", labels=["bad", "good"])
    blends = ["mood + de", "stars", "mood2", "mood"]
    mixed = model.classify(TEXTS[:4], adapters=blends)
    for text, blend, found in zip(TEXTS[:4], blends, mixed, strict=True):
        alone = model.classify(text, adapters=blend)[0]
        assert list(found) == list(alone)
        assert found == pytest.approx(alone, abs=1e-5)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert set(mixed[1]) == {"low", "middle", "high"}
    assert set(mixed[0]) == {"bad", "good"}


def test_heads_one_a_row_or_an_error_that_names_them(model, lora_folder):
    model.library.add(lora_folder("qwen3", "mood2", labels=2), name="other", labels=["no", "yes"])
    with pytest.raises(HeadError, match=r"other \['no', 'yes'\].*labels differ"):
        model.classify("x", adapters="mood + other")
    with pytest.raises(HeadError, match="no adapter of 'de' has a task head"):
        model.classify("x", adapters="de")
    with pytest.raises(HeadError, match="mood"):
        model.export("mood + other", "unused")


def test_ambiguous_and_unknown_terms(model, lora_folder):
    model.library.add(lora_folder("qwen3", "one"), name="it-wiki", language="it")
    model.library.add(lora_folder("qwen3", "two"), name="it-help", domain="it")
    with pytest.raises(AmbiguousTermError, match=r"it-wiki.*it-help.*lang:it"):
        model.use("it")
    assert model.use("lang:it").active.terms == ("it-wiki",)
    assert model.use("domain:it").active.terms == ("it-help",)


def test_an_adapter_of_another_backbone_shows_both_fingerprints(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path)
    library.add(lora_folder("llama", "one"), name="de", language="de", backbone=str(tiny("llama")))
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    with pytest.raises(BackboneMismatchError, match=r"(?s)adapter: +llama-.*backbone: +qwen3-"):
        model.use("de")
    forced = ah.load_backbone(str(tiny("qwen3")), library=library, check_backbone=False)
    with pytest.raises(BackboneMismatchError, match=r"inputs|no such linear layer"):
        forced.use("de")


def test_a_wrong_shape_names_the_site(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path)
    library.add(lora_folder("bert", "one"), name="de", language="de")
    model = ah.load_backbone(str(tiny("gpt2")), library=library, check_backbone=False)
    with pytest.raises(BackboneMismatchError, match="no such linear layer"):
        model.use("de")


def test_load_takes_the_backbone_that_adapters_name(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path)
    name = str(tiny("qwen3"))
    library.add(lora_folder("qwen3", "one"), language="de", backbone=name)
    library.add(lora_folder("qwen3", "two"), domain="hotel", backbone=name)
    model = ah.load("German", domain="hotel", library=library)
    assert str(model.active) == "de + hotel"
    assert ah.load("de-AT", library=library).active.terms == ("de",)
    with pytest.raises(NotFoundError):
        ah.load("sw", library=library)
    with pytest.raises(NotFoundError):
        ah.load(library=library)


def test_wrong_number_of_blends_and_wrong_bits(model, inputs, tiny):
    with pytest.raises(SettingsError, match="3 blends in `adapters` for 4 rows"):
        model(**inputs, adapters=["de", None, "de"])
    with pytest.raises(SettingsError, match="32, 16, 8, 4"):
        ah.load_backbone(str(tiny("qwen3")), bits=5)


def test_backbones_that_cannot_be_had_say_so(tmp_path):
    with pytest.raises(BackboneError, match=r"no such folder.*Without network"):
        ah.load_backbone("someone/no-such-model-here")
    with pytest.raises(BackboneError, match=r"no config.json"):
        ah.load_backbone(str(tmp_path))


def test_a_damaged_file_found_on_use_is_named(model):
    weights = next(model.library.root.glob("de/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises((AdapterFileError, NotFoundError), match="de"):
        model.use("de")
    assert "truncated" in model.library.verify("de")[0]


def test_two_threads_use_two_blends(model, inputs):
    with torch.no_grad():
        want = {blend: model(**inputs, adapters=blend).logits for blend in ("de", "hotel")}
    wrong = []

    def work(blend):
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(
                    model(**inputs, adapters=blend).logits, want[blend], atol=1e-5
                ):
                    wrong.append(blend)

    in_threads(work, want)
    assert not wrong


def test_a_failed_forward_leaves_no_plan(model, inputs):
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever transformers raises
        model(input_ids=inputs["input_ids"] + 10_000, adapters="de")
    assert model.bank.current() is None
    with torch.no_grad():
        assert torch.isfinite(model(**inputs, adapters="de").logits).all()


def test_evicted_adapters_come_back_from_the_library(tiny, library, inputs):
    from adapters_hub.backbone.loading import read_backbone
    from adapters_hub.model import AdaptedModel

    model = AdaptedModel(read_backbone(str(tiny("qwen3"))), library, memory=1)
    with torch.no_grad():
        first = model(**inputs, adapters="de").logits
        model(**inputs, adapters="hotel")
        assert len(model.bank) == 1
        torch.testing.assert_close(model(**inputs, adapters="de").logits, first)


def test_an_adapter_added_from_memory_hides_the_librarys(model, inputs):
    own = model.adapter("de").map(torch.zeros_like)
    fresh = Adapter(own.info, own.factors, own.scaling)
    with torch.no_grad():
        bare = model(**inputs).logits
        model.add(fresh)
        torch.testing.assert_close(model(**inputs, adapters="de").logits, bare)
        model.drop("de")
        assert (model(**inputs, adapters="de").logits - bare).abs().max() > 1e-3


@pytest.fixture
def small(tiny, library, lora_folder):
    """A model with room for one adapter, beside those that a call needs."""
    from adapters_hub.backbone.loading import read_backbone
    from adapters_hub.model import AdaptedModel

    library.add(lora_folder("qwen3", "three", r=3), language="fr")
    return AdaptedModel(read_backbone(str(tiny("qwen3"))), library, memory=1)


def test_one_call_may_need_more_adapters_than_there_is_room_for(small, model, inputs):
    blends = ["de", "fr", None, "hotel + de"]
    with torch.no_grad():
        want = model(**inputs, adapters=blends).logits
        torch.testing.assert_close(small(**inputs, adapters=blends).logits, want)
        small(**inputs, adapters="mood")
    assert small.bank.names() == ["mood"]


def test_the_active_blend_comes_back_after_it_was_evicted(small, inputs):
    with torch.no_grad():
        active = small.use("de")(**inputs).logits
        small(**inputs, adapters="fr")
        torch.testing.assert_close(small(**inputs).logits, active)
    with torch.no_grad():
        assert (
            len(small.classify(TEXTS, adapters=["mood", "mood + de", "mood + fr"] + ["mood"] * 2))
            == 5
        )


def test_an_adapter_from_memory_is_never_evicted(small, inputs):
    own = small.adapter("de")
    small.add(Adapter(ah.AdapterInfo(name="mine"), own.factors, own.scaling))
    with torch.no_grad():
        want = small(**inputs, adapters="mine").logits
        for name in ("fr", "hotel", "de"):
            small(**inputs, adapters=name)
        torch.testing.assert_close(small(**inputs, adapters="mine").logits, want)


def test_threads_that_evict_each_others_adapters(small, inputs):
    with torch.no_grad():
        want = {name: small(**inputs, adapters=name).logits for name in ("de", "fr", "hotel")}
    wrong = []

    def work(name):
        with torch.no_grad():
            for _ in range(15):
                got = small(**inputs, adapters=name).logits
                if not torch.allclose(got, want[name], atol=1e-5):
                    wrong.append(name)

    in_threads(work, want)
    assert not wrong


def test_what_changes_in_the_library_changes_in_use(model, inputs, lora_folder):
    with torch.no_grad():
        old = model(**inputs, adapters="de").logits
        model.library.add(
            lora_folder("qwen3", "new"), name="de", language="de", replace_existing=True
        )
        new = model(**inputs, adapters="de").logits
        assert (new - old).abs().max() > 1e-3
    model.library.remove("de")
    with pytest.raises(NotFoundError, match="de"):
        model(**inputs, adapters="de")


def test_a_closer_language_that_is_added_later_is_taken(model, lora_folder):
    assert model.use("de-AT").active.terms == ("de",)
    model.library.add(lora_folder("qwen3", "new"), name="de-AT", language="de-AT")
    assert model.use("de-AT").active.terms == ("de-AT",)


def test_an_exact_name_that_is_also_a_domain_keeps_its_head(model, lora_folder):
    model.library.add(
        lora_folder("qwen3", "c2", labels=2), name="it", language="it", labels=["n", "y"]
    )
    model.library.add(lora_folder("qwen3", "two"), name="it-help", domain="it")
    assert set(model.classify("never again", adapters="lang:it")[0]) == {"n", "y"}


def test_checkpointing_does_not_change_generation(model):
    want = model.generate(TEXTS[:2], adapters=["de", None], max_new_tokens=6)
    model.enable_gradient_checkpointing()
    assert model.generate(TEXTS[:2], adapters=["de", None], max_new_tokens=6) == want
    assert not model.merge("de").is_gradient_checkpointing


def test_a_second_backward_through_checkpoints(model, inputs):
    model.enable_gradient_checkpointing()
    own = model.adapter("de")
    trained = Adapter(ah.AdapterInfo(name="t"), own.factors, own.scaling).trainable()
    model.add(trained, trained=True)
    loss = model(**inputs, adapters=["t", None, "t + hotel", "t"]).logits.square().mean()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in trained.parameters()]
    loss.backward()
    for once, twice in zip(first, trained.parameters(), strict=True):
        torch.testing.assert_close(twice.grad, 2 * once)


def test_merging_leaves_calls_under_way_alone(model, inputs, monkeypatch):
    import copy

    with torch.no_grad():
        want = model(**inputs, adapters="de").logits
    meanwhile = []
    real = copy.deepcopy

    def watched(*arguments):
        made = real(*arguments)
        if not meanwhile:
            with torch.no_grad():
                meanwhile.append(model(**inputs, adapters="de").logits)
        return made

    monkeypatch.setattr(copy, "deepcopy", watched)
    merged = model.merge("de")
    torch.testing.assert_close(meanwhile[0], want)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())


def test_what_inference_mode_loaded_can_be_differentiated_through(model, inputs):
    with torch.inference_mode():
        want = model(**inputs, adapters=MIXED).logits
    model.backbone.model.get_input_embeddings().weight.requires_grad_(True)
    logits = model(**inputs, adapters=MIXED).logits
    logits.square().mean().backward()
    torch.testing.assert_close(logits.detach(), want.clone())


def test_long_texts_are_cut_at_the_positions_there_are(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("xlm-roberta", "cls", labels=2), name="mood")
    model = ah.load_backbone(str(tiny("xlm-roberta")), library=library)
    assert model.backbone.max_tokens == 129
    assert len(model.classify("room " * 400, "mood")) == 1


def test_rows_are_counted_by_the_tokens_not_by_what_comes_first(model, inputs):
    positions = torch.arange(9)[None]
    with torch.no_grad():
        got = model(position_ids=positions, **inputs, adapters=MIXED).logits
        torch.testing.assert_close(got, model(**inputs, adapters=MIXED).logits)
    with pytest.raises(SettingsError, match="by name"):
        model()


def test_weights_may_be_mappings(model, inputs):
    with torch.no_grad():
        want = model(**inputs, adapters="0.25*de").logits
        torch.testing.assert_close(model(**inputs, adapters={"de": 0.25}).logits, want)
        each = [{"de": 0.25}] * 4
        torch.testing.assert_close(model(**inputs, adapters=each).logits, want)


def test_a_prompt_longer_than_the_positions_is_refused(model):
    limit = model.backbone.max_tokens
    with pytest.raises(BackboneError, match="has positions"):
        model.generate("room " * limit, adapters="de", max_new_tokens=1)
    with pytest.raises(BackboneError, match=f"and {limit} new ones"):
        model.generate("room", adapters="de", max_new_tokens=limit)


def test_checkpointing_with_padding_and_a_cache_by_default(tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("gpt2", "one"), name="de", language="de")
    model = ah.load_backbone(str(tiny("gpt2")), library=library)
    trained = model.adapter("de").trainable()
    trained.info = ah.AdapterInfo(name="t")
    model.add(trained, trained=True)
    found = []
    for _ in range(2):
        model(**inputs, adapters=["t", None, "t", "t"]).logits.square().mean().backward()
        found.append([p.grad.clone() for p in trained.parameters()])
        for parameter in trained.parameters():
            parameter.grad = None
        model.enable_gradient_checkpointing()
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_checkpointing_recomputes_each_layer_once_and_only_for_gradients(model, inputs):
    model.enable_gradient_checkpointing()
    trained = model.adapter("de").trainable()
    trained.info = ah.AdapterInfo(name="t")
    model.add(trained, trained=True)
    calls = []
    for layer in model.backbone.base.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    layers = len(model.backbone.base.layers)
    for _ in range(2):
        calls.clear()
        model(**inputs, adapters="t").logits.square().mean().backward()
        assert len(calls) == 2 * layers
        calls.clear()
        with torch.no_grad():
            model(**inputs, adapters="t")
        assert len(calls) == layers


def test_the_same_tensors_at_another_scaling_are_another_adapter(
    tiny, tmp_path, inputs, lora_folder
):
    library = ah.Library(tmp_path)
    library.add(lora_folder("qwen3", "one", lora_alpha=8), name="x")
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    with torch.no_grad():
        model(**inputs, adapters="x")
        library.add(lora_folder("qwen3", "one", lora_alpha=80), name="x", replace_existing=True)
        got = model(**inputs, adapters="x").logits
        fresh = ah.load_backbone(str(tiny("qwen3")), library=library)
        torch.testing.assert_close(got, fresh(**inputs, adapters="x").logits)


def test_load_takes_a_language_whose_name_is_also_a_domain(tiny, tmp_path, lora_folder):
    library, name = ah.Library(tmp_path), str(tiny("qwen3"))
    library.add(lora_folder("qwen3", "one"), name="it", language="it", backbone=name)
    library.add(lora_folder("qwen3", "two"), name="it-help", domain="it", backbone=name)
    assert ah.load("it", library=library).active.terms == ("it",)
    assert ah.load("it", domain="it", library=library).active.terms == ("it", "it-help")
