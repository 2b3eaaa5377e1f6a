"""Precision, place and attention: transformers' keywords, and what they mean beside `bits`."""

import shutil

import pytest
import torch

import adapters_hub as ah
from adapters_hub.backbone.checkpoint import Checkpoint, outline
from adapters_hub.errors import BackboneError, SettingsError


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    return library


@pytest.fixture
def half(tiny, tmp_path):
    """A checkpoint that is stored in bfloat16."""
    import transformers

    folder = tmp_path / "half"
    shutil.copytree(tiny("qwen3"), folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "dtype", "bits"),
    [
        ({}, torch.float32, 32),
        ({"bits": 16}, torch.bfloat16, 16),
        ({"dtype": "auto"}, torch.bfloat16, 16),
        ({"dtype": torch.float16}, torch.float16, 16),
        ({"dtype": "float16"}, torch.float16, 16),
        ({"dtype": "torch.float32"}, torch.float32, 32),
        ({"bits": 16, "dtype": "float16"}, torch.float16, 16),
        ({"bits": 32, "dtype": torch.float32}, torch.float32, 32),
    ],
)
def test_dtype_and_bits_say_one_precision(options, dtype, bits, half, library):
    model = ah.load_backbone(half, library=library, **options)
    assert {p.dtype for p in model.backbone.model.parameters()} == {dtype}
    assert (model.dtype, model.backbone.bits) == (dtype, bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16, None])
def test_beside_8_and_4_bits_dtype_is_of_what_is_not_quantised(bits, dtype, half, library, inputs):
    pytest.importorskip("bitsandbytes")
    model = ah.load_backbone(half, library=library, bits=bits, dtype=dtype)
    flows = torch.float32 if dtype is None else torch.bfloat16
    assert (model.dtype, model.backbone.bits) == (flows, bits)
    assert model.backbone.base.norm.weight.dtype == flows
    with torch.no_grad():
        assert model(**inputs, adapters="one").logits.dtype == flows


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 16, "dtype": "float32"}, "both say the precision"),
        ({"bits": 32, "dtype": "auto"}, "both say the precision"),
        ({"dtype": "int8"}, "choose one of auto, float32, bfloat16, float16"),
        ({"device": "cpu", "device_map": "auto"}, "both say where"),
        ({"device_map": {"model": "cpu", "lm_head": "meta"}}, "'meta' has no weights at all"),
        ({"device_map": "meta"}, "'meta' has no weights at all"),
        ({"device": "nowhere"}, "device='nowhere'"),
    ],
)
def test_options_that_contradict_each_other_say_why(options, said, half, library):
    with pytest.raises(SettingsError, match=said):
        ah.load_backbone(half, library=library, **options)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, "cpu"])
@pytest.mark.parametrize("bits", [None, 8])
def test_a_device_map_gives_what_a_device_gives(device_map, bits, tiny, library, inputs):
    if bits:
        pytest.importorskip("bitsandbytes")
    if torch.cuda.is_available() and device_map == "auto":
        pytest.skip("auto takes the GPU")
    mapped = ah.load_backbone(tiny("qwen3"), library=library, bits=bits, device_map=device_map)
    placed = ah.load_backbone(tiny("qwen3"), library=library, bits=bits, device="cpu")
    assert mapped.device == torch.device("cpu")
    with torch.no_grad():
        want = placed(**inputs, adapters="one").logits
        torch.testing.assert_close(mapped(**inputs, adapters="one").logits, want)


def test_a_device_map_that_names_no_place_is_refused(tiny, library):
    with pytest.raises(BackboneError, match="nowhere"):
        ah.load_backbone(tiny("qwen3"), library=library, device_map="nowhere")


@pytest.mark.parametrize("kind", ["qwen3", "bert", "mt5"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_given_through(attention, kind, tiny, tmp_path):
    model = ah.load_backbone(tiny(kind), library=tmp_path, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    assert model.backbone.base.config._attn_implementation == attention
    default = ah.load_backbone(tiny(kind), library=tmp_path)
    torch.testing.assert_close(
        model.embed(["never again"], pooling="mean"), default.embed(["never again"], pooling="mean")
    )
    with pytest.raises(BackboneError, match="no_such"):
        ah.load_backbone(tiny(kind), library=tmp_path, attn_implementation="no_such")


# ── where the files lie ──────────────────────────────────────────────────────────────────────────


def test_a_subfolder_holds_everything(tiny, tmp_path, library):
    shutil.copytree(tiny("qwen3"), tmp_path / "repository" / "inner")
    shutil.copytree(tiny("bert"), tmp_path / "repository", dirs_exist_ok=True)
    inner = ah.load_backbone(tmp_path / "repository", subfolder="inner", library=library)
    plain = ah.load_backbone(tiny("qwen3"), library=library)
    assert inner.backbone.fingerprint == plain.backbone.fingerprint
    assert outline(Checkpoint(str(tmp_path / "repository"), subfolder="inner")) == ("decoder", True)
    assert outline(Checkpoint(str(tmp_path / "repository"))) == ("encoder", True)
    with pytest.raises(BackboneError, match="no subfolder 'other'"):
        ah.load_backbone(tmp_path / "repository", subfolder="other", library=library)


def test_token_and_subfolder_reach_the_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, **keywords):
        asked.update(keywords, name=name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BackboneError, match="no network"):
        ah.load_backbone(hub, token="hf_secret", subfolder="a/b", library=tmp_path)
    assert (asked["name"], asked["token"], asked["revision"]) == (hub, "hf_secret", None)
    assert "a/b/*.safetensors" in asked["allow_patterns"]
    assert all(pattern.startswith("a/b/") for pattern in asked["allow_patterns"])
    assert "hf_secret" not in repr(Checkpoint(hub, token="hf_secret"))
