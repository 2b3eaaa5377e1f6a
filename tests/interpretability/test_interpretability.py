"""Two adapters side by side: every number against dense float64 matrices, which PEFT makes."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import TEXTS, auto_class, in_double
from helpers import ROOT, lora_config, lora_tensors, write_peft_folder
from peft import PeftModel

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.errors import (
    BackboneMismatchError,
    BlendError,
    DataError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.interpretability import (
    Comparison,
    Measures,
    compare,
    describe,
    geometry,
    plot,
    read_texts,
)
from adapters_hub.interpretability.geometry import compare_site, opposite_signs
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime.adapter import Adapter

FIRST = {"lora_alpha": 8}
SECOND = {
    "r": 3, "lora_alpha": 5, "use_rslora": True, "rank_pattern": {"up_proj": 2},
    "target_modules": ["q_proj", "up_proj", "down_proj", "lm_head"],
}  # fmt: skip
BARE = {"save_embedding_layers": False}
PREFIX = "base_model.model."
TINY_TEXTS = TEXTS[:3]


@pytest.fixture
def folders(lora_folder):
    return {
        "de": lora_folder("qwen3", "one", **FIRST),
        "hotel": lora_folder("qwen3", "2", save=BARE, **SECOND),
    }


@pytest.fixture
def library(tmp_path, folders):
    library = ah.Library(tmp_path / "library")
    library.add(folders["de"], language="de")
    library.add(folders["hotel"], domain="hotel")
    return library


@pytest.fixture
def model(tiny, library):
    return in_double(ah.load_backbone(str(tiny("qwen3")), library=library))


def in_peft(tiny, folder, kind="qwen3"):
    base = auto_class(kind).from_pretrained(tiny(kind)).double()
    return PeftModel.from_pretrained(base, folder).double().eval()


def lora_modules(peft):
    found = {n: m for n, m in peft.named_modules() if hasattr(m, "lora_A")}
    return {name.removeprefix(PREFIX): module for name, module in found.items()}


def dense_deltas(tiny, folder):
    """Every delta as PEFT would merge it: module → (out, in), float64."""
    modules = lora_modules(in_peft(tiny, folder))
    return {n: m.get_delta_weight("default").detach().numpy() for n, m in modules.items()}


def overlap(one, two, side):
    """φ less r₁·r₂ / (d·min(r₁, r₂)), by numpy's decomposition of whole matrices."""
    bases = []
    for matrix in (one, two):
        u, s, vh = np.linalg.svd(matrix)
        bases.append((u if side == 0 else vh.T)[:, : (s > 1e-6 * s[0]).sum()])
    (d, r1), r2 = bases[0].shape, bases[1].shape[1]
    return np.linalg.norm(bases[0].T @ bases[1]) ** 2 / min(r1, r2) - r1 * r2 / (d * min(r1, r2))


def expected(first, second, sites):
    """Measures over sites, from dense matrices; a site that is missing in one is zero there."""
    shapes = {s: (first if s in first else second)[s].shape for s in sites}
    ones = np.concatenate([first.get(s, np.zeros(shapes[s])).ravel() for s in sites])
    twos = np.concatenate([second.get(s, np.zeros(shapes[s])).ravel() for s in sites])
    both = [s for s in sites if s in first and s in second]
    one, two = np.linalg.norm(ones), np.linalg.norm(twos)
    acts = ones * twos != 0
    return Measures(
        energy_first=one,
        energy_second=two,
        log2_energy_ratio=np.log2(one / two) if one and two else None,
        cosine=ones @ twos / one / two if one and two else None,
        overlap_left=np.mean([overlap(first[s], second[s], 0) for s in both]) if both else None,
        overlap_right=np.mean([overlap(first[s], second[s], 1) for s in both]) if both else None,
        sign_conflict=(ones * twos < 0)[acts].mean() if both else None,
    )


def assert_close(got, want, tolerance=1e-5):
    got, want = asdict(got), asdict(want)
    assert {k for k, v in got.items() if v is None} == {k for k, v in want.items() if v is None}
    for field in [field for field in got if got[field] is not None]:
        assert got[field] == pytest.approx(want[field], abs=tolerance, rel=tolerance), field


def random_pieces(rng, r1, r2, inputs=40, outputs=30):
    def piece(rank):
        shapes = (rank, inputs), (outputs, rank)
        return (1.5, *(torch.tensor(rng.normal(size=shape)) for shape in shapes))

    return piece(r1), piece(r2)


