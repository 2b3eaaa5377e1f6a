"""A blend goes to the Hub as its exact sum, and `load` takes what is there by its address."""

import logging

import pytest
import torch
from helpers import write_peft_folder
from helpers.fake_hub import running_hub

import adapters_hub as ah
from adapters_hub.errors import NotFoundError, SettingsError

BLEND = "german + 0.5*rooms"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def library(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    backbone = str(tiny("qwen3"))
    common = {"backbone": backbone, "license": "mit"}
    library.add(lora_folder("qwen3", "one"), name="german", language="de", **common)
    library.add(lora_folder("qwen3", "two", r=3), name="rooms", domain="hotel", **common)
    return library


def logits(model, blend):
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        return model(input_ids=ids, adapters=blend).logits


def test_a_pushed_blend_is_the_blend(hub, library, tiny, tmp_path):
    pushed = library.push(BLEND, "me/german-hotel")
    assert {*hub.repositories["me/german-hotel"].commits[pushed.revision]} > {"README.md"}
    other = ah.Library(tmp_path / "other")
    info = other.pull("me/german-hotel")
    assert (info.name, info.language, info.domain, info.license) == (
        "german-rooms", "de", "hotel", "mit",
    )  # fmt: skip
    assert info.description == "The sum of german + 0.5*rooms."
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    pulled = ah.load_backbone(str(tiny("qwen3")), library=other)
    torch.testing.assert_close(
        logits(pulled, "german-rooms"), logits(model, BLEND), atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(logits(model, BLEND), logits(model, None))


def test_load_takes_an_address(hub, library, tmp_path, caplog):
    first = library.push("german", "me/german").revision
    library.push("rooms", "me/rooms")
    other = ah.Library(tmp_path / "other")
    model = ah.load(f"hf://me/german@{first}", domain="hf://me/rooms", library=other)
    assert str(model.active) == "german + rooms"
    assert other["german"].origin.revision == first
    library.push("german", "me/german", message="newer")
    asked = len(hub.requests)
    again = ah.load("hf://me/german + 0.5*hf://me/rooms", library=other)
    assert len(hub.requests) == asked  # both are here, and pinned
    assert str(again.active) == "german + 0.5*rooms"
    want = ah.load("german + 0.5*rooms", library=library)
    torch.testing.assert_close(
        logits(again, again.active), logits(want, want.active), atol=1e-6, rtol=1e-6
    )
    assert [row.name for row in other.outdated()] == ["german"]


def test_what_cannot_be_pushed(hub, library, tmp_path):
    with pytest.raises(NotFoundError):
        library.push("nobody", "me/x")
    with pytest.raises(NotFoundError, match="the blend is empty"):
        library.push("german - german", "me/x")
    library.add(write_peft_folder(tmp_path / "three"), name="nameless")
    with pytest.raises(SettingsError, match="names no backbone"):
        library.push("nameless + german", "me/x")
    assert hub.repositories == {}


def test_a_weight_is_in_the_sum(hub, library, tiny, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    library.push("2*german + nobody?", "me/twice", name="twice", base="org/model")
    assert "no id on the Hub" not in caplog.text
    other = ah.Library(tmp_path / "other")
    other.pull("me/twice", backbone=str(tiny("qwen3")))
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    pulled = ah.load_backbone(str(tiny("qwen3")), library=other)
    torch.testing.assert_close(
        logits(pulled, "twice"), logits(model, "2*german"), atol=1e-5, rtol=1e-5
    )
