"""`load` and `load_backbone`: what names the backbone, its revision, and what becomes active."""

import inspect
import json

import pytest

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.errors import BackboneMismatchError, NotFoundError


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="german", language="de")
    library.add(lora_folder("qwen3", "two", r=2), name="hotel", domain="hotel")
    library.add(lora_folder("qwen3", "three", r=2), name="topics")
    library.add(lora_folder("qwen3", "three", r=2), name="one")  # Oneida's code, too
    return library


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        (("de", "hotel"), {"german": 1.0, "hotel": 1.0}),
        (("de",), {"german": 1.0}),
        (("topics",), {"topics": 1.0}),
        (("one",), {"one": 1.0}),
        (("de + 0.5*topics",), {"german": 1.0, "topics": 0.5}),
        (("da? + topics",), {"topics": 1.0}),
        ((None, "hotel"), {"hotel": 1.0}),
        (("topics", "hotel"), {"topics": 1.0, "hotel": 1.0}),
    ],
)
def test_load_takes_a_language_a_name_or_a_blend(asked, weights, library):
    model = ah.load(*asked, library=library)
    assert dict(model.active.weights) == weights


def test_load_of_nothing_that_is_there_says_so(library):
    with pytest.raises(NotFoundError, match="nowhere"):
        ah.load("nowhere", library=library)
    with pytest.raises(NotFoundError, match="no adapter is left"):
        ah.load("da?", library=library)


def test_both_take_the_same_keywords():
    one, two = (inspect.signature(function).parameters for function in (ah.load, ah.load_backbone))
    keywords = [
        {n: p.default for n, p in each.items() if p.kind is p.KEYWORD_ONLY} for each in (one, two)
    ]
    assert keywords[0] == keywords[1]


def test_load_gives_the_keywords_of_loading_through(library):
    model = ah.load("de", library=library, dtype="bfloat16", attn_implementation="eager")
    assert (str(model.dtype), model.config._attn_implementation) == ("torch.bfloat16", "eager")
    assert dict(model.active.weights) == {"german": 1.0}


# ── revisions ────────────────────────────────────────────────────────────────────────────────────


def pinned(source, to, revision):
    """A PEFT folder whose configuration pins a revision of org/model."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "org/model", "revision": revision}
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


def test_the_revision_that_an_adapter_pins_is_loaded_and_written(
    hub, tmp_path, lora_folder, tiny, capsys
):
    library = ah.Library(tmp_path / "library")
    folder = pinned(lora_folder("qwen3", "one"), tmp_path / "one", "old")
    library.add(folder, name="one", language="de")
    assert library.get("one").revision == "old"
    model = ah.load("de", library=library)
    assert model.backbone.config.model_type == "qwen3"  # main's is another
    assert ah.load_backbone(hub, library=library).backbone.config.model_type == "llama"
    out = model.export("one", tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["revision"] == "old"
    assert library.add(out, name="again").revision == "old"
    arguments = ["compose", "one", "-o", str(tmp_path / "cli"), "--library", str(library.root)]
    assert main(arguments) == 0
    config = json.loads((tmp_path / "cli" / "adapter_config.json").read_text())
    assert config["revision"] == "old"


def test_two_revisions_of_one_backbone_are_two_backbones(hub, tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    for name, revision in (("one", "old"), ("two", "b" * 40)):
        folder = pinned(lora_folder("qwen3", name, r=2), tmp_path / name, revision)
        library.add(folder, name=name)
    with pytest.raises(BackboneMismatchError, match=r"different revisions of org/model: old \(one"):
        ah.load("one + two", library=library)
    model = ah.load("one + two", library=library, revision="old", check_backbone=False)
    assert set(model.active.terms) == {"one", "two"}
