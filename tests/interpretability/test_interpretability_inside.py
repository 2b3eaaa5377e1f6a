"""One adapter at work: its energy, the logit lens, attribution; beside plain transformers and PEFT."""

import importlib.util
import sys

import pytest
import torch
from conftest import in_double

import adapters_hub as ah
from adapters_hub.errors import (
    BackboneError,
    BlendError,
    HeadError,
    MissingExtraError,
    SettingsError,
)
from adapters_hub.interpretability import attribute, logit_lens, where_it_acts
from adapters_hub.tasks.classification import Classification

TEXT = "the room was clean and quiet"
SIZE = 256


@pytest.fixture
def load(tiny, tmp_path, lora_folder):
    def load(kind, labels=0, **options):
        library = ah.Library(tmp_path / kind)
        if not library.names():
            library.add(lora_folder(kind, "one"), language="de")
            library.add(lora_folder(kind, "two", r=2, use_rslora=True), domain="hotel")
            if labels:
                names = ["bad", "good", "fair"][:labels]
                library.add(lora_folder(kind, "cls", labels=labels), name="mood", labels=names)
        return ah.load_backbone(str(tiny(kind)), library=library, **options)

    return load


def encode(model, text=TEXT):
    return model.backbone.tokenizer(text, return_tensors="pt")["input_ids"]


# ── where it acts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_energy_is_that_of_dense_deltas_beside_the_weights(kind, load):
    model = load(kind)
    adapter, found = model.adapter("hotel"), where_it_acts(model, "-2*hotel")
    assert found.adapter == "-2.0*hotel"
    deltas, weights = {}, {}
    for site, (a, b) in adapter.factors.items():
        deltas[site] = 2 * adapter.scaling[site] * (b.double() @ a.double()).norm().item()
        weights[site] = model.backbone.sites[site].weight.double().norm().item()
    total = sum(energy**2 for energy in deltas.values())
    assert set(found.sites) == set(deltas)
    for site, own in found.sites.items():
        assert own.energy == pytest.approx(deltas[site])
        assert own.share == pytest.approx(deltas[site] ** 2 / total)
        assert own.relative == pytest.approx(deltas[site] / weights[site])
    for groups in (found.kinds, found.depths):
        assert sum(own.share for own in groups.values()) == pytest.approx(1)
    up = {"qwen3": "mlp.up_proj", "gpt2": "mlp.c_fc"}[kind]
    both = [site for site in deltas if site.endswith(up)]
    assert len(both) == 2
    want = sum(deltas[s] ** 2 for s in both) / sum(weights[s] ** 2 for s in both)
    assert found.kinds[up].relative == pytest.approx(want**0.5)
    assert [depth.rpartition(".")[2] for depth in found.depths] == ["0", "1"]
    with pytest.raises(BlendError, match="2 terms"):
        where_it_acts(model, "de + hotel")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize(("bits", "near"), [(8, 0.01), (4, 0.02)])
def test_quantised_weights_are_measured_too(bits, near, load):
    whole = where_it_acts(load("qwen3"), "de")
    model = load("qwen3", bits=bits)
    small = where_it_acts(model, "de")
    with torch.no_grad():
        model(input_ids=encode(model))  # which repacks some weights
    again = where_it_acts(model, "de")
    for site, own in whole.sites.items():
        assert small.sites[site].relative == pytest.approx(own.relative, rel=near)
        assert again.sites[site].relative == pytest.approx(own.relative, rel=near)


# ── the logit lens ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "llama", "gemma3"])
def test_each_layer_is_transformers_hidden_state_through_norm_and_head(kind, load):
    model = in_double(load(kind))
    lens = logit_lens(model, TEXT, "de + hotel", top=SIZE)
    plain = model.merge("de + hotel")
    bare = model.merge(None)
    ids = encode(model)
    assert len(lens.tokens) == ids.shape[1]
    norm = "ln_f" if kind == "gpt2" else "norm"
    logs = []
    for one, found in ((plain, lens.adapted), (bare, lens.reference)):
        with torch.no_grad():
            out = one(input_ids=ids, output_hidden_states=True)
            body = getattr(one, one.base_model_prefix)
            early = [one.lm_head(getattr(body, norm)(h)) for h in out.hidden_states[:-1]]
            logits = [*early, out.logits]
        assert len(found) == len(logits) == len(lens.layers) == 3
        logs.append([own[0].log_softmax(-1) for own in logits])
        for layer, guesses in zip(logs[-1], found, strict=True):
            got = torch.tensor([[p for _, p in own] for own in guesses], dtype=torch.float64)
            want = layer.exp().sort(descending=True).values
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)  # merged in float32
            best = [own[0][0] for own in guesses]
            assert best == [model.backbone.tokenizer.decode([n]) for n in layer.argmax(-1).tolist()]
    for one, two, found in zip(*logs, lens.divergence, strict=True):
        want = (one.exp() * (one - two)).sum(-1)
        got = torch.tensor(found, dtype=torch.float64)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
    assert max(lens.divergence[0]) < 1e-12  # the embeddings have no adapter
    assert min(lens.divergence[-1]) > 1e-6


