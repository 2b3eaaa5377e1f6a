"""Pushing and pulling through the real client, to a small Hub on loopback."""

import json

import numpy as np
import pytest
import yaml
from helpers import CONFIG, WEIGHTS, adder, lora_config, lora_tensors, snapshot, write_peft_folder
from helpers.fake_hub import OTHER, READ, WRITE, running_hub
from safetensors.numpy import load_file

from adapters_hub.cli import main
from adapters_hub.errors import (
    AccessError,
    AdapterFileError,
    BackboneMismatchError,
    LibraryError,
    NotFoundError,
    RemoteNotFoundError,
    SettingsError,
    TransferError,
)
from adapters_hub.library.library import Library


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def library(tmp_path):
    """A library of two adapters for a backbone that the Hub has."""
    library = Library(tmp_path / "library")
    add = adder(library, tmp_path / "sources")
    add("de", language="de", backbone="org/model", license="CC-BY-4.0")
    add("hotel", seed=1, domain="hotel", backbone="org/model")
    return library


@pytest.fixture
def other(tmp_path):
    return Library(tmp_path / "other")


def folder_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_pushed_is_what_is_pulled(hub, library, other):
    pushed = library.push("de", "me/german")
    repository = hub.repositories["me/german"]
    assert pushed.revision == repository.branches["main"]
    assert (pushed.url, pushed.source) == (f"{hub.url}/me/german", "hf://me/german")
    assert {*repository.commits[pushed.revision]} == {
        ".gitattributes",
        WEIGHTS,
        CONFIG,
        "README.md",
    }
    info = other.pull("me/german")
    assert (info.name, info.language, info.license) == ("de", "de", "CC-BY-4.0")
    assert (info.origin.source, info.origin.revision) == ("hf://me/german", pushed.revision)
    assert info.hash == library["de"].hash
    assert other.verify("de") == []
    assert library["de"].origin is None


def test_a_card_has_the_fields_that_the_hub_reads(hub, library):
    from huggingface_hub import ModelCard

    library.push("de", "me/german")
    (files,) = [f for f in hub.repositories["me/german"].commits.values() if "README.md" in f]
    card = ModelCard(files["README.md"].decode())
    front = card.data.to_dict()
    assert front["base_model"] == "org/model"
    assert front["base_model_relation"] == "adapter"
    assert (front["library_name"], front["language"], front["license"]) == (
        "peft",
        "de",
        "cc-by-4.0",
    )
    assert 'ah.load("hf://me/german")' in card.text


def test_a_name_is_private_or_not_as_asked(hub, library):
    library.push("de", "me/secret", private=True)
    library.push("de", "me/open", private=False)
    library.push("de", "me/usual")
    assert [hub.repositories[f"me/{n}"].private for n in ("secret", "open", "usual")] == [
        True, False, False,
    ]  # fmt: skip


def test_a_push_to_a_branch_leaves_the_main_one(hub, library, other):
    first = library.push("de", "me/german")
    second = library.push("hotel", "me/german", revision="hotel")
    assert hub.repositories["me/german"].branches == {
        "main": first.revision, "hotel": second.revision,
    }  # fmt: skip
    assert other.pull("me/german", revision="hotel").name == "hotel"
    assert other.pull("hf://me/german").name == "de"
    assert other["hotel"].origin.source == "hf://me/german@hotel"


def test_a_large_file_goes_through_lfs_and_once(hub, library, tmp_path):
    tensors = lora_tensors(rank=64, inputs=256, outputs=128, seed=3)
    source = write_peft_folder(tmp_path / "large", tensors=tensors, config=lora_config(r=64))
    library.add(source, name="large", backbone="org/model")
    hub.refuse_commit = 1
    with pytest.raises(TransferError, match=r"answers 500.*again later"):
        library.push("large", "me/large")
    assert len(hub.uploads()) == 1
    pushed = library.push("large", "me/large")
    assert len(hub.uploads()) == 1  # the Hub has it already
    sent = hub.repositories["me/large"].commits[pushed.revision][WEIGHTS]
    assert sent == (library.root / "large" / WEIGHTS).read_bytes()


