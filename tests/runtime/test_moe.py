"""Mixtures of experts: adapters on attention, routers and experts, as PEFT has them, and mixed."""

from dataclasses import replace

import pytest
import torch
from conftest import MOE, auto_class
from helpers import in_threads
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.compose.methods import compose, locate
from adapters_hub.data.rows import Row
from adapters_hub.errors import (
    BackboneError,
    BackboneMismatchError,
    SettingsError,
    UnsupportedAdapterError,
)
from adapters_hub.interpretability.comparison import compare
from adapters_hub.interpretability.inside import where_it_acts
from adapters_hub.tasks import make_task

ROUTER = {"gpt-oss": "router.weight", "qwen3-moe": "gate.weight", "mixtral": "gate.weight"}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def make(tiny, lora_folder, tmp_path):
    """kind → a model, its adapters by name, and what PEFT makes of each."""

    def made(kind, *, sets=None, **options):
        sets = sets or {
            "attention": {"target_modules": ["q_proj", "o_proj"]},
            "router": {"target_modules": [], "target_parameters": [ROUTER[kind]]},
            "experts": {"target_modules": [], "target_parameters": EXPERTS},
            "all": {
                "target_modules": ["q_proj", "v_proj"],
                "target_parameters": [*EXPERTS, ROUTER[kind]],
                "lora_alpha": 6,
            },
        }  # fmt: skip
        library = ah.Library(tmp_path / f"{kind}-{len([*tmp_path.iterdir()])}")
        for name, chosen in sets.items():
            library.add(lora_folder(kind, name, **chosen), name=name)
        return ah.load_backbone(str(tiny(kind)), library=library, **options)

    return made


@pytest.fixture
def peft_logits(tiny, inputs):
    @torch.no_grad()
    def logits(kind, folder, inputs=inputs):
        base = auto_class(kind).from_pretrained(tiny(kind))
        return PeftModel.from_pretrained(base, folder).eval()(**inputs).logits

    return logits


@torch.no_grad()
def logits(model, inputs, adapters):
    return model(**inputs, adapters=adapters).logits


def near(got, want, inputs):
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[seen], want[seen], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOE)
def test_each_adapter_is_what_peft_makes_of_it(kind, make, peft_logits, inputs):
    model = make(kind)
    bare = logits(model, inputs, None)
    for name in ("attention", "router", "experts", "all"):
        want = peft_logits(kind, model.library.root / name)
        assert (want - bare).abs().max() > 0.01
        near(logits(model, inputs, name), want, inputs)
    near(logits(model, inputs, None), bare, inputs)
    one = {key: value[:1, :1] for key, value in inputs.items()}  # which two experts see, of four
    near(logits(model, one, "all"), peft_logits(kind, model.library.root / "all", one), one)


@pytest.mark.parametrize("kind", MOE)
def test_a_row_of_a_mixed_batch_is_that_row_alone(kind, make, inputs):
    model = make(kind)
    blends = ["all", None, "router - 0.5*experts", "0.7*experts + attention"]
    mixed = logits(model, inputs, blends)
    for row, blend in enumerate(blends):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        near(mixed[row : row + 1], logits(model, one, blend), one)
        near(mixed[row : row + 1], logits(model, one, [blend]), one)


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("blend", ["all", "0.5*all - experts + router + attention"])
def test_plain_peft_loads_what_is_exported(kind, blend, make, peft_logits, inputs, tmp_path):
    model = make(kind)
    want = logits(model, inputs, blend)
    model.export(blend, tmp_path / "out", name="out")
    near(peft_logits(kind, tmp_path / "out"), want, inputs)
    model.library.add(tmp_path / "out")
    near(logits(model, inputs, "out"), want, inputs)
    with torch.no_grad():
        near(model.merge(blend)(**inputs).logits, want, inputs)


