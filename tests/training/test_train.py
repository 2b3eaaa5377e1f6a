"""One call from rows to a stored adapter, by a loaded model or a backbone's name."""

import json

import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, LibraryError, NotFoundError, SettingsError

LABELS = ("good", "bad", "bad", "good", "good")
ROWS = [
    Row(text, label, language="en", domain="hotel")
    for text, label in zip(TEXTS, LABELS, strict=True)
    for _ in range(4)
]
FEW = {"steps": 60, "batch_size": 8, "rank": 4, "learning_rate": 2e-2, "cpu": True}


@pytest.fixture
def fresh(tiny, tmp_path, monkeypatch, fresh_accelerate):
    """A fresh model of a kind, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.mark.slow
def test_rows_become_a_stored_adapter_that_classifies(fresh, tiny, tmp_path):
    model = fresh("bert")
    info = ah.train(model, ROWS, domain="hotel", **FEW)
    assert (info.name, info.domain, info.task) == ("hotel", "hotel", "classification")
    assert info.labels == ("bad", "good")
    assert "adapters_hub.train(" in info.trained_with
    assert model.library.get("hotel") == info
    got = model.classify(list(TEXTS), adapters="hotel")
    assert [max(scores, key=scores.get) for scores in got] == list(LABELS)
    again = fresh("bert").classify(list(TEXTS), adapters="hotel")
    for one, two in zip(got, again, strict=True):
        assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.slow
def test_it_is_the_domain_adapter_that_the_settings_of_a_run_give(fresh, tiny, tmp_path):
    """A file and a backbone's name go the same way as rows and a model."""
    with open(tmp_path / "rows.jsonl", "w") as file:
        for row in ROWS:
            values = {"text": row.text, "label": row.label, "language": "en", "domain": "hotel"}
            file.write(json.dumps(values) + "\n")
    ah.train(fresh("bert"), ROWS, domain="hotel", name="one", **FEW)
    library = str(tmp_path / "library")
    ah.train(str(tiny("bert")), "rows.jsonl", domain="hotel", name="two", library=library, **FEW)
    one, two = (
        load_file(tmp_path / "library" / name / "adapter_model.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_with_just_a_language_it_is_a_language_adapter(fresh):
    model = fresh("qwen3")
    rows = [Row(row.text) for row in ROWS]
    info = ah.train(model, rows, task="language-modeling", language="German", **FEW)
    assert (info.name, info.language, info.domain, info.over) == ("de", "de", None, ())
    over = ah.train(
        model, [Row(r.text, r.label, language="de") for r in ROWS], domain="hotel", **FEW
    )
    assert over.over == ("de",)
    assert model.active == ah.Blend()


def test_what_cannot_be_trained_is_said_before(fresh, tmp_path):
    model = fresh("bert")
    with pytest.raises(SettingsError, match="bits: set by the model that was given"):
        ah.train(model, ROWS, domain="hotel", bits=8)
    with pytest.raises(SettingsError, match="dtype: set by the model that was given"):
        ah.train(model, ROWS, domain="hotel", dtype="bfloat16")
    with pytest.raises(SettingsError, match="say which domain"):
        ah.train(model, [Row("a", "x"), Row("b", "y")])
    with pytest.raises(DataError, match="field 'label' is missing"):
        ah.train(model, [Row("a"), Row("b")], domain="hotel")
    with pytest.raises(TypeError, match="stepps"):
        ah.train(model, ROWS, domain="hotel", stepps=3)
    with pytest.raises(NotFoundError):
        model.library.get("hotel")
    assert not (tmp_path / "runs").exists()


def test_a_library_that_cannot_be_written_is_said_before_training(fresh, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LibraryError, match=r"no adapter can be stored there, because .* no folder"):
        ah.train(str(tiny("bert")), ROWS, domain="hotel", library=str(tmp_path / "file/in"), **FEW)
    assert not (tmp_path / "runs").exists()


def test_the_revision_it_is_trained_at_is_the_one_that_is_loaded_again(hub, fresh, tiny, tmp_path):
    """By the setting, and by a loaded model that was pinned."""
    few = {**FEW, "steps": 2, "domain": "hotel"}
    library = ah.Library(tmp_path / "library")
    by_name = ah.train(hub, ROWS, name="by-name", revision="old", library=str(library.root), **few)
    model = ah.load_backbone(hub, library=library, revision="old")
    by_model = ah.train(model, ROWS, name="by-model", **few)
    for info in (by_name, by_model):
        assert (info.backbone, info.revision) == (hub, "old")
        config = json.loads((library.root / info.name / "adapter_config.json").read_text())
        assert config["revision"] == "old"
        loaded = ah.load(info.name, library=library)
        assert loaded.backbone.config.model_type == "qwen3"  # main's is another
    without = ah.train(hub, ROWS, name="unpinned", library=str(library.root), **few)
    assert without.revision is None
    with pytest.raises(SettingsError, match="revision: set by the model that was given"):
        ah.train(model, ROWS, revision="old", **few)
    for name in ("starter", str(tiny("bert"))):
        with pytest.raises(SettingsError, match=r"revision='old': only a hub id has revisions"):
            ah.train(name, ROWS, revision="old", **few)


def test_a_row_of_an_undetermined_language_goes_without_one(fresh, caplog):
    rows = [*ROWS, Row("quiet", "good", language="und"), Row("rude", "bad", language="Danish")]
    info = ah.train(fresh("bert"), rows, domain="hotel", **{**FEW, "steps": 1})
    assert info.name == "hotel"
    assert "closest" not in caplog.text
    wrong = [*ROWS, Row("slow", "bad", language="hotel", where="mine:3")]
    with pytest.raises(DataError, match=r"mine:3: field 'language': 'hotel' is not a language"):
        ah.train(fresh("bert"), wrong, domain="hotel", name="two", **FEW)


def test_a_transformers_model_trains_the_adapter_that_its_checkpoint_does(fresh, tiny, tmp_path):
    import transformers

    few = {**FEW, "steps": 5}
    given = transformers.AutoModelForMaskedLM.from_pretrained(tiny("bert"))
    model = ah.load_backbone(given, library=tmp_path / "given")
    info = ah.train(model, ROWS, domain="hotel", **few)
    want = ah.train(fresh("bert"), ROWS, domain="hotel", **few)
    assert (info.backbone, info.fingerprint) == (want.backbone, want.fingerprint)
    one, two = (load_file(f"{i.path}/adapter_model.safetensors") for i in (info, want))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key])


def test_the_settings_say_the_precision_of_a_backbone_by_name(fresh, tiny, tmp_path, monkeypatch):
    from adapters_hub.training import run

    loaded = []
    load = run.load_backbone
    monkeypatch.setattr(
        run, "load_backbone", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[0]
    )
    how = {
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "library": str(tmp_path / "library"),
    }
    info = ah.train(str(tiny("bert")), ROWS, domain="hotel", **{**FEW, "steps": 2}, **how)
    assert (loaded[0].dtype, loaded[0].backbone.bits) == (torch.bfloat16, 16)
    assert loaded[0].config._attn_implementation == "eager"
    assert info.fingerprint == fresh("bert").backbone.fingerprint
    with pytest.raises(SettingsError, match="both say the precision"):
        ah.train(str(tiny("bert")), ROWS, domain="hotel", name="two", bits=32, **FEW, **how)