# ── numbers from factors ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["library", "model"])
def test_every_number_is_that_of_the_dense_deltas(source, library, model, tiny, folders):
    report = compare({"library": library, "model": model}[source], "de", "hotel")
    prefix = "model." if source == "library" else ""
    one, two = (
        {s if source == "library" else s.removeprefix("model."): d for s, d in found.items()}
        for found in (dense_deltas(tiny, folders[name]) for name in ("de", "hotel"))
    )
    assert (report.first, report.second, report.texts) == ("de", "hotel", 0)
    assert set(report.sites) == {*one, *two}
    assert len(one) == 14
    assert "lm_head" in set(two) - set(one)
    for site, measures in report.sites.items():
        assert_close(measures, expected(one, two, [site]))
    assert list(report.depths) == [f"{prefix}layers.0", f"{prefix}layers.1", "no layer"]
    for depth in list(report.depths)[:2]:
        sites = [site for site in one if site.startswith(f"{depth}.")]
        assert_close(report.depths[depth], expected(one, two, sites))
    assert report.depths["no layer"] == report.sites["lm_head"]
    assert report.depths["no layer"].energy_first == 0.0
    assert_close(report.total, expected(one, two, sorted({*one, *two})))


def test_weights_belong_to_the_deltas(library):
    plain = compare(library, "de", "hotel").total
    turned = compare(library, "de", "-0.5*hotel")
    assert turned.second == "-0.5*hotel"
    want = replace(
        plain,
        energy_second=plain.energy_second / 2,
        log2_energy_ratio=plain.log2_energy_ratio + 1,
        cosine=-plain.cosine,
        sign_conflict=1 - plain.sign_conflict,
    )
    assert_close(turned.total, want)


def test_an_adapter_beside_itself(model):
    report = compare(model, "de", "de", TINY_TEXTS)
    width, rank = 32, 4
    assert report.total.cosine == pytest.approx(1)
    assert report.total.log2_energy_ratio == 0
    assert report.total.sign_conflict == 0
    assert report.total.interference == pytest.approx(1)
    site = report.sites["layers.0.mlp.up_proj"]  # 32 in, 48 out
    assert site.overlap_right == pytest.approx(1 - rank / width)
    assert site.overlap_left == pytest.approx(1 - rank / 48)


@pytest.mark.parametrize(("r1", "r2"), [(4, 4), (2, 8), (8, 2)])
def test_random_subspaces_overlap_by_nothing_in_the_mean(r1, r2):
    rng = np.random.default_rng(0)
    found = [compare_site(*random_pieces(rng, r1, r2)).overlaps for _ in range(200)]
    assert np.abs(np.mean(found, 0)).max() < 0.01
    assert np.std(found, 0).min() > 0.01  # which a constant would not have


def test_a_delta_of_zero_has_no_direction():
    one, two = random_pieces(np.random.default_rng(0), 3, 2)
    measures = Measures.of([compare_site(one, (1.0, two[1], torch.zeros_like(two[2])))])
    assert measures.energy_second == 0
    assert measures.energy_first > 0
    assert [v for v in asdict(measures).values() if v is not None] == [measures.energy_first, 0]


def test_dependent_rows_are_one_direction():
    one, two = random_pieces(np.random.default_rng(0), 4, 2)
    twice = (1.0, two[1].repeat(2, 1), two[2].repeat(1, 2))
    again = compare_site(one, (2.0, two[1], two[2]))
    assert compare_site(one, twice).overlaps == pytest.approx(again.overlaps)
    assert compare_site(one, twice).inner == pytest.approx(again.inner)


def test_signs_of_a_large_site_come_from_a_fixed_sample(monkeypatch):
    one, two = random_pieces(np.random.default_rng(1), 3, 2, inputs=50, outputs=400)
    opposite, entries = opposite_signs(one, two)
    assert entries == 400 * 50
    deltas = [weight * b @ a for weight, a, b in (one, two)]
    assert opposite == pytest.approx((deltas[0] * deltas[1] < 0).sum().item(), abs=2)
    monkeypatch.setattr(geometry, "SAMPLE", 50 * 100)
    sampled = opposite_signs(one, two, "layers.0.q")
    assert sampled == opposite_signs(one, two, "layers.0.q") != opposite_signs(one, two, "other")
    assert sampled[1] == 400 * 50
    assert 0 < abs(sampled[0] - opposite) / entries < 0.05


# ── with a model ─────────────────────────────────────────────────────────────────────────────────


