"""Mixtures of experts: adapters on attention, routers and experts, as PEFT has them, and mixed."""

import pytest
import torch
from conftest import MOE, auto_class
from helpers import in_threads
from peft import PeftModel
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.errors import BackboneError

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
    def logits(kind, folder):
        base = auto_class(kind).from_pretrained(tiny(kind))
        return PeftModel.from_pretrained(base, folder).eval()(**inputs).logits

    return logits


@torch.no_grad()
def logits(model, inputs, adapters):
    return model(**inputs, adapters=adapters).logits


def near(got, want, inputs):
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[seen], want[seen], **CLOSE)


@pytest.mark.parametrize("kind", MOE)
def test_each_adapter_is_what_peft_makes_of_it(kind, make, peft_logits, inputs):
    model = make(kind)
    bare = logits(model, inputs, None)
    for name in ("attention", "router", "experts", "all"):
        want = peft_logits(kind, model.library.root / name)
        assert (want - bare).abs().max() > 0.01
        near(logits(model, inputs, name), want, inputs)
    near(logits(model, inputs, None), bare, inputs)


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
    want = logits(one, inputs, "all + experts")
    with one.adapted(4, "all"):
        near(logits(two, inputs, "experts"), want, inputs)
    rows = ["all", None, "all", None]
    mixed = logits(one, inputs, ["all + experts", "experts"] * 2)
    with one.adapted(4, rows):
        near(logits(two, inputs, None), logits(one, inputs, rows), inputs)
    near(logits(two, inputs, ["all + experts", "experts"] * 2), mixed, inputs)
    del two
    assert one.bank.alone
    plain = one.merge("all")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


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