@pytest.mark.parametrize("kind", MOE)
def test_what_is_stored_is_what_was_read(kind, make, tmp_path):
    """The names, shapes and numbers that PEFT wrote, and its scaling."""
    model = make(kind)
    for name in ("router", "experts", "all"):
        source = model.library.root / name / "adapter_model.safetensors"
        model.adapter(name).save(tmp_path / name)
        want, got = load_file(source), load_file(tmp_path / name / source.name)
        assert want.keys() == got.keys()
        for key, tensor in want.items():
            assert torch.equal(got[key], tensor), key


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOE)
def test_generation_follows_each_row(kind, make, monkeypatch):
    from adapters_hub.inference import generate as generation

    model = make(kind)
    texts = ["the room was clean", "staff rude and slow", "never again"]
    blends = ["all", None, "router + 0.5*experts"]
    for options in ({}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}):
        mixed = model.generate(texts, adapters=blends, max_new_tokens=5, **options)
        for pays in (True, False):
            monkeypatch.setattr(generation, "merging_pays", lambda *_, pays=pays: pays)
            alone = [
                model.generate([text], adapters=[blend], max_new_tokens=5, **options)
                for text, blend in zip(texts, blends, strict=True)
            ]
            assert [row for rows in alone for row in rows] == list(mixed)


# ── tokens, threads, what fails ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_a_blend_a_token_by_every_implementation_of_experts(kind, way, make, inputs):
    """Layers before the last one see each token's blend; the first token sees none but its own."""
    model = make(kind)
    model.backbone.model.set_experts_implementation(way)
    one = {key: value[:1] for key, value in inputs.items()}
    tokens = [["all"] * 4 + ["0.5*experts + router"] * 5]
    mixed = logits(model, one, tokens)
    near(mixed[:, :4], logits(model, one, "all")[:, :4], {"attention_mask": torch.ones(1, 4)})
    near(mixed, logits(model, one, [["all"] * 4 + ["router + 0.5*experts"] * 5]), one)
    assert (mixed - logits(model, one, "all"))[:, 4:].abs().max() > 0.01


def test_a_blend_a_token_is_what_the_module_gives_for_each(make):
    """Called alone, experts and router give each token what they give it under its blend."""
    model = make("gpt-oss")
    x = torch.randn(6, 32)
    router, experts = (
        model.backbone.moe[f"layers.0.mlp.{n}"].module for n in ("router", "experts")
    )
    blends = ["all", None, "experts", "all", "router - experts", None]

    def run(adapters, x):
        with torch.no_grad(), model.adapted(1, adapters):
            chosen, scores, index = router(x)
            return chosen, scores, index, experts(x, top_k_index=index, top_k_weights=scores)

    mixed = run([blends], x)
    for token, blend in enumerate(blends):
        for got, want in zip(mixed, run(blend, x[token : token + 1]), strict=True):
            torch.testing.assert_close(got[token : token + 1], want)


def test_what_a_router_gives_is_recorded_with_its_adapter(make, inputs, tiny):
    model = make("mixtral")
    options = {**inputs, "output_router_logits": True}
    with torch.no_grad():
        mixed = model(**options, adapters=["router", None, "router", "experts"]).router_logits
        alone = [model(**options, adapters=b).router_logits for b in ("router", None, "experts")]
        plain = auto_class("mixtral").from_pretrained(tiny("mixtral")).eval()(**options)
    assert len(mixed) == len(alone[0]) == len(plain.router_logits) == 2
    for layer, got in enumerate(mixed):
        rows = [alone[n][layer].view(4, 9, -1)[row] for row, n in enumerate((0, 1, 0, 2))]
        torch.testing.assert_close(got.view(4, 9, -1), torch.stack(rows))
        torch.testing.assert_close(alone[1][layer], plain.router_logits[layer])
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.01


def test_threads_do_not_see_each_other_and_nothing_is_left(make, inputs, tiny):
    model = make("gpt-oss")
    blends = ["all", None, "experts", "router + attention"]
    want = {blend: logits(model, inputs, blend) for blend in blends}

    def run(blend):
        for _ in range(3):
            near(logits(model, inputs, blend), want[blend], inputs)

    in_threads(run, blends * 2)
    experts = model.backbone.moe["layers.0.mlp.experts"].module
    before = {name: (p, p._version) for name, p in experts.named_parameters()}
    broken = experts.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, inputs, ["all", None, "experts", None])
    broken.remove()
    for name, parameter in experts.named_parameters():
        assert (parameter, parameter._version) == before[name]
    near(logits(model, inputs, None), want[None], inputs)
    near(logits(model, inputs, "all"), want["all"], inputs)


