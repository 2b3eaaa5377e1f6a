"""What ships: the starter, its adapters, the sample text, and the wheel that carries them."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers import ROOT

import adapters_hub as ah
from adapters_hub.data.reading import read_data
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.paths import bundled_root, starter_folder

LANGUAGES = {"en", "de", "fr", "es", "ru", "zh", "da", "uk"}
DOMAINS = ("hotel", "clinic", "bank", "software")


@pytest.fixture(scope="module")
def model():
    return ah.load_backbone("starter", library=bundled_root())


def test_the_starter_is_small_and_loads_frozen(model):
    assert sum(f.stat().st_size for f in starter_folder().iterdir()) < 40 * 2**20
    assert model.backbone.kind == "decoder"
    assert not any(p.requires_grad for p in model.backbone.model.parameters())
    assert not any(m.training for m in model.backbone.model.modules())
    assert model.backbone.tokenizer("Grüße, 世界")["input_ids"]


def test_every_shipped_adapter_is_sound_and_fits_the_starter(model):
    library = ah.Library(bundled_root())
    infos = library.list()
    assert {"da", "uk"} <= {info.language for info in infos}
    with torch.no_grad():
        for info in infos:
            assert library.verify(info.name) == []
            assert belongs(info.fingerprint, model.backbone.fingerprint)
            assert info.trained_with
            model.use(info.name)
            ids = torch.tensor([model.backbone.tokenizer("hotel")["input_ids"]])
            assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("language", ["da", pytest.param("uk", marks=pytest.mark.slow)])
def test_each_language_adapter_knows_its_language_better_than_the_bare_starter(model, language):
    from adapters_hub.evaluation.scores import scores_by_language
    from adapters_hub.tasks import make_task

    task = make_task("language-modeling")
    rows = read_data(ROOT / "recipes/data/hotel")["test"]
    examples = task.encode([row for row in rows if row.language == language], model.backbone)
    blends = {name: model.resolve(name) for name in (language, None)}
    columns = {str(n): lambda row, b=b: b for n, b in blends.items()}
    bits = scores_by_language(model, task, examples, columns)["bits"]
    assert bits[language]["mean"] < 0.95 * bits["None"]["mean"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_sample_text_is_parallel_and_split_by_item(domain):
    seen: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        items: dict[str, list[dict]] = {}
        for line in (ROOT / f"recipes/data/{domain}/{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            items.setdefault(row["id"], []).append(row)
        for item, rows in items.items():
            assert seen.setdefault(item, split) == split
            assert {row["language"] for row in rows} == LANGUAGES
            assert len({row["label"] for row in rows}) == 1
            for row in rows:
                start = row["answer_start"]
                assert row["text"][start : start + len(row["answer"])] == row["answer"]
                assert row["question"].strip()
    assert len(seen) >= 64


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path):
    """Built without isolation, unpacked, and used with nothing of the checkout in reach."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "d"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(next((tmp_path / "d").glob("*.whl"))) as wheel:
        wheel.extractall(site)
        names = wheel.namelist()
    assert "adapters_hub/starter/model.safetensors" in names
    assert not [n for n in names if n.startswith(("tests/", "recipes/", "benchmarks/"))]
    code = (
        "import adapters_hub as ah, sys; assert sys.argv[1] in ah.__file__, ah.__file__;"
        "assert 'da' in [i.name for i in ah.Library().list()];"
        "print(ah.load('da').generate('Pakken', max_new_tokens=4))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=empty, env={"PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