def by_hand(tiny, folders, texts, model):
    """site → ‖ΔW₁·h₁‖², ‖ΔW₂·h₁‖² over all tokens, with PEFT running the first adapter."""
    peft = in_peft(tiny, folders["de"])
    deltas = [dense_deltas(tiny, folders[name]) for name in ("de", "hotel")]
    modules = lora_modules(peft) | {"lm_head": peft.base_model.model.lm_head}
    sums = {name: [0.0, 0.0] for name in modules}

    def hook(name):
        def watch(module, inputs):
            for number, own in enumerate(deltas):
                if name in own:
                    moved = inputs[0].detach().numpy() @ own[name].T
                    sums[name][number] += (moved**2).sum()

        return watch

    for name, module in modules.items():
        module.register_forward_pre_hook(hook(name))
    for text in texts:
        peft(**model.backbone.tokenizer(text, return_tensors="pt").to("cpu"))
    return {name.removeprefix("model."): own for name, own in sums.items()}


def test_interference_is_what_forward_hooks_see(model, tiny, folders):
    report = compare(model, "de", "hotel", TINY_TEXTS)
    sums = by_hand(tiny, folders, TINY_TEXTS, model)
    assert set(sums) == set(report.sites)
    for site, measures in report.sites.items():
        one, two = sums[site]
        want = math.sqrt(two / one) if one else None
        assert measures.interference == (want and pytest.approx(want, rel=1e-5)), site
    one, two = np.sum(list(sums.values()), 0)
    assert report.total.interference == pytest.approx(math.sqrt(two / one), rel=1e-5)
    assert report.texts == 3
    plain = compare(model, "de", "hotel")
    assert plain.total == replace(report.total, interference=None)
    swapped = compare(model, "hotel", "de", TINY_TEXTS).total
    assert swapped.interference != pytest.approx(1 / report.total.interference, rel=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "mt5"])
def test_other_architectures_are_compared_too(kind, tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder(kind, "one"), language="de")
    library.add(lora_folder(kind, "two", r=2), domain="hotel")
    model = ah.load_backbone(str(tiny(kind)), library=library)
    report = compare(model, "de", "hotel", TINY_TEXTS)
    assert all(own.interference > 0 for own in report.depths.values())
    assert report.total.cosine == pytest.approx(compare(library, "de", "hotel").total.cosine)
    if kind == "mt5":
        stacks = [f"{stack}.block.{n}" for stack in ("encoder", "decoder") for n in (0, 1)]
        assert list(report.depths)[:4] == stacks


