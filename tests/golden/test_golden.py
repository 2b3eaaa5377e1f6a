"""Files of an earlier version must always load, and compute what they computed then."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import adapters_hub as ah
from adapters_hub.errors import BackboneMismatchError
from adapters_hub.library.fingerprint import belongs, fingerprint

GOLDEN = Path(__file__).parent
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
BLEND_FILE = "fitted.blend.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A copy of the golden files, the lone adapter added to the library."""
    folder = tmp_path_factory.mktemp("golden") / "copy"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    ah.Library(folder / "library").add(folder / "sw.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(files):
    return ah.load_backbone(str(files / "backbone"), library=files / "library")


def test_adapters_are_listed_with_what_was_known_of_them(files):
    listed = ah.Library(files / "library").list()
    infos = {info.name: json.loads(json.dumps(info.to_json())) for info in listed}
    assert infos.keys() == EXPECTED["infos"].keys()
    for name, facts in EXPECTED["infos"].items():
        # where a file is read anew, its size may differ by a field more in its header
        for field in facts.keys() - ({"bytes"} if name == "sw" else set()):
            assert infos[name][field] == facts[field], (name, field)


def test_adapters_are_found_by_language_and_domain(files):
    library = ah.Library(files / "library")
    assert library.resolve("de-AT").info.name == "de"
    assert library.resolve("sw").info.name == "sw"
    assert [info.name for info in library.list(domain="hotel")] == ["hotel"]
    assert library.find("domain:hotel").labels == ("negative", "positive")


@pytest.mark.parametrize("name", ["de", "hotel", "sw"])
def test_adapters_are_as_they_were_written(files, name):
    assert ah.Library(files / "library").verify(name) == []


def test_a_changed_adapter_is_noticed(files, tmp_path):
    shutil.copytree(files / "library", tmp_path / "library")
    weights = tmp_path / "library" / "de" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert ah.Library(tmp_path / "library").verify("de") != []


def test_fingerprints_of_the_first_version_name_the_backbone(files):
    stored = {facts["fingerprint"] for facts in EXPECTED["infos"].values()}
    current = fingerprint(files / "backbone")
    assert stored == {"qwen3-2L-16-1d37a1814edcab53"}
    assert current not in stored  # so the two versions are compared
    assert all(belongs(old, current) for old in stored)


def test_another_backbone_is_refused(files, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "backbone"
    shutil.copytree(files / "backbone", other)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    model = ah.load_backbone(str(other), library=files / "library")
    with pytest.raises(BackboneMismatchError):
        model.use("de")
    with pytest.raises(BackboneMismatchError):
        model.load_blend(files / BLEND_FILE)


@pytest.mark.parametrize("row", EXPECTED["next_token"], ids=lambda row: str(row["blend"]))
def test_next_token_logits(model, row):
    ids = torch.tensor([row["ids"]])
    assert model.tokenizer(row["text"])["input_ids"] == row["ids"]
    with torch.no_grad():
        out = model(input_ids=ids, adapters=[row["blend"]])
    torch.testing.assert_close(out.logits[0, -1], torch.tensor(row["logits"]), atol=1e-5, rtol=1e-5)


def test_next_token_logits_of_a_mixed_batch(model):
    rows = EXPECTED["next_token"]
    batch = model.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**batch, adapters=[row["blend"] for row in rows])
    for row, logits, mask in zip(rows, out.logits, batch["attention_mask"], strict=True):
        torch.testing.assert_close(
            logits[mask.bool()][-1], torch.tensor(row["logits"]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "row", EXPECTED["classification"], ids=lambda row: f"{row['blend']}-{row['text']}"
)
def test_classification(model, files, row):
    blend = model.load_blend(files / BLEND_FILE) if row["blend"] == BLEND_FILE else row["blend"]
    assert model.classify([row["text"]], adapters=blend) == [
        pytest.approx(row["probabilities"], abs=1e-5)
    ]


def test_one_line_loads_them(files, monkeypatch):
    monkeypatch.chdir(files)  # the adapters name their backbone by a relative path
    model = ah.load("de", domain="hotel", library="library")
    row = EXPECTED["classification"][0]
    assert row["blend"] == "de + hotel"
    assert model.classify([row["text"]]) == [pytest.approx(row["probabilities"], abs=1e-5)]