def test_nothing_against_nothing_is_no_difference(load):
    model = load("qwen3")
    lens = logit_lens(model, TEXT, None)
    assert lens.adapted == lens.reference
    assert set(sum(lens.divergence, ())) == {0.0}
    model.use("de")
    assert logit_lens(model, TEXT, "de", against="de").divergence == lens.divergence
    assert logit_lens(model, TEXT, "de").divergence[-1] != lens.divergence[-1]


def test_there_is_no_lens_without_a_norm_and_a_head(load, monkeypatch):
    for kind in ("bert", "mt5"):
        with pytest.raises(BackboneError, match="has no logit lens: it needs a decoder's layers"):
            logit_lens(load(kind), TEXT, "de")
    model = load("qwen3")
    with pytest.raises(SettingsError, match="top=0: choose from 1 to 256"):
        logit_lens(model, TEXT, "de", top=0)
    model.backbone.base.norm = None
    with pytest.raises(BackboneError, match=r"Qwen3ForCausalLM\) has no logit lens"):
        logit_lens(model, TEXT, "de")


# ── attribution ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind",
    ["bert", "qwen3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("modernbert", "gpt2"))],
)
def test_attributions_add_up_to_what_they_explain(kind, load):
    model = load(kind, labels=3)
    found = attribute(model, TEXT, "de + mood", steps=1024)  # random weights bend the path
    ids = encode(model)
    assert len(found.scores) == len(found.tokens) == ids.shape[1]
    best, _ = next(iter(model.classify([TEXT], "de + mood")[0].items()))
    assert found.target == best
    task, names = Classification(("bad", "good", "fair")), ("bad", "good", "fair")
    with torch.no_grad(), model.adapted(1, "de + mood"):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = task.logits(model, batch, model.heads(model.blends(1, "de + mood")))[0]
    assert found.logit == pytest.approx(logits[names.index(best)].item(), abs=1e-5)
    change = abs(found.logit - found.baseline)
    assert change > 1e-3
    assert sum(found.scores) == pytest.approx(found.logit - found.baseline, abs=0.01 * change)
    special = [
        n for n, i in enumerate(ids[0].tolist()) if i in model.backbone.tokenizer.all_special_ids
    ]
    assert len(special) == 2
    assert [found.scores[n] for n in special] == [0, 0]  # they are in the baseline, too
    coarse = attribute(model, TEXT, "de + mood", steps=2)
    assert abs(found.missing) < abs(coarse.missing)


def test_the_baseline_is_the_text_of_masks(load):
    model = load("bert", labels=2)
    found = attribute(model, TEXT, "mood", target="bad", steps=8)
    ids = encode(model)
    ids[0, 1:-1] = model.backbone.tokenizer.mask_token_id
    with torch.no_grad(), model.adapted(1, "mood"):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        heads = model.heads(model.blends(1, "mood"))
        logits = Classification(("bad", "good")).logits(model, batch, heads)
    assert found.target == "bad"
    assert found.baseline == pytest.approx(logits[0, 0].item(), abs=1e-6)
    other = attribute(model, TEXT, "mood", target="good", steps=8)
    assert other.scores != found.scores
    model.use("mood")
    assert attribute(model, TEXT, target="bad", steps=8).scores == pytest.approx(found.scores)
    assert not model.backbone.base.get_input_embeddings()._forward_hooks


def test_what_has_no_attribution_is_refused(load, monkeypatch):
    model = load("bert", labels=2)
    with pytest.raises(HeadError, match=r"no label 'ugly' \(it has bad, good\)"):
        attribute(model, TEXT, "mood", target="ugly")
    with pytest.raises(HeadError, match="has a task head"):
        attribute(model, TEXT, "de")
    with pytest.raises(SettingsError, match="steps=0"):
        attribute(model, TEXT, "mood", steps=0)
    with pytest.raises(BackboneError, match="is an encoder-decoder"):
        attribute(load("mt5"), TEXT, "de")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'adapters-hub\[interpret\]'"):
        attribute(model, TEXT, "mood")
