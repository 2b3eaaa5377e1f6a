"""The matrix: every number of a cell by another way, resuming, two processes; its report."""

import json

import numpy as np
import pytest
import torch
from conftest import WORDS
from helpers import run_python
from helpers.recipes import launch, run

import adapters_hub as ah
from adapters_hub.cli import main as adapters_hub_command
from adapters_hub.compose.methods import delta
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.evaluation.cell_file import CONTROLS, CellFile, Composed
from adapters_hub.evaluation.controls import random_like
from adapters_hub.evaluation.matrix import Cell, at_most
from adapters_hub.evaluation.matrix_settings import MatrixSettings
from adapters_hub.evaluation.report import correlations, draw, read_cells, summary, tables
from adapters_hub.inference.records import collect_records
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks import make_task
from adapters_hub.training.pair_weights import measure_pair
from adapters_hub.training.settings import parse_settings


def cell_of(row):
    return Cell(row.language, row.domain)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Labelled rows of two domains in three languages, of words the tiny tokenizer knows."""
    folder = tmp_path_factory.mktemp("reviews")
    for split, items in (("train", 8), ("dev", 6), ("test", 10)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for item in range(items):
                for place, language in enumerate(("en", "de", "da")):
                    for domain in ("hotel", "phone"):
                        good = (item + len(domain)) % 2 == 0
                        words = [WORDS[(item * 3 + place + k) % 8] for k in range(2 + item % 4)]
                        text = " ".join([*words, "lovely quiet" if good else "rude slow"])
                        row = {
                            "id": f"{split}-{item}", "text": text, "language": language,
                            "label": "positive" if good else "negative", "domain": domain,
                        }  # fmt: skip
                        file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory, tiny, lora_folder):
    """Language adapters of random factors, for all three languages."""
    found = ah.Library(tmp_path_factory.mktemp("library"))
    for tag in ("en", "de", "da"):
        folder = lora_folder("qwen3", tag, task_type="CAUSAL_LM")
        found.add(folder, name=tag, language=tag, backbone=str(tiny("qwen3")))
    return found


def arguments(tiny, reviews, library, results):
    return [
        "--backbone", tiny("qwen3"), "--data", reviews, "--library", library.root, "--cpu",
        "--task", "classification", "--language", "en", "de", "da", "--steps", 3, "--rank", 2,
        "--batch-size", 4, "--seeds", 2, "--rows", 8, "--methods", "sum", "svd", "subtract",
        "fitted", "--resamples", 200, "--results", results,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny, reviews, library, tmp_path_factory):
    """The results folder of a whole run."""
    folder = tmp_path_factory.mktemp("matrix")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        run(
            "evaluate_matrix.py", *arguments(tiny, reviews, library, folder / "results"),
            monkeypatch=patch, cwd=folder,
        )  # fmt: skip
    return folder / "results"


@pytest.fixture(scope="module")
def text_alone(tiny, reviews, library, tmp_path_factory):
    """The arguments of a short run without labels, and its results folder."""
    folder = tmp_path_factory.mktemp("text")
    given = [
        "--backbone", tiny("qwen3"), "--data", reviews, "--cpu", "--library", library.root,
        "--language", "en", "de", "--domain", "hotel", "--steps", 2, "--batch-size", 4,
        "--seeds", 1, "--no-oracle", "--resamples", 50, "--results", folder / "results",
    ]  # fmt: skip
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        run("evaluate_matrix.py", *given, monkeypatch=patch, cwd=folder)
    return given, folder / "results"


@pytest.mark.slow
def test_every_cell_has_every_column(finished):
    cells = read_cells(finished)
    assert [(c["domain"], c["language"]) for c in cells] == [
        ("hotel", "en"), ("hotel", "da"), ("hotel", "de"),
        ("phone", "en"), ("phone", "da"), ("phone", "de"),
    ]  # fmt: skip
    every = {
        "bare", "language", "domain", "sum", "svd", "subtract", "fitted", "wrong language",
        "random", "apart", "apart + language", "oracle",
    }  # fmt: skip
    for cell in cells:
        source = cell["language"] == "en"
        assert cell.keys() == CellFile.__annotations__.keys()
        for composed in cell["composed"].values():
            assert Composed.__required_keys__ <= composed.keys() <= Composed.__annotations__.keys()
            assert set(CONTROLS) - composed.keys() == ({"over source kept"} if source else set())
        assert cell["columns"].keys() == (every if source else {*every, "source kept"})
        assert cell["rows"] == {"test": 8, "dev": 6}
        assert ("forgetting" in cell["composed"]["sum"]) is not source
        assert "forgetting" not in cell["composed"]["svd"]
        assert cell["predictors"]["cosine"] is not None
        assert cell["predictors"]["interference"] > 0
        for column in cell["columns"].values():
            assert len(column["test"]) == 2
            assert column["mean"] == pytest.approx(np.mean(column["test"]))
            assert column["low"] <= column["high"]
    (cell,) = (c for c in cells if (c["domain"], c["language"]) == ("phone", "de"))
    results = read_adapter(finished / "adapters" / "phone.task.1").info.results
    kept = {r.blend: r.value for r in results if r.language == "de"}
    assert kept[None] == cell["columns"]["domain"]["test"][1]
    assert kept["de + this adapter"] == cell["columns"]["sum"]["test"][1]


@pytest.mark.slow
def test_a_cell_is_what_the_kept_adapters_give(finished, tiny, reviews, library):
    """The blends of a cell, made again from the kept files, on the same rows."""
    cell = json.loads((finished / "phone.de.json").read_text())
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    for name in ("phone.head.0", "phone.task.0", "phone.apart.0", "phone.de.0"):
        kept = read_adapter(finished / "adapters" / name, name)
        model.add(Adapter.load(kept, model.backbone))
    task = make_task("classification", label_names=("negative", "positive"), max_length=256)
    rows = at_most(read_data(reviews)["test"], 8, cell_of)
    rows = [row for row in rows if (row.language, row.domain) == ("de", "phone")]
    blends = {
        "bare": "phone.head.0", "language": "de + phone.head.0", "domain": "phone.task.0",
        "source kept": "en + phone.task.0", "sum": "de + phone.task.0",
        "wrong language": "da + phone.task.0", "apart": "phone.apart.0",
        "apart + language": "de + phone.apart.0", "oracle": "de + phone.de.0",
        "subtract": "phone.task.0 + de - en",
    }  # fmt: skip
    dev = [
        row for row in read_data(reviews)["dev"] if (row.language, row.domain) == ("de", "phone")
    ]
    weight = measure_pair(model, "de", "phone.task.0", task, dev).weight
    blends["fitted"] = f"{weight}*de + phone.task.0" if weight else "phone.task.0"
    assert cell["columns"]["fitted"]["blend"] == str(model.resolve(blends["fitted"]))
    examples = task.encode(rows, model.backbone)
    for column, text in blends.items():
        blend = model.resolve(text)
        records = collect_records(model, task, examples, lambda row, blend=blend: blend)
        assert cell["columns"][column]["test"][0] == pytest.approx(
            task.metrics(records)["macro_f1"]
        ), column
    single = max(("language", "domain"), key=cell["dev"].get)
    assert cell["best_single"] == single
    means = {name: column["mean"] for name, column in cell["columns"].items()}
    found = cell["composed"]["sum"]
    assert found["gain"]["mean"] == pytest.approx(means["sum"] - means["bare"])
    assert found["composition_gain"]["mean"] == pytest.approx(means["sum"] - means[single])
    assert cell["transfer"]["mean"] == pytest.approx(means["domain"] - means["bare"])
    possible = means["oracle"] - means["bare"]
    want = pytest.approx((means["sum"] - means["bare"]) / possible) if possible > 0 else None
    assert found["recovery"] == want


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(text_alone, tmp_path, monkeypatch):
    """Only the lost cell is measured, nothing is trained, and it is the same cell; a setting that
    the folder is too old to know had its default.
    """
    given, results = text_alone
    kept = results / "settings.json"
    facts = json.loads(kept.read_text())
    del facts["chat"]
    kept.write_text(json.dumps(facts))
    lost = results / "hotel.de.json"
    before = lost.read_text()
    lost.unlink()
    monkeypatch.setattr("adapters_hub.training.run.train_adapters", None)
    run("evaluate_matrix.py", *given, monkeypatch=monkeypatch, cwd=tmp_path)
    assert lost.read_text() == before


def test_a_folder_of_other_settings_is_refused(text_alone, tmp_path, monkeypatch):
    given = [*text_alone[0], "--learning-rate", 0.5]
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate\).*--results"):
        run("evaluate_matrix.py", *given, monkeypatch=monkeypatch, cwd=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "sum", "magic"], "magic"),
        (["--source", "fr"], "no train, dev and test rows in fr"),
        (["--seeds", "0"], "seeds=0"),
        (["--rows", "-1"], "rows=-1"),
    ],
)
def test_what_cannot_work_is_said_first(
    tiny, reviews, library, tmp_path, monkeypatch, given, message
):
    common = arguments(tiny, reviews, library, tmp_path / "results")
    with pytest.raises(SystemExit, match=message):
        run("evaluate_matrix.py", *common, *given, monkeypatch=monkeypatch, cwd=tmp_path)


@pytest.mark.slow
def test_two_processes_give_the_same_cells(finished, tiny, reviews, library, tmp_path):
    given = arguments(tiny, reviews, library, tmp_path / "results")
    process = launch("evaluate_matrix.py", *given, processes=2, cwd=tmp_path)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "processes: 2 on cpu" in out
    for ours, theirs in zip(read_cells(finished), read_cells(tmp_path / "results"), strict=True):
        for name, column in ours["columns"].items():
            assert column["test"] == pytest.approx(theirs["columns"][name]["test"]), name


def test_text_alone_has_no_head_and_lower_is_better(text_alone):
    source, cell = read_cells(text_alone[1])
    assert source["language"] == "en"
    assert cell["columns"]["bare"]["blend"] == str(ah.Blend())
    assert not cell["higher_is_better"]
    assert "oracle" not in cell["columns"]
    means = {name: column["mean"] for name, column in cell["columns"].items()}
    found = cell["composed"]["sum"]
    assert found["gain"]["mean"] == pytest.approx(means["bare"] - means["sum"])
    assert "recovery" not in found


def test_a_language_without_an_adapter_has_the_columns_that_need_none(
    tiny, reviews, tmp_path, monkeypatch
):
    run(
        "evaluate_matrix.py", "--backbone", tiny("qwen3"), "--data", reviews, "--cpu",
        "--library", tmp_path / "empty", "--language", "en", "de", "--domain", "hotel",
        "--steps", 1, "--batch-size", 2, "--seeds", 1, "--resamples", 20,
        "--results", tmp_path / "results", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    for cell in read_cells(tmp_path / "results"):
        assert cell["columns"].keys() == {"bare", "domain", "oracle"}
        assert cell["composed"] == {}
    assert "| hotel" in tables(read_cells(tmp_path / "results"))
    assert draw(read_cells(tmp_path / "results"), tmp_path) == []


@pytest.mark.slow
def test_a_source_without_an_adapter_has_no_task_adapter_apart(
    tiny, reviews, tmp_path, lora_folder, monkeypatch
):
    """The task's adapter is trained without a language adapter then, so there is one of them."""
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "de", task_type="CAUSAL_LM"), name="de", language="de",
                backbone=str(tiny("qwen3")))  # fmt: skip
    run(
        "evaluate_matrix.py", "--backbone", tiny("qwen3"), "--data", reviews, "--cpu",
        "--library", library.root, "--language", "en", "de", "--domain", "hotel", "--no-oracle",
        "--steps", 1, "--batch-size", 2, "--seeds", 1, "--resamples", 20,
        "--results", tmp_path / "results", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    source, cell = read_cells(tmp_path / "results")
    assert source["columns"].keys() == {"bare", "domain"}
    assert cell["columns"].keys() == {"bare", "language", "domain", "sum", "random"}
    assert cell["columns"]["sum"]["blend"].startswith("de + ")
    assert "forgetting" in cell["composed"]["sum"]
    assert not (tmp_path / "results" / "adapters" / "hotel.apart.0").exists()


@pytest.mark.slow
def test_a_domain_that_is_called_all_is_not_that_of_rows_that_name_none(
    tiny, reviews, library, tmp_path, monkeypatch
):
    folder, results = tmp_path / "reviews", tmp_path / "results"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (reviews / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["domain"] = "all" if row["domain"] == "hotel" else None
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    run(
        "evaluate_matrix.py", "--backbone", tiny("qwen3"), "--data", folder, "--cpu",
        "--library", library.root, "--language", "en", "de", "--no-oracle", "--steps", 1,
        "--batch-size", 2, "--seeds", 1, "--resamples", 20, "--results", results,
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    assert [(c["domain"], c["language"]) for c in read_cells(results)] == [
        (None, "en"), (None, "de"), ("all", "en"), ("all", "de"),
    ]  # fmt: skip
    kept = {path.name for path in (results / "adapters").iterdir()}
    assert kept == {"all.task.0", "all.apart.0", "all_.task.0", "all_.apart.0"}
    words = {Cell("de", domain).file for domain in (None, "all", "All_", "all_", "hotel", "all.x")}
    assert words == {
        "all.de.json", "all_.de.json", "All__.de.json", "all__.de.json", "hotel.de.json",
        "all.x.de.json",
    }  # fmt: skip


@pytest.mark.slow
def test_a_language_without_train_rows_is_measured_without_an_oracle(
    tiny, reviews, library, tmp_path, monkeypatch
):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        lines = (reviews / f"{split}.jsonl").read_text().splitlines()
        kept = [line for line in lines if split != "train" or json.loads(line)["language"] == "en"]
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    run(
        "evaluate_matrix.py", "--backbone", tiny("qwen3"), "--data", folder, "--cpu",
        "--library", library.root, "--language", "en", "de", "--domain", "hotel", "--steps", 1,
        "--batch-size", 2, "--seeds", 1, "--resamples", 20,
        "--results", tmp_path / "results", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    source, cell = read_cells(tmp_path / "results")
    assert "oracle" in source["columns"]
    assert cell["language"] == "de"
    assert "oracle" not in cell["columns"]
    assert "recovery" not in cell["composed"]["sum"]
    kept = json.loads((tmp_path / "results" / "settings.json").read_text())
    assert kept["mixed_precision"] == "no"


def test_rows_are_the_same_items_in_every_language():
    rows = [
        Row(f"{language} {n}", language=language, domain="hotel", key=str(n))
        for n in range(50)
        for language in ("en", "de")
    ]
    found = at_most(rows, 7, cell_of)
    keys = {tag: [row.key for row in found if row.language == tag] for tag in ("en", "de")}
    assert keys["en"] == keys["de"]
    assert len(keys["en"]) == 7
    assert at_most(rows, 0, cell_of) == rows


def test_a_random_adapter_has_the_norm_of_the_other(tiny, library):
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    own = model.adapter("de")
    random = random_like(own, 3, "random")
    for site, (a, b) in own.factors.items():
        want = delta([(1.0, a, b)]).norm()
        other = delta([(1.0, *random.factors[site])])
        torch.testing.assert_close(other.norm(), want, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(other, delta([(1.0, a, b)]), atol=1e-3)
    again = random_like(own, 3, "random")
    assert all(torch.equal(random.factors[s][0], again.factors[s][0]) for s in own.factors)


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def estimate(mean, spread=0.01):
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def cell(language, gain, composition, bare=0.5, oracle=0.9):
    sure = composition - 0.01 > 0, composition + 0.01 < 0
    return {
        "version": 1, "language": language, "domain": "hotel", "source": "en", "seeds": [0],
        "metric": "macro-F1", "higher_is_better": True, "rows": {"test": 5, "dev": 5},
        "columns": {"bare": estimate(bare), "oracle": estimate(oracle),
                    "sum": estimate(bare + gain)},
        "transfer": estimate(0.1),
        "composed": {"sum": {"gain": estimate(gain), "composition_gain": estimate(composition),
                             "forgetting": estimate(-0.05), "over random": estimate(0.2), "helps": sure[0], "hurts": sure[1]}},
    }  # fmt: skip


CELLS = [cell("en", 0.4, 0.3), cell("de", 0.2, 0.05), cell("da", 0.1, -0.02), cell("sv", 0.0, 0.0)]


def write(folder, cells=CELLS):
    folder.mkdir(exist_ok=True)
    for entry in cells:
        (folder / f"hotel.{entry['language']}.json").write_text(json.dumps(entry))
    (folder / "settings.json").write_text("{}")
    return folder


def test_the_summary_leaves_out_the_source():
    row = summary(CELLS, "sum")
    assert row[:8] == ["sum", "3", "+0.100", "+0.100", "+0.010", "1/3", "1/3", "25%"]
    assert row[8:] == ["", "+0.200", "-0.050", "hotel da -0.020 [-0.030, -0.010]"]


def test_predictors_are_held_against_the_gains():
    gains = [-0.02, 0.0, 0.05, 0.1]
    tags = ["de", "da", "sv", "uk"]
    cells = [cell("en", 0.4, 9.0)] + [cell(t, 0.1, g) for t, g in zip(tags, gains, strict=True)]
    for place, own in enumerate(cells):
        own["predictors"] = {"cosine": -float(place), "interference": None}
    found = correlations(cells, "sum")
    assert found.keys() == {"cosine"}
    assert (found["cosine"].n, found["cosine"].rho) == (4, pytest.approx(-1.0))
    assert "| cosine" in tables(cells)
    assert correlations(CELLS, "sum") == {}


def test_recovery_counts_bits_the_right_way_round():
    lower = [
        {**cell("de", 0.2, 0.1), "higher_is_better": False,
         "columns": {"bare": estimate(3.0), "oracle": estimate(2.6), "sum": estimate(2.8)}}
    ]  # fmt: skip
    assert summary(lower, "sum")[7] == "50%"


@pytest.mark.slow
def test_tables_and_pictures_come_from_the_files_alone(tmp_path, capsys):
    results = write(tmp_path / "results")
    assert [c["language"] for c in read_cells(results)] == ["en", "da", "de", "sv"]
    out = tmp_path / "pictures"
    assert adapters_hub_command(["matrix", str(results), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| hotel  | en (source) |" in printed
    assert "higher is better" in printed
    names = {path.name for path in out.iterdir()}
    kinds = ("gain.sum", "composition_gain.sum", "cells.sum")
    assert names == {f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "svg")}
    assert (out / "gain.sum.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    drawing = (out / "cells.sum.svg").read_text()
    assert "<svg" in drawing
    assert "hotel da" in drawing
    first = drawing
    draw(read_cells(results), out)
    assert (out / "cells.sum.svg").read_text() == first  # the same files, the same picture


def test_the_report_needs_no_torch(tmp_path):
    results = write(tmp_path / "results")
    code = (
        "import sys; from adapters_hub.cli import main; "
        f"assert main(['matrix', {str(results)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    run_python(code)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a cell"),
        ("[1]", "not a cell"),
        ('{"version": 99}', "format 99, this release reads 1"),
    ],
)
def test_files_that_are_no_cells_are_named(tmp_path, text, message):
    (tmp_path / "hotel.de.json").write_text(text)
    with pytest.raises(DataError, match=rf"hotel.de.json: {message}"):
        read_cells(tmp_path)


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="no cell of a matrix"):
        read_cells(tmp_path)


def test_settings_of_a_matrix_are_flags_too():
    resolved = parse_settings(["--seeds", "2", "--methods", "ties"], kind=MatrixSettings)
    assert (resolved.settings.seeds, resolved.settings.methods) == (2, ("ties",))
    assert resolved.origins["source"] == "default"
    with pytest.raises(SettingsError, match="resamples=0"):
        MatrixSettings(resamples=0)
