"""The library that ships is never changed, and every change of a library is noticed."""

import json
import logging
import os
import shutil

import pytest
from helpers import (
    CONFIG,
    adder,
    lora_config,
    site_weights,
    snapshot,
    write_checkpoint,
    write_peft_folder,
)

from adapters_hub.cli import main
from adapters_hub.errors import LibraryError, NotFoundError
from adapters_hub.library import paths
from adapters_hub.library.library import Library


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A small library in the place of the one that ships; the working folder is an empty one."""
    package = tmp_path / "package"
    folder = package / "adapters"
    adder(Library(folder), tmp_path / "sources")(language="da")
    shutil.rmtree(folder / ".tmp", ignore_errors=True)
    monkeypatch.setattr(paths, "_PACKAGE", package)
    monkeypatch.delenv("ADAPTERS_HUB_LIBRARY", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def source(tmp_path):
    return write_peft_folder(tmp_path / "mine", seed=5)


def test_adding_to_the_library_that_ships_makes_one_here(shipped, source, caplog):
    (shipped / ".index.json").unlink()
    before = snapshot(shipped)
    library = Library()
    assert library.root == shipped
    assert [info.name for info in library] == ["da"]
    added = library.add(source, language="de")
    assert added.path == os.path.join("adapters", "de")
    assert [info.name for info in library] == [info.name for info in Library()] == ["da", "de"]
    assert library.verify("da") == library.verify("de") == []
    assert "a copy of the adapters that ship" in caplog.text
    assert snapshot(shipped) == before
    assert not (shipped / ".index.json").exists()


def test_a_library_that_was_made_here_meanwhile_gets_no_copies(shipped, source):
    library = Library()
    Library("adapters").add(source, name="da", domain="mine")
    before = snapshot("adapters/da")
    library.add(source, name="sw")
    assert snapshot("adapters/da") == before
    assert library.names() == ["da", "sw"]


def test_what_cannot_be_added_makes_no_folder(shipped, tmp_path):
    broken = write_peft_folder(tmp_path / "broken", config=lora_config(use_dora=True))
    with pytest.raises(ValueError, match="use_dora"):
        Library().add(broken, language="de")
    assert os.listdir() == []


def test_the_library_that_ships_cannot_be_changed_by_name(shipped, source):
    before = snapshot(shipped)
    library = Library(shipped)
    for change in (
        library.check_writable,
        lambda: library.add(source, language="de"),
        lambda: library.remove("da"),
        lambda: Library().remove("da"),
    ):
        with pytest.raises(LibraryError, match="ship with the package and are never changed"):
            change()
    assert snapshot(shipped) == before
    assert main(["remove", "da"]) != 0
    assert snapshot(shipped) == before


def test_every_change_is_seen_though_the_clock_stands_still(tmp_path, source):
    library = Library(tmp_path / "library")
    states = [library.state()]
    changes = (
        lambda: library.add(source, name="de"),
        lambda: library.add(source, name="sw"),
        lambda: library.add(source, name="de", replace_existing=True),
        lambda: library.remove("sw"),
    )
    for change in changes:
        change()
        os.utime(library.root, ns=(1, 1))
        states.append(library.state())
    assert len(set(states)) == 5
    assert library.state() == states[-1]


def test_the_list_of_changes_begins_anew_when_it_is_long(tmp_path, source, monkeypatch):
    from adapters_hub.library import folder

    monkeypatch.setattr(folder, "_MAX_CHANGES", 5)
    library = Library(tmp_path / "library")
    for name in ("de", "sw", "yo"):
        library.add(source, name=name)
        before = library.state()
    library.remove("yo")
    assert library.state() != before
    assert (library.root / ".changes").stat().st_size < 10


def test_an_adapter_that_did_not_change_is_read_once(tmp_path, source, monkeypatch):
    from adapters_hub.library import index

    library = Library(tmp_path / "library")
    for name in ("de", "sw"):
        library.add(source, name=name)
    first = library.list()
    read = []
    monkeypatch.setattr(index, "_read", lambda folder: read.append(folder.name))
    (library.root / ".index.json").unlink()
    assert library.list() == first
    assert read == []


def test_a_large_library_keeps_its_index_for_one_change(tmp_path, source, monkeypatch):
    from adapters_hub.library import index

    monkeypatch.setattr(index, "_WORTH", 2)
    library = Library(tmp_path / "library")
    for name in ("de", "sw", "yo", "ha"):
        library.add(source, name=name)
    stored = json.loads((library.root / ".index.json").read_text())
    library.add(source, name="th")
    assert json.loads((library.root / ".index.json").read_text()) == stored
    assert "th" in Library(library.root)


def test_settings_that_name_modules_to_import_are_not_stored(tmp_path):
    hostile = {"megatron_core": "evil", "auto_mapping": {"parent_library": "evil"}}
    source = write_peft_folder(
        tmp_path / "mine", config=lora_config(**hostile, runtime_config={"x": 1}, lora_dropout=0.1)
    )
    library = Library(tmp_path / "library")
    library.add(source, language="de")
    text = (library.root / "de" / CONFIG).read_text()
    assert "evil" not in text
    assert "runtime_config" not in text
    assert json.loads(text)["lora_dropout"] == 0.1
    assert b"evil" not in (library.root / "de" / "adapter_model.safetensors").read_bytes()
    assert library.verify("de") == []


def test_a_tokenizer_that_is_left_behind_is_said(tmp_path, caplog):
    source = write_peft_folder(tmp_path / "mine")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    library = Library(tmp_path / "library")
    with caplog.at_level(logging.WARNING):
        library.add(source, language="de")
    assert "tokenizer.json, chat_template.jinja" in caplog.text
    assert not (library.root / "de" / "tokenizer.json").exists()


def test_why_there_is_nothing(tmp_path, source, capsys):
    nowhere = Library(tmp_path / "nowhere")
    for look in (nowhere.get, nowhere.find, nowhere.resolve):
        with pytest.raises(NotFoundError, match=r"nowhere \(there is no such folder\)"):
            look("de")
    assert main(["list", "--library", str(tmp_path / "nowhere")]) == 0
    assert "there is no such folder" in capsys.readouterr().err
    backbone = tmp_path / "backbone"
    write_checkpoint(backbone, site_weights())
    library = Library(tmp_path / "library")
    library.add(source, name="hotel", domain="hotel", backbone=str(backbone))
    with pytest.raises(NotFoundError, match="have: none for this backbone, 1 for others"):
        library.find("bank", "v2:another")


def test_the_same_language_under_another_tag_is_no_substitute(tmp_path, source, caplog):
    library = Library(tmp_path / "library")
    library.add(source, name="yo", language="yo")
    resolution = library.resolve("yo-NG")
    assert (resolution.info.name, resolution.distance) == ("yo", 0)
    assert "the same as yo" in resolution.reason
    assert not caplog.records