def test_two_models_on_one_backbone_add_up(make, tiny, lora_folder, tmp_path, inputs):
    one = make("qwen3-moe")
    two = ah.load_backbone(one.backbone.model, tokenizer=one.tokenizer, library=one.library)
    for few in (inputs, {key: value[:, :1] for key, value in inputs.items()}):
        want = logits(one, few, "all + experts")
        with one.adapted(4, "all"):
            near(logits(two, few, "experts"), want, few)
    rows = ["all", None, "all", None]
    mixed = logits(one, inputs, ["all + experts", "experts"] * 2)
    with one.adapted(4, rows):
        near(logits(two, inputs, None), logits(one, inputs, rows), inputs)
    near(logits(two, inputs, ["all + experts", "experts"] * 2), mixed, inputs)
    del two
    assert one.bank.alone
    plain = one.merge("all")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


@pytest.mark.slow
def test_a_compiled_model_refuses_routers_and_experts(make, inputs):
    model = make("mixtral")
    want = logits(model, inputs, "attention")
    model.compile(slots=2, rank=4, backend="eager")
    near(logits(model, inputs, "attention"), want, inputs)
    with pytest.raises(
        BackboneError, match=r"acts on layers.0.mlp.experts.0.down_proj.*uncompiled"
    ):
        logits(model, inputs, "experts")
    near(logits(model, inputs, "attention"), want, inputs)


@pytest.mark.parametrize("bits", [16, 8])
def test_other_precisions(bits, make, inputs):
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    model = make("gpt-oss", bits=bits)
    whole = logits(make("gpt-oss"), inputs, "experts")
    mixed = logits(model, inputs, ["experts", None, "experts", None])
    alone = logits(model, inputs, "experts")
    seen = inputs["attention_mask"].bool()
    assert (mixed[::2] - alone[::2])[seen[::2]].abs().max() < 0.1
    assert (alone - whole)[seen].abs().mean() < 0.1
    assert (logits(model, inputs, None) - whole)[seen].abs().mean() > 0.2


# ── composition, training ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["svd", "ties", "knots", "layer_swap"])
def test_methods_work_on_each_expert(method, make, peft_logits, inputs, tmp_path):
    model = make("gpt-oss")
    blend = "all + 0.5*experts"
    model.export(blend, tmp_path / method, name="out", method=method)
    model.library.add(tmp_path / method, name="out")
    got = logits(model, inputs, "out")
    near(got, peft_logits("gpt-oss", tmp_path / method), inputs)
    apart = (got - logits(model, inputs, blend))[inputs["attention_mask"].bool()].abs().max()
    assert apart < 1e-4 if method == "svd" else apart > 1e-2
    site = "layers.0.mlp.experts.2.down_proj"
    pieces = model.pieces(model.resolve(blend))[site]
    place = locate(model.backbone.sites)["layers.0.self_attn.q_proj"]
    (a, b), (want_a, want_b) = (
        model.adapter("out").factors[site],
        compose(pieces, method, site=replace(place, path=site)),
    )
    torch.testing.assert_close(b @ a, want_b @ want_a, atol=1e-5, rtol=1e-4)


def learning(model, *names):
    adapters = {}
    for name in names:
        trained = model.adapter(name).trainable()
        trained.info = replace(trained.info, name=f"{name}.learns")
        adapters[trained.name] = model.add(trained, trained=True)
    return adapters


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_mixed_batch_are_those_of_its_rows(kind, checkpointing, make, inputs):
    model = make(kind)
    adapters = learning(model, "all", "experts")
    if checkpointing:
        model.enable_gradient_checkpointing()
    one, two = adapters
    blends = [one, f"{two} + router", None, f"{one} + 0.5*{two}"]
    ways = torch.randn(4, 9, 256, generator=torch.Generator().manual_seed(0))
    ways = ways * inputs["attention_mask"][..., None]

    def gradients(rows, adapters_of_rows):
        some = {key: value[rows] for key, value in inputs.items()}
        loss = (model(**some, adapters=adapters_of_rows).logits * ways[rows]).sum()
        parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
        ]

    mixed = gradients([0, 1, 2, 3], blends)
    alone = [gradients([row], blend) for row, blend in enumerate(blends) if blend]
    for got, *parts in zip(mixed, *alone, strict=True):
        torch.testing.assert_close(got, sum(parts), atol=1e-3, rtol=1e-3)
    assert max(float(g.abs().max()) for g in mixed) > 1


