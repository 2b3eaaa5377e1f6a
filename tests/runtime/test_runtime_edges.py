"""Where rows could be mistaken, spoilt or stale without anybody noticing."""

import pytest
import torch
from conftest import TEXTS
from transformers import GenerationConfig

import adapters_hub as ah
from adapters_hub.errors import (
    AdapterFileError,
    AdaptersHubError,
    AmbiguousTermError,
    BackboneError,
    BlendError,
    HeadError,
    LanguageError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.inference import generate as generation
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import ACTIVE


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    library.add(lora_folder("qwen3", "two", r=2), name="two")
    return library


@pytest.fixture
def model(tiny, library):
    return ah.load_backbone(str(tiny("qwen3")), library=library)


def logits(model, inputs, adapters=ACTIVE):
    with torch.no_grad():
        return model(**inputs, adapters=adapters).logits


def random_adapter(model, name, std=0.3):
    torch.manual_seed(len(name))
    factors = {}
    for site in model.backbone.body_sites:
        layer = model.backbone.sites[site]
        a = torch.randn(2, layer.in_features) * std
        factors[site] = a, torch.randn(layer.out_features, 2) * std
    return Adapter(AdapterInfo(name), factors, dict.fromkeys(factors, 1.0))


@pytest.fixture
def longformer(tmp_path):
    """An encoder that computes with tokens first, in windows."""
    from conftest import tiny_tokenizer
    from transformers import LongformerConfig, LongformerForMaskedLM

    config = LongformerConfig(
        vocab_size=256, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, attention_window=4, max_position_embeddings=80,
    )  # fmt: skip
    LongformerForMaskedLM(config).save_pretrained(tmp_path / "longformer")
    tiny_tokenizer().save_pretrained(tmp_path / "longformer")
    return ah.load_backbone(str(tmp_path / "longformer"), library=tmp_path / "none")


def test_a_model_that_puts_tokens_first_takes_one_blend_a_batch(longformer, inputs):
    longformer.add(random_adapter(longformer, "one"))
    alone = logits(longformer, {k: v[1:2] for k, v in inputs.items()}, "one")
    both = logits(longformer, inputs, "one")
    torch.testing.assert_close(both[1:2], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(BackboneError, match="does not see its rows one by one"):
        logits(longformer, inputs, ["one", None, None, None])
    with pytest.raises(BackboneError, match="does not see its rows one by one"):
        logits(longformer, inputs, [["one"] * inputs["input_ids"].shape[1], None, None, None])


def test_a_backbone_that_cannot_be_probed_takes_one_blend_a_batch(
    tiny, library, monkeypatch, inputs
):
    from adapters_hub.backbone.backbone import Backbone

    def probe(*given):
        raise IndexError("too few tokens")

    monkeypatch.setattr(Backbone, "probe", probe)
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    want = logits(model, inputs, "one")
    monkeypatch.undo()
    whole = ah.load_backbone(str(tiny("qwen3")), library=library)
    torch.testing.assert_close(want, logits(whole, inputs, "one"), atol=1e-5, rtol=1e-5)
    with pytest.raises(BackboneError, match="one blend for all rows"):
        logits(model, inputs, ["one", None, None, None])


def test_numbers_that_overflow_stay_in_their_own_rows(model, inputs):
    want = logits(model, inputs, ["one", "two", None, "one"])
    evil = random_adapter(model, "evil")
    evil.factors = {s: (torch.full_like(a, 3e38), b) for s, (a, b) in evil.factors.items()}
    model.add(evil)
    got = logits(model, inputs, ["one", "two", None, "evil"])
    assert not torch.isfinite(got[3]).all()
    torch.testing.assert_close(got[:3], want[:3], atol=1e-5, rtol=1e-5)


def test_a_resolved_blend_means_what_it_meant(tiny, tmp_path, lora_folder, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "a"), name="it", language="it")
    library.add(lora_folder("qwen3", "b"), name="it-help", domain="it")
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    with pytest.raises(AmbiguousTermError):
        model.use("it")
    want = logits(model.use("lang:it"), inputs)
    torch.testing.assert_close(logits(model, inputs, model.active), want)
    torch.testing.assert_close(logits(model, inputs, [model.active] * 4), want)
    model.use(model.resolve("lang:it"))
    assert model.export(model.active, tmp_path / "out").is_dir()
    assert isinstance(model.merge(model.active), torch.nn.Module)
    assert str(model.active) == "it"


def test_the_active_blend_follows_the_library(model, library, lora_folder, inputs):
    first = logits(model.use("one"), inputs)
    library.add(lora_folder("qwen3", "other", r=3), name="one", replace_existing=True)
    second = logits(model, inputs)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(logits(model, inputs, "one"), second)
    library.remove("one")
    with pytest.raises(NotFoundError):
        logits(model, inputs)


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"generation_config": GenerationConfig(max_new_tokens=3)}, {}),
        ({"max_new_tokens": None, "generation_config": GenerationConfig(max_new_tokens=3)}, {}),
        ({"num_beams": None, "max_new_tokens": 3}, {}),
        ({}, {"max_new_tokens": 3}),
    ],
)
def test_lengths_come_from_every_place_transformers_knows(model, options, own):
    want = model.generate(TEXTS, adapters="one", max_new_tokens=3)
    for key, value in own.items():
        setattr(model.backbone.model.generation_config, key, value)
    assert model.generate(TEXTS, adapters="one", **options) == want
    assert model.generate(TEXTS, adapters="one", max_new_tokens=6) != want


