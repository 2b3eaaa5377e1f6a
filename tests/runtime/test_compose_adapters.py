"""Methods that need a place, refusals, and whole adapters: exported, and beside PEFT's own."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import auto_class
from helpers import ROOT
from helpers.factors import close, dense, make, product, size_of
from peft import PeftModel

import adapters_hub as ah
from adapters_hub.compose.methods import METHODS, compose, compose_sites, locate, options_of
from adapters_hub.errors import NotFoundError, SettingsError
from adapters_hub.library.adapter_file import AdapterInfo


def swap_at(sites, **options):
    task, language = make([2, 3], [2.0, -1.0], (6, 5))
    made = compose_sites({s: [task, language] for s in sites}, "layer_swap", **options)
    names = {}
    for site, factors in made.items():
        got = product(factors)
        for name, wanted in (
            ("task", dense(task)),
            ("language", dense(language)),
            ("mean", (dense(task) + dense(language)) / 2),
        ):
            if np.allclose(got, wanted, atol=1e-5):
                names[site] = name
    return names


def test_layers_are_swapped_by_depth():
    names = swap_at([f"layers.{n}.mlp.0.up" for n in range(7)], bottom=1, top=2, transition=1)
    order = ["language", "mean", "task", "task", "mean", "language", "language"]
    assert [*names.values()] == order
    names = swap_at([f"h.{n}.attn.c_attn" for n in range(3)], bottom=0, top=1, transition=1)
    assert [*names.values()] == ["task", "mean", "language"]
    names = swap_at(["h.0.x", "h.1.x"], bottom=0, top=0, transition=1)
    assert [*names.values()] == ["task", "task"]


def test_each_stack_has_its_own_depth_and_what_is_in_none_is_outermost():
    encoder = [f"encoder.block.{n}.layer.0.q" for n in range(3)]
    decoder = [f"decoder.block.{n}.layer.1.q" for n in range(4)]
    names = swap_at([*encoder, *decoder, "lm_head"])
    assert [names[s] for s in encoder] == ["language", "task", "language"]
    assert [names[s] for s in decoder] == ["language", "task", "task", "language"]
    assert names["lm_head"] == "language"
    task, language = make([2, 0], [2.0, 1.0], (6, 5))
    made = compose_sites({s: [task, language] for s in ("pooler", *encoder)}, "layer_swap")
    assert sorted(made) == ["encoder.block.1.layer.0.q", "pooler"]  # nothing is left elsewhere


def test_layers_are_counted_in_the_backbone():
    sites = [f"layers.{n}.q" for n in range(4)]
    task, language = make([2, 3], [1.0, 1.0], (6, 5))
    made = compose_sites({sites[2]: [task, language]}, "layer_swap", sites=sites)
    close(product(made[sites[2]]), dense(task), 10)
    place = locate([*sites, "pooler.dense"])
    assert (place[sites[2]].stack, place[sites[2]].layer, place[sites[2]].layers) == (
        "layers",
        2,
        4,
    )
    assert place["pooler.dense"].layer is None


def test_subtract_scales_all_but_the_first():
    pieces = make([2, 3, 1], [1.0, 1.0, -1.0], (6, 5))
    task, target, source = map(dense, pieces)
    got = product(compose(pieces, "subtract", lam=0.3))
    close(got, task + 0.3 * (target + source), size_of(pieces))
    close(product(compose(pieces, "subtract")), task + target + source, size_of(pieces))


def test_linear_has_cross_terms():
    pieces = make([3, 3], [1.0, -0.5], (6, 5))
    exact = sum(map(dense, pieces))
    assert np.linalg.norm(product(compose(pieces, "linear")) - exact) > 0.5 * np.linalg.norm(exact)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    ("magic", {}, "choose one of sum, svd, linear, ties"),
    ("sum", {"rank": 4}, "takes no rank: it takes no options; method='svd' cuts a sum"),
    ("linear", {"rank": 4}, "takes no rank"),
    ("svd", {"density": 0.5}, "takes no density: it takes rank"),
    ("ties", {"seed": 1}, "takes no seed: it takes density, rank"),
    ("dare", {"site": "x"}, "takes no site"),
    ("svd", {"rank": 0}, "rank=0: give a whole number, 1 or more"),
    ("svd", {"rank": 1.5}, "rank=1.5"),
    ("svd", {"rank": True}, "rank=True"),
    ("ties", {"density": 0.0}, "density=0.0: give a share above 0"),
    ("ties", {"density": 1.01}, "density=1.01"),
    ("ties", {"density": float("nan")}, "density=nan"),
    ("ties", {"density": None}, "density=None"),
    ("dare", {"density": "0.2"}, "density='0.2'"),
    ("dare", {"seed": 0.5}, "seed=0.5: give a whole number"),
    ("subtract", {"lam": float("inf")}, "lam=inf: give a finite number"),
    ("core", {"inner": "ties"}, "inner='ties' is method='core_ties'"),
    ("core", {"inner": "sum"}, "is method='svd'"),
    ("core", {"inner": "magic"}, "give one of tsv, dare, magnitude_prune"),
    ("core", {"inner": "tsv", "density": 0.5}, "takes no density"),
    ("layer_swap", {"bottom": -1}, "bottom=-1: give a whole number of layers"),
    ("layer_swap", {"bottom": 2, "top": 1}, "need 3 layers; layers has 2"),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_what_cannot_be_is_refused(method, options, message):
    pieces = {f"layers.{n}.q": make([2, 3], [1.0, 1.0], (6, 5)) for n in range(2)}
    if method == "linear":
        pieces = {site: make([2, 2], [1.0, 1.0], (6, 5)) for site in pieces}
    with pytest.raises(SettingsError) as error:
        compose_sites(pieces, method, **options)
    assert message in str(error.value)


def test_the_number_of_pieces_and_their_ranks():
    with pytest.raises(SettingsError, match="the blend has 1 adapter"):
        compose(make([2], [1.0], (6, 5)), "subtract")
    with pytest.raises(SettingsError, match=r"takes two adapters.*the blend has 3"):
        compose(make([2, 2, 2], [1.0] * 3, (6, 5)), "layer_swap")
    with pytest.raises(SettingsError, match=r"there are \[2, 3\]; method='sum' takes any"):
        compose(make([2, 3], [1.0, 1.0], (6, 5)), "linear")


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    library.add(lora_folder("qwen3", "few", target_modules=["q_proj", "down_proj"]), name="few")
    return library


@pytest.fixture
def model(tiny, library):
    return ah.load_backbone(str(tiny("qwen3")), library=library)


@pytest.mark.parametrize("method", METHODS)
def test_an_export_is_the_composed_delta_in_plain_peft(method, model, tiny, inputs, tmp_path):
    rank = {"rank": 3} if "rank" in options_of(method) else {}
    blend = "one - 0.5*few"
    folder = model.export(blend, tmp_path / "out", method=method, **rank)
    base = auto_class("qwen3").from_pretrained(tiny("qwen3"))
    exported = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    pieces = model.pieces(model.resolve(blend), without_outer=False)
    assert {len(own) for own in pieces.values()} == {2}
    made = compose_sites(pieces, method, sites=model.backbone.sites, **rank)
    modules = dict(base.named_modules())
    with torch.no_grad():
        bare = base.eval()(**inputs).logits
        for site, (a, b) in made.items():
            modules[f"model.{site}"].weight += b @ a
        wanted = base(**inputs).logits
        got = exported(**inputs).logits
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert (got - bare).abs().max() > 1e-2
    assert ah.Library(tmp_path / "other").add(folder).rank == max(len(a) for a, _ in made.values())


def test_export_passes_options_on_and_says_what_it_did(model, tmp_path):
    folder = model.export("one - few", tmp_path / "x", method="ties", rank=2, density=0.1)
    assert "The ties of one - few (rank=2, density=0.1)." in (folder / "README.md").read_text()
    with pytest.raises(SettingsError, match="takes no density"):
        model.export("nobody", tmp_path / "y", density=0.1)
    model.add(replace(model.adapter("few").map(torch.zeros_like), info=AdapterInfo("zero")))
    with pytest.raises(NotFoundError, match="the iso of zero is zero everywhere"):
        model.export("zero", tmp_path / "y", method="iso")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("method", ["svd", "linear"])
def test_as_peft_combines_adapters(kind, method, tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    sources = {"one": lora_folder(kind, "one"), "two": lora_folder(kind, "two", lora_alpha=2)}
    for name, source in sources.items():
        library.add(source, name=name)
    base = auto_class(kind).from_pretrained(tiny(kind))
    peft = PeftModel.from_pretrained(base, sources["one"], adapter_name="one")
    peft.load_adapter(sources["two"], adapter_name="two")
    more = {"svd_rank": 3} if method == "svd" else {}
    peft.add_weighted_adapter(["one", "two"], [1.0, -0.5], "both", combination_type=method, **more)
    ours = ah.load_backbone(str(tiny(kind)), library=library)
    pieces = ours.pieces(ours.resolve("one - 0.5*two"), without_outer=False)
    made = compose_sites(pieces, method, **({"rank": 3} if more else {}))
    modules = dict(peft.base_model.model.named_modules())
    for site, factors in made.items():
        module = modules.get(f"model.{site}") or modules.get(f"transformer.{site}")
        wanted = module.lora_B["both"].weight @ module.lora_A["both"].weight
        close(product(factors), wanted.detach().double().numpy(), float(wanted.norm()), 1e-5)


def test_the_page_lists_every_method_and_docstrings_say_more():
    text = (ROOT / "docs/compose.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(METHODS) <= set(rows)
    for method in METHODS.values():
        assert len(method.__doc__.splitlines()) > 2