def test_a_failed_look_leaves_no_hook(model, monkeypatch):
    before = [len(module._forward_pre_hooks) for module in model.backbone.sites.values()]
    monkeypatch.setattr(model.backbone.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare(model, "de", "hotel", TINY_TEXTS)
    assert before == [len(m._forward_pre_hooks) for m in model.backbone.sites.values()]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_compared_is_refused(library, model, tmp_path, lora_folder, tiny):
    with pytest.raises(BlendError, match="2 terms"):
        compare(library, "de + hotel", "hotel")
    with pytest.raises(BlendError, match="0 terms"):
        compare(library, "de", None)
    with pytest.raises(NotFoundError, match="closest: hotel"):
        compare(library, "de", "hotle")
    with pytest.raises(SettingsError, match="need a model"):
        compare(library, "de", "hotel", ["a text"])
    with pytest.raises(DataError, match="there are no texts"):
        compare(model, "de", "hotel", [])
    mixed = ah.Library(tmp_path / "mixed")
    mixed.add(lora_folder("qwen3", "one"), name="q", backbone=str(tiny("qwen3")))
    mixed.add(lora_folder("gpt2", "one"), name="g", backbone=str(tiny("gpt2")))
    with pytest.raises(BackboneMismatchError, match="belongs to another backbone"):
        compare(mixed, "q", "g")


def test_adapters_that_name_no_backbone_must_fit_each_other(tmp_path):
    library = ah.Library(tmp_path / "library")
    for name, options in {"one": {}, "other": {"inputs": 7}}.items():
        folder = write_peft_folder(tmp_path / name, tensors=lora_tensors(**options))
        library.add(folder, name=name)
    with pytest.raises(BackboneMismatchError, match=r"at layers.0.q_proj one has 6 .* the other 7"):
        compare(library, "one", "other")


def test_files_of_a_class_with_a_head_meet_those_of_the_body(tmp_path):
    library, found = ah.Library(tmp_path / "library"), {}
    body = ["encoder.layer.0.q_proj", "encoder.layer.10.q_proj", "encoder.layer.2.v_proj"]
    for name, prefix in (("bare", ""), ("headed", "bert.")):
        tensors = lora_tensors([prefix + site for site in body])
        folder = write_peft_folder(tmp_path / name, tensors=tensors, config=lora_config())
        library.add(folder, name=name)
    for pair in (("bare", "headed"), ("headed", "bare")):
        found = compare(library, *pair)
        assert list(found.depths) == [f"encoder.layer.{n}" for n in (0, 2, 10)]
        assert found.total.cosine == pytest.approx(1)


def test_an_adapter_in_memory_can_be_compared(model):
    de = model.adapter("de")
    model.add(Adapter(AdapterInfo(name="copy"), dict(de.factors), dict.fromkeys(de.scaling, 1.0)))
    report = compare(model, "copy", "de").total
    assert report.cosine == pytest.approx(1)
    assert report.log2_energy_ratio == pytest.approx(-math.log2(8 / 4))


# ── files, table, plot ───────────────────────────────────────────────────────────────────────────


def test_a_report_goes_through_json(library, tmp_path):
    report = compare(library, "de", "hotel")
    path = report.write(tmp_path / "new" / "report.json")
    assert Comparison.from_json(json.loads(path.read_text())) == report
    with pytest.raises(DataError, match="no report of a comparison"):
        Comparison.from_json({"first": "de"})
    with pytest.raises(SettingsError, match="cannot be written"):
        report.write(tmp_path)


def test_the_table_has_a_row_a_depth(library, model):
    lines = describe(compare(library, "de", "de")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "model.layers.0", "model.layers.1", "all",
    ]  # fmt: skip
    assert "interference" not in lines[0]
    assert "interference" in describe(compare(model, "de", "hotel", TINY_TEXTS))


@pytest.mark.slow
def test_plots_are_what_their_names_say(model, tmp_path, monkeypatch):
    report = compare(model, "de", "hotel", TINY_TEXTS)
    assert plot(report, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawing = plot(replace(report, texts=0), tmp_path / "new" / "a.svg").read_text()
    assert drawing.startswith("<?xml")
    assert "<svg" in drawing
    with pytest.raises(SettingsError, match=r"ends with .png or .svg"):
        plot(report, tmp_path / "a.pdf")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(SettingsError, match=r"pip install 'adapters-hub\[plot\]'"):
        plot(report, tmp_path / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir() if "library" not in p.name) == ["a.png", "new"]


def test_texts_are_lines_or_rows(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\n two \n", encoding="utf-8")
    assert read_texts(lines) == ["one", "two"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    assert read_texts(rows) == ["a row"]
    rows.write_text('{"review": "a row"}\n')
    assert read_texts(rows, {"text": "review"}) == ["a row"]
    lines.write_text("\n\n")
    with pytest.raises(DataError, match="empty, no rows in it"):
        read_texts(lines)
    lines.write_bytes(b"a caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_texts(lines)
    with pytest.raises(DataError, match="no such file"):
        read_texts(tmp_path / "none.txt")


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(capsys):
    def command(*arguments):
        library = ["--library", str(ROOT / "adapters")]
        status = main(["compare", *map(str, arguments), *library])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.mark.slow
def test_compare_from_the_command_line(run, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Das Zimmer war ruhig.\nWir kommen wieder.\n", encoding="utf-8")
    status, out, err = run(
        "de", "hotel", "--texts", texts, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg"
    )
    assert status == 0, err
    assert "de and hotel: ‖ΔW‖" in out
    assert f"wrote {tmp_path / 'r.svg'}" in out
    report = Comparison.from_json(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")))
    assert report.texts == 2
    assert len(report.depths) == 6
    assert report.total.interference > 0
    status, out, _ = run("de", "de")
    assert status == 0
    assert "cosine +1.000" in out


def test_compare_refuses_on_the_command_line(run, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for arguments, message in (
        (["de", "hotle"], "closest: hotel"),
        (["de + hotel", "en"], "2 terms"),
        (["de", "hotel", "--texts", empty], "empty, no rows in it"),
        (["de", "hotel", "--plot", tmp_path / "plot.gif"], "ends with .png or .svg"),
        (["de", "hotel", "--json", tmp_path], "cannot be written"),
    ):
        status, _, err = run(*arguments)
        assert status == 1
        assert message in err