def test_a_merged_view_runs_nothing_bound_to_the_model_it_is_a_view_of(model, monkeypatch):
    monkeypatch.setattr(generation, "merging_pays", lambda *_: True)
    want = model.generate(TEXTS, adapters="one", max_new_tokens=4)
    model.drop("one")  # and so the view with it
    whole = model.backbone.model
    whole._compiled_call = lambda *args, **kwargs: pytest.fail("the original was called")
    view = model.merged_view(model.plan([model.resolve("one")]), model.resolve("one"))
    assert not hasattr(view, "_compiled_call")
    del whole._compiled_call
    assert model.generate(TEXTS, adapters="one", max_new_tokens=4) == want


def test_a_merged_view_is_made_anew_when_the_backbone_changes(model, monkeypatch):
    monkeypatch.setattr(generation, "merging_pays", lambda *_: True)
    blend = model.resolve("one")
    view = model.merged_view(model.plan([blend]), blend)
    with torch.no_grad():
        model.backbone.sites["layers.0.mlp.up_proj"].weight.mul_(0.5)
    assert model.merged_view(model.plan([blend]), blend) is not view
    model.backbone.model.double()
    assert not model.can_merge(model.plan([blend]))
    model.generate(TEXTS, adapters="one", max_new_tokens=2)


@pytest.mark.slow
def test_a_model_may_be_compiled_inside_a_block(model, inputs):
    want = logits(model, inputs, "two")
    with model.adapted(4, "one"):
        model.compile(slots=1, rank=4, backend="eager")
    torch.testing.assert_close(logits(model, inputs, "two"), want, atol=1e-4, rtol=1e-4)


def test_variants_that_share_their_factors_count_once(model):
    one = model.adapter("one")
    before = model.bank.bytes
    for n in range(5):
        info = AdapterInfo(f"variant{n}")
        model.add(Adapter(info, one.factors, dict.fromkeys(one.scaling, 0.5)))
    assert model.bank.bytes == before
    model.drop("one")
    assert model.bank.bytes == before
    for n in range(5):
        model.drop(f"variant{n}")
    assert model.bank.bytes == 0


def test_a_site_called_by_keyword_gets_its_delta(model):
    layer = model.backbone.sites["layers.0.mlp.up_proj"]
    x = torch.randn(1, 2, layer.in_features)
    with torch.no_grad(), model.adapted(1, "one"):
        torch.testing.assert_close(layer(input=x), layer(x))


