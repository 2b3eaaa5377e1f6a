"""A device_map that leaves weights on disk, or layers on several devices: the same results."""

import pytest
import torch

import adapters_hub as ah
from adapters_hub.errors import BackboneError
from adapters_hub.runtime.bank import Run
from adapters_hub.tasks.language_modeling import LanguageModeling

MIXED = {
    "qwen3": {
        "model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.layers.0": "disk",
        "model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "disk",
    },
    "bert": {
        "bert.embeddings": "disk", "bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk",
        "cls": "disk",
    },
    "mt5": {
        "shared": "cpu", "encoder.embed_tokens": "cpu", "encoder.block": "disk",
        "encoder.final_layer_norm": "cpu", "decoder": "cpu", "lm_head": "cpu",
    },
}  # fmt: skip
"""Layers on disk and others in memory."""

TEXTS = ["never again", "lovely view near the station", "quiet"]


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    for kind in MIXED:
        for name in ("one", "two"):
            library.add(lora_folder(kind, name), name=f"{kind}-{name}")
    return library


@pytest.fixture
def pair(tiny, library, tmp_path):
    """(kind, device_map) → the backbone in memory, and the same by the map."""

    def load(kind, device_map, **options):
        folder = tmp_path / "offload"
        options |= {"device_map": device_map, "offload_folder": folder}
        return (
            ah.load_backbone(tiny(kind), library=library, device="cpu"),
            ah.load_backbone(tiny(kind), library=library, **options),
        )

    return load


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("kind", MIXED)
def test_what_is_on_disk_gives_what_memory_gives(kind, everything, pair, inputs):
    plain, away = pair(kind, {"": "disk"} if everything else MIXED[kind])
    assert away.backbone.offloaded
    assert away.device == torch.device("cpu")
    assert away.backbone.fingerprint == plain.backbone.fingerprint
    blends = [f"{kind}-one", None, f"{kind}-one + 0.5*{kind}-two", f"{kind}-two"]
    if kind == "mt5":
        inputs = {**inputs, "decoder_input_ids": inputs["input_ids"]}
    with torch.no_grad():
        got, want = (model(**inputs, adapters=blends).logits for model in (away, plain))
    torch.testing.assert_close(got, want)
    given = {"adapters": blends[:3], "pooling": "mean"}
    torch.testing.assert_close(away.embed(TEXTS, **given), plain.embed(TEXTS, **given))
    if kind != "bert":
        written = [model.generate(TEXTS, blends[:3], max_new_tokens=4) for model in (away, plain)]
        assert written[0] == written[1]
    assert any(parameter.is_meta for parameter in away.backbone.model.parameters())


def test_heads_and_losses_over_what_is_on_disk(tiny, lora_folder, pair, library, inputs):
    library.add(lora_folder("bert", "head", labels=2), name="head")
    plain, away = pair("bert", MIXED["bert"])
    for scores, expected in zip(
        away.classify(TEXTS, "head"), plain.classify(TEXTS, "head"), strict=True
    ):
        assert scores == pytest.approx(expected, abs=1e-6)

    gradients = []
    for model in pair("qwen3", {"": "disk"}):
        assert model.splits_head
        live = model.add(model.adapter("qwen3-one").trainable(), trained=True)
        batch = {**inputs, "labels": inputs["input_ids"]}
        with model.bank.using(model.plan(model.blends(4, "name:qwen3-one"))):
            LanguageModeling().loss(model, batch, []).sum().backward()
        gradients.append([tensor.grad for tensor in live.parameters()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_what_needs_weights_in_memory_says_so(pair):
    _, away = pair("qwen3", MIXED["qwen3"])
    for refused in (
        lambda: away.merge("qwen3-one"),
        lambda: away.to(torch.bfloat16),
        lambda: away.compile(),
    ):
        with pytest.raises(BackboneError, match="is offloaded by its device_map"):
            refused()
    assert not away.can_merge(away.plan(away.blends(4, "qwen3-one")))


def test_adapters_on_experts_need_them_in_memory(tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    chosen = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    library.add(lora_folder("qwen3-moe", "experts", **chosen), name="experts")
    library.add(lora_folder("qwen3-moe", "heads", target_modules=["q_proj"]), name="heads")
    away = ah.load_backbone(tiny("qwen3-moe"), library=library, device_map={"": "disk"},
                            offload_folder=tmp_path / "offload")  # fmt: skip
    plain = ah.load_backbone(tiny("qwen3-moe"), library=library, device="cpu")
    with torch.no_grad():
        got, want = (m(**inputs, adapters=["heads", None] * 2).logits for m in (away, plain))
        torch.testing.assert_close(got, want)
        with pytest.raises(BackboneError, match="routers and experts need their weights in memory"):
            away(**inputs, adapters="experts")


@pytest.mark.parametrize("learns", [False, True])
def test_factors_go_to_where_a_site_computes(learns, tiny, library, inputs):
    """The layer's weight may be elsewhere than its input; shapes show it, on the meta device."""
    model = ah.load_backbone(tiny("qwen3"), library=library, device="cpu")
    name, site = "qwen3-one", "layers.0.self_attn.q_proj"
    if learns:
        model.add(model.adapter(name).trainable(), trained=True)
    plan = model.plan(model.blends(4, [f"name:{name}", None, "qwen3-two", None]))
    fan_in, fan_out = model.backbone.shapes[site]
    run = Run(plan, {site: (site, "layers.0.self_attn.k_proj")})
    x, y = torch.ones(4, 9, fan_in), torch.ones(4, 9, fan_out)
    for device in ("cpu", "meta", "cpu"):
        out = run.add(site, x, y.to(device))
        assert (out.shape, out.device.type) == (y.shape, device)


# ── on two GPUs ──────────────────────────────────────────────────────────────────────────────────

needs_two = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.mark.parametrize(
    "device_map",
    [
        pytest.param("balanced", marks=needs_two),
        pytest.param(
            {
                "model.embed_tokens": 0,
                "model.rotary_emb": 0,
                "model.layers.0": 0,
                "model.layers.1": 1,
                "model.norm": 1,
                "lm_head": 0,
            },
            marks=needs_two,
        ),
        pytest.param(
            {
                "model.embed_tokens": 0,
                "model.rotary_emb": 0,
                "model.layers.0": 1,
                "model.layers.1": "cpu",
                "model.norm": 1,
                "lm_head": 1,
            },
            marks=needs_two,
        ),
    ],
)
def test_layers_on_two_gpus_give_what_one_gives(device_map, pair, inputs):
    plain, split = pair("qwen3", device_map)
    blends = ["qwen3-one", None, "qwen3-one + 0.5*qwen3-two", "qwen3-two"]
    moved = {name: tensor.to(split.device) for name, tensor in inputs.items()}
    with torch.no_grad():
        got = split(**moved, adapters=blends).logits
        want = plain(**inputs, adapters=blends).logits
    torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-4)
    assert split.generate(TEXTS, blends[:3]) == plain.generate(TEXTS, blends[:3])
    gradients = []
    for model, batch in ((plain, inputs), (split, moved)):
        live = model.add(model.adapter("qwen3-one").trainable(), trained=True)
        logits = model(**batch, adapters="name:qwen3-one").logits
        logits.float().log_softmax(-1)[:, :, 7].sum().backward()
        gradients.append([tensor.grad.cpu() for tensor in live.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
