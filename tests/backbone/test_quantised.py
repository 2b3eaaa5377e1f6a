"""8- and 4-bit backbones through bitsandbytes: the adapter is exact on top of the rounded base."""

import importlib.util
import sys

import pytest
import torch

import adapters_hub as ah
from adapters_hub.errors import BackboneError, MissingExtraError

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path)
    library.add(lora_folder("qwen3", "one"), language="de")
    library.add(lora_folder("qwen3", "two", r=2), domain="hotel")
    return library


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_site_output_is_the_quantised_one_plus_the_delta(bits, tiny, library):
    model = ah.load_backbone(str(tiny("qwen3")), library=library, bits=bits)
    site = "layers.0.mlp.up_proj"
    layer = model.backbone.sites[site]
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        base = layer(x)
        with model.adapted(2, ["de + 0.5*hotel", None]):
            got = layer(x)
    want = base.clone()
    for name, weight in (("de", 1.0), ("hotel", 0.5)):
        adapter = model.adapter(name)
        a, b = adapter.factors[site]
        want[0] += weight * adapter.scaling[site] * (x[0] @ a.T @ b.T)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert layer.weight.dtype in (torch.int8, torch.uint8)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "close"), [(8, 0.1), (4, 0.6)])
def test_quantised_backbone_is_near_the_full_one_with_the_same_fingerprint(
    bits, close, tiny, library, inputs
):
    full = ah.load_backbone(str(tiny("qwen3")), library=library)
    small = ah.load_backbone(str(tiny("qwen3")), library=library, bits=bits)
    assert full.backbone.fingerprint == small.backbone.fingerprint
    with torch.no_grad():
        want = full(**inputs, adapters="de").logits
        got = small(**inputs, adapters="de").logits
    assert (got - want).norm() / want.norm() < close
    with pytest.raises(BackboneError, match="cannot merge"):
        small.merge("de")


def factor_gradients(model, inputs):
    live = model.adapter("hotel").trainable()
    model.add(live, trained=True)
    logits = model(**inputs, adapters="hotel").logits
    logits.float().log_softmax(-1)[:, :, 7].sum().backward()
    return torch.cat([live.factors[site][1].grad.flatten() for site in sorted(live.factors)])


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_pass_through_quantised_layers(bits, tiny, library, inputs):
    """As through a full model with the rounded weights.

    A 4-bit layer in eval mode on a CPU would drop them with only a warning.
    """
    from bitsandbytes.functional import dequantize_4bit

    small = ah.load_backbone(str(tiny("qwen3")), library=library, bits=bits)
    full = ah.load_backbone(str(tiny("qwen3")), library=library)
    for site, layer in small.backbone.sites.items():
        if type(layer).__name__ == "Linear4bit":
            rounded = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            full.backbone.sites[site].weight.data.copy_(rounded)
    embedding = full.backbone.model.get_input_embeddings().weight
    embedding.data.copy_(embedding.half())
    got, want = factor_gradients(small, inputs), factor_gradients(full, inputs)
    assert torch.nn.functional.cosine_similarity(got, want, dim=0) > (0.98 if bits == 8 else 0.9999)


@needs_bitsandbytes
def test_a_4_bit_model_that_ran_on_the_cpu_before_is_refused(tiny, tmp_path):
    """Of one that did not, the layers stay as they are when the backbone runs."""
    import transformers
    from bitsandbytes.functional import has_avx512bf16
    from conftest import tiny_tokenizer

    if not has_avx512bf16():
        pytest.skip("on this processor bitsandbytes repacks nothing")
    config = transformers.AutoConfig.from_pretrained(tiny("qwen3"))
    config.update({"hidden_size": 64, "intermediate_size": 64, "head_dim": 32})  # what it can pack
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    asked = transformers.BitsAndBytesConfig(load_in_4bit=True)
    fresh, used = (
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "wide", quantization_config=asked, device_map={"": "cpu"}
        )
        for _ in range(2)
    )
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        want = used(**ids).logits
        with pytest.raises(BackboneError, match=r"already ran on the CPU .*q_proj is the first"):
            ah.load_backbone(used, library=tmp_path / "library")
        model = ah.load_backbone(fresh, library=tmp_path / "library")
        got = model(**ids).logits
        assert torch.equal(model(**ids).logits, got)
    torch.testing.assert_close(got, want, atol=0.05, rtol=0.05)
    ah.load_backbone(fresh, library=tmp_path / "library")  # so it was not repacked


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["qwen3", "bert", "mt5", "gpt2"])
def test_embeddings_of_an_8_bit_backbone_take_16_bits_and_stay_tied(kind, tiny, library, inputs):
    small = ah.load_backbone(str(tiny(kind)), library=library, bits=8).backbone
    full = ah.load_backbone(str(tiny(kind)), library=library).backbone
    embedding, head = small.model.get_input_embeddings(), small.model.get_output_embeddings()
    whole = full.model.get_input_embeddings()
    assert embedding.weight.dtype == torch.float16
    torch.testing.assert_close(
        embedding(inputs["input_ids"]), whole(inputs["input_ids"]), atol=1e-3, rtol=1e-3
    )
    tied = full.model.get_output_embeddings().weight is whole.weight
    assert (head.weight is embedding.weight) == tied
    x = torch.randn(2, 3, whole.embedding_dim)
    want = full.model.get_output_embeddings()(x)
    assert head(x).dtype == torch.float32
    torch.testing.assert_close(head(x), want, atol=1e-2, rtol=1e-2)


def test_half_precision_runs_mixed_rows(tiny, library, inputs):
    model = ah.load_backbone(str(tiny("qwen3")), library=library, bits=16)
    with torch.no_grad():
        logits = model(**inputs, adapters=["de", None, "hotel", "de + hotel"]).logits
        bare = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits[1], bare[1])


def test_without_bitsandbytes_the_error_says_what_to_install(tiny, library, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'adapters-hub\[bits\]'"):
        ah.load_backbone(str(tiny("qwen3")), library=library, bits=8)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("reads", [True, False])
def test_a_quantised_layer_that_is_read_and_not_called_is_refused(bits, reads, tiny, library):
    """One that neither is read nor called, as an expert without tokens, is not."""
    from bitsandbytes.functional import dequantize_4bit

    from adapters_hub.backbone.loading import read_backbone
    from adapters_hub.backbone.options import Options
    from adapters_hub.model import AdaptedModel

    backbone = read_backbone(str(tiny("qwen3")), Options(bits=bits))
    mlp = backbone.base.layers[0].mlp

    def forward(x):
        if not reads:
            return mlp.down_proj(mlp.gate_proj(x))
        weight = mlp.up_proj.weight
        if bits == 8:
            whole = weight.CB.float() * weight.SCB[:, None] / 127
        else:
            whole = dequantize_4bit(weight.data, weight.quant_state).float()
        return mlp.down_proj(mlp.gate_proj(x) * torch.nn.functional.linear(x, whole))

    mlp.forward = forward
    before = mlp.up_proj.weight
    model = AdaptedModel(backbone, library)
    assert mlp.up_proj.weight is before
    assert model.bank.bypassed == ({"layers.0.mlp.up_proj"} if reads else set())
    if reads:
        with pytest.raises(BackboneError, match=r"up_proj, whose weight .* without calling"):
            model.use("de")
