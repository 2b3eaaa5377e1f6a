"""A backbone that is moved, cast or split: its adapters go where its layers are."""

import pytest
import torch

import adapters_hub as ah
from adapters_hub.errors import BackboneError, SettingsError


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    return library


def test_casting_is_as_loading_at_that_precision(tiny, library, inputs):
    model = ah.load_backbone(tiny("qwen3"), library=library)
    model.add(model.adapter("one").map(torch.clone))
    with torch.no_grad():
        whole = model(**inputs, adapters="one").logits
    assert model.to(torch.bfloat16) is model
    assert (model.dtype, model.backbone.bits) == (torch.bfloat16, 16)
    half = ah.load_backbone(tiny("qwen3"), library=library, dtype="bfloat16")
    with torch.no_grad():
        want = half(**inputs, adapters="one").logits
        torch.testing.assert_close(model(**inputs, adapters="one").logits, want)
    assert (whole - want).abs().max() > 0
    assert model.to("cpu", dtype="float32").dtype == torch.float32
    assert model.to(torch.device("cpu")).device == torch.device("cpu")


def test_what_cannot_be_moved_or_cast_says_so(tiny, library):
    model = ah.load_backbone(tiny("qwen3"), library=library)
    with pytest.raises(SettingsError, match=r"dtype='torch\.int8'"):
        model.to(torch.int8)
    with pytest.raises(SettingsError, match="is for loading"):
        model.to(dtype="auto")
    live = model.add(model.adapter("one").trainable(), trained=True)
    with pytest.raises(BackboneError, match="trains 'one'"):
        model.to("cpu", torch.bfloat16)
    assert model.to("cpu") is model  # it is there
    model.drop(live.name)
    model.compile(backend="eager")
    with pytest.raises(BackboneError, match="is compiled"):
        model.to(torch.bfloat16)


def test_quantised_weights_are_not_cast(tiny, library):
    pytest.importorskip("bitsandbytes")
    model = ah.load_backbone(tiny("qwen3"), library=library, bits=8)
    assert model.to("cpu") is model
    with pytest.raises(BackboneError, match="8-bit weights, which cannot be cast"):
        model.to(torch.float16)


def test_accelerates_hooks_change_nothing(tiny, library, inputs):
    """They stand around every forward of a split model; here all of it is on the CPU."""
    import transformers
    from accelerate import dispatch_model

    given = transformers.AutoModelForCausalLM.from_pretrained(tiny("qwen3"))
    hooked = ah.load_backbone(dispatch_model(given, {"": "cpu"}, force_hooks=True), library=library)
    assert "forward" in vars(given)
    plain = ah.load_backbone(tiny("qwen3"), library=library)
    texts = ["never again", "lovely view near the station"]
    with torch.no_grad():
        got, want = (m(**inputs, adapters=["one", None] * 2).logits for m in (hooked, plain))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(hooked.embed(texts, "one"), plain.embed(texts, "one"))
    assert hooked.generate(texts, "one") == plain.generate(texts, "one")


# ── on a GPU ─────────────────────────────────────────────────────────────────────────────────────

needs_gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("start", [pytest.param("cpu", marks=needs_gpu)])
def test_resident_adapters_follow_the_backbone(start, tiny, library, inputs):
    model = ah.load_backbone(tiny("qwen3"), library=library, device=start)
    model.add(model.adapter("one").map(torch.clone))
    with torch.no_grad():
        want = model(**inputs, adapters="one").logits
        model.to("cuda")
        moved = {key: value.cuda() for key, value in inputs.items()}
        got = model(**moved, adapters="one").logits
        assert got.device.type == model.device.type == "cuda"
        torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-4)
        assert all(a.is_cuda for a, _ in model.adapter("name:one").factors.values())
        back = model.to("cpu")(**inputs, adapters="one").logits
    torch.testing.assert_close(back, want)


@pytest.mark.parametrize("first", [pytest.param("cuda:0", marks=needs_gpu)])
def test_a_split_backbone_adds_and_trains_adapters_where_its_layers_are(
    first, tiny, library, inputs
):
    """Layers on a GPU and on the CPU, which here is no place of offloading."""
    import transformers
    from accelerate import dispatch_model

    whole = ah.load_backbone(tiny("qwen3"), library=library, device="cpu")
    given = transformers.AutoModelForCausalLM.from_pretrained(tiny("qwen3"))
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": first, "model.norm": first, "lm_head": "cpu"}
    split = ah.load_backbone(dispatch_model(given, places, main_device="cpu"), library=library)
    assert {p.device.type for p in split.backbone.model.parameters()} == {"cpu", "cuda"}
    gradients = []
    for model in (whole, split):
        live = model.add(model.adapter("one").trainable(), trained=True)
        logits = model(**inputs, adapters=["one", None, "one", "one"]).logits
        logits.cpu().log_softmax(-1)[:, :, 7].sum().backward()
        gradients.append([tensor.grad for tensor in live.parameters()])
        model.drop("one")
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-3)
    texts = ["never again", "lovely view near the station"]
    torch.testing.assert_close(
        split.embed(texts, "one").cpu(), whole.embed(texts, "one"), atol=1e-4, rtol=1e-4
    )
    assert split.generate(texts, "one") == whole.generate(texts, "one")
    with pytest.raises(BackboneError, match="split over several devices"):
        split.to(first)


@pytest.mark.parametrize("first", [pytest.param(0, marks=needs_gpu)])
def test_layers_that_are_offloaded_are_brought_in(first, tiny, library, inputs):
    places = {"model": first, "lm_head": first, "model.layers.1": "cpu"}
    away = ah.load_backbone(tiny("qwen3"), library=library, device_map=places)
    whole = ah.load_backbone(tiny("qwen3"), library=library, device="cpu")
    assert away.backbone.offloaded
    moved = {key: value.to(away.device) for key, value in inputs.items()}
    with torch.no_grad():
        got = away(**moved, adapters=["one", None] * 2).logits
        want = whole(**inputs, adapters=["one", None] * 2).logits
    torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-4)