def test_a_download_that_breaks_goes_on_where_it_stopped(
    hub, library, other, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # kept of it; 10 MB otherwise
    tensors = lora_tensors(rank=64, inputs=256, outputs=128, seed=3)
    source = write_peft_folder(tmp_path / "large", tensors=tensors, config=lora_config(r=64))
    library.add(source, name="large", backbone="org/model")
    library.push("large", "me/large")
    hub.break_after = 50_000
    info = other.pull("me/large")
    assert hub.ranges() == ["bytes=50000-"]
    assert info.hash == library["large"].hash
    np.testing.assert_array_equal(
        load_file(other.root / "large" / WEIGHTS)["base_model.model.layers.0.q_proj.lora_A.weight"],
        tensors["base_model.model.layers.0.q_proj.lora_A.weight"],
    )


def test_a_tag_and_a_commit_are_revisions(hub, library, other):
    first = library.push("de", "me/german").revision
    hub.repositories["me/german"].tags["v1"] = first
    library.push("hotel", "me/german")
    assert other.pull("me/german", revision="v1").origin.source == "hf://me/german@v1"
    pinned = other.pull(f"hf://me/german@{first[:10]}", name="again")
    assert (pinned.origin.source, pinned.origin.revision) == ("hf://me/german", first)
    assert other.pull("me/german").name == "hotel"


def test_outdated_says_what_is_newer_at_its_source(hub, library, other, capsys):
    library.push("de", "me/german")
    library.push("hotel", "me/hotel")
    other.pull("me/german")
    pinned = other.pull("me/hotel").origin.revision
    assert other.outdated() == []
    assert main(["outdated", "--library", str(other.root)]) == 0
    assert "2 pulled adapters, all as at their sources" in capsys.readouterr().out
    newest = library.push("hotel", "me/hotel", message="better").revision
    (row,) = other.outdated()
    assert (row.name, row.pinned, row.newest) == ("hotel", pinned, newest)
    assert main(["outdated", "--library", str(other.root)]) == 0
    assert "pull hf://me/hotel --name hotel --replace" in capsys.readouterr().out
    assert other.pull("me/hotel", replace_existing=True).origin.revision == newest
    assert other.outdated() == []
    del hub.repositories["me/german"]
    (row,) = other.outdated()
    assert row.newest is None
    assert "no such repository" in row.problem
    assert main(["outdated", "--library", str(other.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["name"] == "de"


def test_the_same_revision_is_not_pulled_twice(hub, library, other):
    library.push("de", "me/german")
    first = other.pull("me/german")
    asked = len(hub.requests)
    assert other.pull("me/german") == first
    assert len(hub.requests) == asked + 1  # only which commit it is
    assert other.pulled("hf://me/german") == first
    assert other.pulled(f"hf://me/german@{first.origin.revision[:8]}") == first
    assert len(hub.requests) == asked + 1
    library.push("de", "me/german")
    assert other.pulled("hf://me/german") == first  # pinned
    with pytest.raises(LibraryError, match=r"already has 'de'.*--replace"):
        other.pull("me/german")
    assert other.pull("me/german", name="newer").origin != first.origin


def test_a_folder_of_a_repository(hub, other, tmp_path):
    files = folder_files(write_peft_folder(tmp_path / "one"))
    hub.make("me/many", {f"adapters/one/{name}": data for name, data in files.items()})
    with pytest.raises(
        RemoteNotFoundError, match="in its folders adapters/one: pull hf://me/many@main/ad"
    ):
        other.pull("me/many")
    info = other.pull("hf://me/many@main/adapters/one")
    assert (info.name, info.origin.source) == ("one", "hf://me/many@main/adapters/one")
    page = f"{hub.url}/me/many/tree/main/adapters/one"
    assert other.pull(page) == info


def test_plain_peft_from_the_hub_says_its_language_by_its_card(hub, other, tmp_path):
    card = "---\nlanguage: pt\nlanguage_bcp47:\n- pt-BR\nlicense: mit\ndatasets: org/data\n---\n"
    files = folder_files(write_peft_folder(tmp_path / "one", card=card))
    hub.make("me/my_lora", files)
    info = other.pull("me/my_lora")
    assert (info.name, info.language, info.license) == ("pt-BR", "pt-BR", "mit")
    assert info.datasets == ("org/data",)
    hub.make("me/x-.lora", folder_files(write_peft_folder(tmp_path / "two")))
    assert other.pull("me/x-.lora").name == "x-lora"


def test_what_is_pulled_is_checked_and_leaves_nothing(hub, library, other, tmp_path):
    bad = lora_tensors()
    bad["base_model.model.layers.0.q_proj.lora_A.weight"][0] = np.nan
    hub.make("me/nan", folder_files(write_peft_folder(tmp_path / "nan", tensors=bad)))
    hub.make("me/pickle", {CONFIG: b"{}", "adapter_model.bin": b"x"})
    hub.make("me/nothing", {"README.md": b""})
    hub.make("me/cut", {CONFIG: json.dumps(lora_config()).encode(), WEIGHTS: b"\0" * 50})
    other.add(write_peft_folder(tmp_path / "kept"), name="kept")
    before = snapshot(other.root)
    for name, problem in (("nan", "NaN"), ("pickle", "is a pickle"), ("cut", "header")):
        with pytest.raises(AdapterFileError, match=problem):
            other.pull(f"me/{name}")
    with pytest.raises(RemoteNotFoundError, match=r"no adapter_config\.json, adapter_model"):
        other.pull("me/nothing")
    assert snapshot(other.root) == before


def test_errors_say_what_to_do(hub, library, other, monkeypatch):
    library.push("de", "me/german", private=True)
    hub.make("me/gated", {"README.md": b""}, gated=True)
    with pytest.raises(RemoteNotFoundError, match="no revision 'v9'; there are main"):
        other.pull("me/german", revision="v9")
    with pytest.raises(NotFoundError, match="no such repository, or a private one"):
        other.pull("me/nothing")
    monkeypatch.setenv("HF_TOKEN", READ)
    assert other.pull("me/german").name == "de"
    with pytest.raises(AccessError, match="may write"):
        library.push("hotel", "me/german")
    with pytest.raises(AccessError, match="is gated: ask for access"):
        other.pull("me/gated")
    monkeypatch.setenv("HF_TOKEN", OTHER)
    with pytest.raises(RemoteNotFoundError, match="the token may not read"):
        other.pull("me/german")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(AccessError, match="does not take the token"):
        other.pull("me/german")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessError, match=r"private one, and no token.*hf auth login"):
        other.pull("me/german")
    with pytest.raises(AccessError, match=r"nobody is logged in.*may write"):
        library.push("hotel", "me/german")
    assert library.push("de", "me/german", token=WRITE).revision
    assert other.names() == ["de"]


def test_a_backbone_that_it_does_not_belong_to(hub, library, other, tmp_path):
    from helpers import site_weights, write_checkpoint

    one, two = (
        write_checkpoint(tmp_path / name, {k: v * n for k, v in site_weights().items()})
        for n, name in enumerate(("one", "two"), 1)
    )
    library.add(write_peft_folder(tmp_path / "x"), name="x", backbone=str(one))
    library.push("x", "me/x")
    with pytest.raises(BackboneMismatchError, match="belongs to another backbone"):
        other.pull("me/x", backbone=str(two))
    assert other.pull("me/x", backbone=str(one)).backbone == str(one)


def test_a_backbone_in_a_folder_is_named_by_its_id(hub, library, tmp_path, caplog):
    library.add(write_peft_folder(tmp_path / "x"), name="x", backbone="/models/mine")
    files = hub.repositories
    pushed = library.push("x", "me/x")
    assert "no id on the Hub" in caplog.text
    assert "base_model" not in files["me/x"].commits[pushed.revision]["README.md"].decode()
    pushed = library.push("x", "me/x", base="org/model")
    sent = files["me/x"].commits[pushed.revision]
    assert "base_model: org/model" in sent["README.md"].decode()
    assert json.loads(sent[CONFIG])["base_model_name_or_path"] == "org/model"
    assert b"/models/mine" not in sent[WEIGHTS]


def test_a_text_that_was_written_by_hand_is_kept(hub, library):
    path = library.root / "de" / "README.md"
    front = path.read_text(encoding="utf-8").split("---")[1]
    path.write_text(f"---{front}---\n\n# Mine\n\nBy hand.\n", encoding="utf-8")
    pushed = library.push("de", "me/german")
    sent = hub.repositories["me/german"].commits[pushed.revision]["README.md"].decode()
    assert sent.endswith("# Mine\n\nBy hand.\n")
    assert yaml.safe_load(sent.split("---")[1])["base_model_relation"] == "adapter"


def test_no_network(hub, library, other, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TransferError, match="HF_HUB_OFFLINE"):
        other.pull("me/german")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransferError, match="look at the network"):
        other.pull("me/german")
    with pytest.raises(TransferError, match="look at the network"):
        library.push("de", "me/german")
    assert not other.root.exists()


@pytest.mark.parametrize(
    "source", ["hf://repo", "hf://a/b@", "hf://a/../c/..", "https://huggingface.co/datasets/a/b"]
)
def test_what_is_no_address(other, source):
    with pytest.raises(SettingsError):
        other.pull(source)


def test_what_cannot_be_a_revision(other, tmp_path):
    with pytest.raises(SettingsError, match="only the Hub keeps revisions"):
        other.pull(str(tmp_path), revision="v1")
    with pytest.raises(SettingsError, match="two revisions"):
        other.pull("hf://a/b@v1", revision="v2")
    with pytest.raises(SettingsError, match=r"library\.pull\('hf://a/b'\) adds it"):
        other.add("hf://a/b")


def test_the_commands(hub, library, other, capsys):
    assert main(["push", "de", "me/german", "--private", "--library", str(library.root)]) == 0
    assert f"pushed de to {hub.url}/me/german" in capsys.readouterr().out
    assert hub.repositories["me/german"].private
    assert main(["pull", "me/german", "--name", "german", "--library", str(other.root)]) == 0
    assert "pulled german as" in capsys.readouterr().out
    assert main(["pull", "me/none", "--library", str(other.root)]) == 1
    assert "error: hf://me/none: no such repository" in capsys.readouterr().err