def test_weights_of_a_blend_of_experts_are_fitted(make, inputs):
    model = make("qwen3-moe")
    rows = [Row("the room was clean and quiet"), Row("staff rude and slow")]
    fit = ah.fit(
        model, "experts + router", rows, per="layer", steps=8, learning_rate=0.2, progress=False
    )
    assert fit.after["rows"]["loss"] < fit.before["rows"]["loss"] - 0.01
    blend = model.load_blend(fit.file)
    model.export(blend, model.library.root.parent / "fitted", name="fitted")
    model.library.add(model.library.root.parent / "fitted")
    near(logits(model, inputs, "fitted"), logits(model, inputs, blend), inputs)


def test_new_adapters_of_experts_start_at_nothing(make, inputs):
    model = make("mixtral")

    def new(**options):
        lora = LoraConfig(r=3, task_type="CAUSAL_LM", **options)
        task = make_task("language-modeling")
        return task.new_adapter(ah.AdapterInfo(name="new"), model.backbone, lora)

    adapter = new(target_modules=[], target_parameters=[*EXPERTS, "gate.weight"])
    assert len(adapter.factors) == 2 * (2 * 4 + 1)
    model.add(adapter)
    near(logits(model, inputs, "new"), logits(model, inputs, None), inputs)
    assert not new(target_modules="all-linear").factors.keys() & adapter.factors.keys()
    with pytest.raises(SettingsError, match=r"'experts.w1'.*experts.down_proj.*gate.weight"):
        new(target_modules=[], target_parameters=["experts.w1"])
    with pytest.raises(SettingsError, match="use dropout 0"):
        new(target_modules=[], target_parameters=EXPERTS, lora_dropout=0.1)


# ── looks, and what cannot be ────────────────────────────────────────────────────────────────────


def test_adapters_of_experts_are_looked_at_with_their_backbone(make):
    model = make("gpt-oss")
    where = where_it_acts(model, "experts")
    assert set(where.kinds) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert sum(share.share for share in where.sites.values()) == pytest.approx(1)
    matrix = model.backbone.moe["layers.1.mlp.experts"].module.down_proj[2]
    adapter, site = model.adapter("experts"), "layers.1.mlp.experts.2.down_proj"
    a, b = adapter.factors[site]
    delta = adapter.scaling[site] * b @ a
    want = float(delta.norm() / matrix.norm())
    assert where.sites[site].relative == pytest.approx(want, rel=1e-4)
    assert compare(model, "experts", "all").sites[site].cosine is not None
    with pytest.raises(UnsupportedAdapterError, match="give the model instead"):
        compare(model.library, "experts", "all")
    with pytest.raises(SettingsError, match="compare without texts"):
        compare(model, "experts", "all", texts=["never again"])


def test_what_does_not_fit_says_so(make, lora_folder, tiny, tmp_path):
    model = make("gpt-oss", sets={"one": {"target_modules": ["q_proj"]}})
    biases = lora_folder(
        "gpt-oss", "biases", target_modules=[], target_parameters=["experts.down_proj_bias"]
    )
    model.library.add(biases)
    with pytest.raises(BackboneMismatchError, match=r"down_proj_bias, which is no matrix"):
        model.use("biases")
    of_other = lora_folder("qwen3-moe", "other", target_modules=[], target_parameters=EXPERTS)
    model.library.add(of_other)
    for kind, message in (
        ("mixtral", r"of 32 inputs and 48 outputs at layers.0.mlp.experts.*it has 32 and 96"),
        ("qwen3", r"other.*has no such linear layer or expert"),
    ):
        other = ah.load_backbone(str(tiny(kind)), library=model.library, check_backbone=False)
        with pytest.raises(BackboneMismatchError, match=message):
            other.use("other")