@pytest.mark.parametrize(
    "text",
    [
        '{"__metadata__":{},"__metadata__":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":{},\u00a0"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_headers_that_other_readers_refuse_are_refused(tmp_path, text):
    from helpers import raw_safetensors

    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(text, b"\0" * 4))
    with pytest.raises(AdapterFileError):
        tensorfile.read_header(path)


def test_files_that_differ_in_numbers_and_metadata_share_a_layout(tmp_path):
    from helpers import raw_safetensors

    table = '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    layouts = set()
    for number, metadata in enumerate(({"a": "b"}, {"a": "bcd"}, {"e": "f"})):
        text = '{"__metadata__":' + str(metadata).replace("'", '"') + "," + table + " " * number
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(raw_safetensors(text, bytes([number] * 4)))
        layouts.add(id(tensorfile.read_header(path).layout))
    assert len(layouts) == 1


def test_none_is_bare_and_what_is_not_given_is_active(model, inputs):
    bare = model.backbone.model(**inputs).logits
    active = logits(model.use("one"), inputs)
    assert (active - bare).abs().max() > 1e-3
    torch.testing.assert_close(logits(model, inputs, None), bare)
    torch.testing.assert_close(logits(model, inputs, "one"), active)
    texts = ["abc"]
    assert model.generate(texts, max_new_tokens=8) == model.generate(texts, "one", max_new_tokens=8)
    assert model.generate(texts, None, max_new_tokens=8) != model.generate(texts, max_new_tokens=8)
    with pytest.raises(BlendError, match=r"'one \+ two'"):
        model.use(["one", "two"])


def test_an_optional_term_is_left_out_where_there_is_no_adapter(model, inputs, caplog):
    want = logits(model, inputs, "one")
    with caplog.at_level("INFO", logger="adapters_hub"):
        torch.testing.assert_close(logits(model, inputs, "one + absent?"), want)
        torch.testing.assert_close(logits(model, inputs, "one? + lang:sw?"), want)
        torch.testing.assert_close(logits(model, inputs, "one + absent?"), want)
    assert sum("absent" in record.message for record in caplog.records) == 1
    with pytest.raises(NotFoundError):
        model.use("one + absent")


def test_rows_get_the_adapters_of_their_languages(tiny, tmp_path, lora_folder, inputs, caplog):
    library = ah.Library(tmp_path / "library")
    name = str(tiny("qwen3"))
    for language in ("de", "fr"):
        library.add(lora_folder("qwen3", language), language=language, backbone=name)
    library.add(lora_folder("qwen3", "shop"), domain="shop", backbone=name)
    model = ah.load_backbone(name, library=library).use("shop")
    want = logits(model, inputs, ["shop + de", "shop + fr", "shop", "shop"])

    def by_language(languages, **given):
        with torch.no_grad():
            return model(**inputs, **given, languages=languages).logits

    with caplog.at_level("WARNING", logger="adapters_hub"):
        torch.testing.assert_close(by_language(["de", "fra", "sw", None]), want)
        torch.testing.assert_close(by_language(["de-AT", "French", "und", "sw"]), want)
    assert sum("'sw'" in record.message for record in caplog.records) == 1
    both = by_language("de", adapters=["shop + de", "shop", None, "de"])  # it is added once
    torch.testing.assert_close(both, logits(model, inputs, ["shop + de", "shop + de", "de", "de"]))
    with pytest.raises(SettingsError, match="2 tags in `languages` for 4 rows"):
        by_language(["de", "fr"])
    with pytest.raises(LanguageError):
        by_language("no language at all")


def test_a_cache_that_is_given_follows_its_rows(model, tiny):
    from transformers import DynamicCache

    texts = [f"the room was {word}" for word in ("quiet", "lovely", "never")]
    blends = ["two", "one", "two"]  # not in the order of their names
    expected = model.generate(texts, blends, max_new_tokens=6, min_new_tokens=6)
    ids = model.backbone.tokenizer(texts, return_tensors="pt")["input_ids"]
    cache = DynamicCache(config=model.backbone.config)
    with torch.no_grad():
        model(
            input_ids=ids[:, :-2],
            adapters=blends,
            past_key_values=cache,
            use_cache=True,
        )
    found = model.generate(texts, blends, max_new_tokens=6, min_new_tokens=6, past_key_values=cache)
    assert found == expected


def test_layers_that_act_without_being_called_are_refused(tmp_path, tiny):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=256, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=8
    )
    base = MambaForCausalLM(config)
    base.save_pretrained(tmp_path / "mamba")
    AutoTokenizer.from_pretrained(tiny("qwen3")).save_pretrained(tmp_path / "mamba")
    library = ah.Library(tmp_path / "mamba-library")
    for name, target in (("direct", "dt_proj"), ("called", "in_proj")):
        peft = get_peft_model(MambaForCausalLM(config), LoraConfig(target_modules=[target]))
        peft.save_pretrained(tmp_path / name)
        library.add(tmp_path / name, name=name)
    model = ah.load_backbone(str(tmp_path / "mamba"), library=library)
    model.use("called")
    with pytest.raises(BackboneError, match=r"dt_proj, whose weight .* without calling the layer"):
        model.use("direct")
    assert str(model.active) == "called"


def test_copies_that_peft_saves_beside_an_output_layer_are_only_copies(tmp_path, tiny):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    peft = get_peft_model(base, LoraConfig(target_modules=["q_proj", "lm_head"]))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft.eval().save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    library = ah.Library(tmp_path / "copies")
    library.add(tmp_path / "saved", name="saved")
    model = ah.load_backbone(str(tiny("llama")), library=library)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = peft(input_ids=ids).logits
    torch.testing.assert_close(model.use("saved")(input_ids=ids).logits, expected)
    file = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(file)
    (key,) = [name for name in tensors if "lora_" not in name and "lm_head" in name]
    for name, changed in (("trained", tensors[key] + 1), ("grown", torch.cat([tensors[key]] * 2))):
        save_file({**tensors, key: changed}, file, {"format": "pt"})
        library.add(tmp_path / "saved", name=name)
        with pytest.raises(AdaptersHubError, match=r"trained as a whole|its vocabulary grew"):
            model.use(name)


def test_what_a_user_types_first(model, tiny):
    import copy

    assert model.tokenizer is model.backbone.tokenizer
    assert model.config is model.backbone.config
    assert model.device == model.backbone.device == torch.device("cpu")
    assert model.eval() is model.train(False) is model.to("cpu") is model
    for wrong, said in (
        (model.train, "frozen"),
        (lambda: model.to("meta"), "device='meta'"),
        (lambda: copy.deepcopy(model), "cannot be copied"),
    ):
        with pytest.raises(BackboneError, match=said):
            wrong()


def test_without_a_head_those_that_have_one_are_named(model, library, lora_folder):
    with pytest.raises(HeadError, match=r"None in .* has one for this backbone"):
        model.classify(["a"], "one")
    library.add(lora_folder("qwen3", "mood", labels=3), name="mood", labels=["x", "y", "z"])
    with pytest.raises(HeadError, match="these have one: mood;"):
        model.classify(["a"], "one + two")
    assert model.use("one + mood").labels == ("x", "y", "z")


def test_a_damaged_adapter_is_not_taken_for_an_absent_one(tiny, library, lora_folder):
    """Nor is the closest language's taken in its place."""
    import os

    library.add(lora_folder("qwen3", "de"), name="no", language="no")
    library.add(lora_folder("qwen3", "da"), name="da", language="da")
    model = ah.load_backbone(str(tiny("qwen3")), library=library).use("da")
    weights = library.root / "da" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 4)
    fresh = ah.load_backbone(str(tiny("qwen3")), library=library)
    for term in ("da", "lang:da", "da?"):
        with pytest.raises(AdapterFileError, match="truncated"):
            fresh.use(term)
    assert str(model.active) == "da"  # what was read before stays in use
