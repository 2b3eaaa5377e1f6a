import json
import logging
import os
import shutil

import numpy as np
import pytest
from helpers import (
    CONFIG,
    WEIGHTS,
    adder,
    lora_config,
    lora_tensors,
    site_weights,
    snapshot,
    write_checkpoint,
    write_peft_folder,
)
from safetensors.numpy import load_file, save_file

from adapters_hub.errors import (
    AdapterFileError,
    LanguageError,
    NotFoundError,
)
from adapters_hub.library import paths
from adapters_hub.library.blend import Blend
from adapters_hub.library.fingerprint import fingerprint
from adapters_hub.library.library import Library
from adapters_hub.library.model_card import read_front_matter


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "library")


@pytest.fixture
def add(library, tmp_path):
    return adder(library, tmp_path / "sources")


def names(infos):
    return [info.name for info in infos]


def test_a_folder_that_does_not_exist_is_an_empty_library(library):
    assert library.list() == library.names() == []
    assert len(library) == 0
    for look in (library.get, library.find, library.resolve, library.remove):
        with pytest.raises(NotFoundError, match="have: none"):
            look("de")
    assert not library.root.exists()


def test_what_is_added_is_what_is_read(library, tmp_path):
    source = write_peft_folder(tmp_path / "source", config=lora_config(lora_alpha=7, revision=None))
    added = library.add(
        source, language="German", domain="hotel", task="classification",
        labels=["bad", "good"], backbone="org/model", license="cc0-1.0",
    )  # fmt: skip
    assert added.name == "de-hotel"
    assert (added.language, added.domain, added.task) == ("de", "hotel", "classification")
    assert (added.labels, added.license) == (("bad", "good"), "cc0-1.0")
    assert (added.backbone, added.fingerprint) == ("org/model", None)
    assert library.get("de-hotel") == added == Library(library.root).list()[0]
    folder = library.root / "de-hotel"
    assert sorted(os.listdir(folder)) == ["README.md", CONFIG, WEIGHTS]
    for key, tensor in load_file(folder / WEIGHTS).items():
        assert np.array_equal(tensor, load_file(source / WEIGHTS)[key])
    assert json.loads((folder / CONFIG).read_text()) == lora_config(
        lora_alpha=7, base_model_name_or_path="org/model"
    )
    assert read_front_matter(folder / "README.md")["language"] == "de"
    assert library.read("de-hotel").spec.config["lora_alpha"] == 7
    assert library.verify("de-hotel") == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"language": "pt_br"}, "pt-BR"),
        ({"domain": "hotel"}, "hotel"),
        ({"language": "swh", "domain": "bank"}, "sw-bank"),
        ({}, "mine.v1"),
        ({"language": "de", "name": "other"}, "other"),
    ],
)
def test_names_that_are_not_given(add, given, name):
    assert add(source="mine.v1", **given).name == name


def test_every_sound_name_is_a_folder_a_term_and_its_own(library, add):
    wanted = [
        "de",
        "to",
        "mo",
        "con",
        "null",
        "com10",
        "hotel.v2",
        "pt",
        "pt-BR",
        "zh-Hant",
        "größe",
    ]
    for number, name in enumerate(wanted):
        assert add(name, seed=number).name == name
    assert names(library.list()) == sorted(wanted) == library.names()
    assert (library.root / "con_").is_dir()
    for name in wanted:
        assert library.get(name).name == library.find(name).name == name
        assert Blend.parse(name).terms == (name,)
        assert library.verify(name) == []
    hashes = {info.hash for info in library.list()}
    assert len(hashes) == len(wanted)
    library.remove("con")
    assert "con" not in library.names()


def test_patterns_keep_their_order(library, tmp_path):
    """PEFT takes the first one that fits, so an order of one's own would be another scaling."""
    config = lora_config(alpha_pattern={"zz.one": 8, "one": 64, "b": 1})
    library.add(write_peft_folder(tmp_path / "source", config=config), name="de")
    folder = library.root / "de"
    for kept in (
        json.loads((folder / CONFIG).read_text()),
        library.read("de").spec.config,
        json.loads(library.read("de").header.metadata["adapters_hub"])["lora"],
    ):
        assert [*kept["alpha_pattern"]] == ["zz.one", "one", "b"]
    assert library.verify("de") == []
    changed = json.loads((folder / CONFIG).read_text())
    changed["alpha_pattern"] = dict(sorted(changed["alpha_pattern"].items()))
    (folder / CONFIG).write_text(json.dumps(changed))
    assert library.verify("de") == ["adapter_config.json differs from the header in alpha_pattern"]


def test_one_may_read_where_a_change_was_left_half_done(library, add, monkeypatch):
    add(language="de")
    (library.root / ".trash").mkdir()

    def refuse(*given, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert names(Library(library.root).list()) == ["de"]


def test_a_domain_that_the_files_name_can_be_dropped(library, add):
    """Such as one that was trained as a domain's and is a language's."""
    add(domain="hotel", name="first")
    folder = library.get("first").path
    library.add(folder, name="de", language="de", domain="")
    assert (library.get("de").language, library.get("de").domain) == ("de", None)
    assert library.resolve("de").info.name == "de"
    assert library.add(folder, name="kept").domain == "hotel"


def test_a_list_is_filtered_by_what_is_given(library, add, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "base", site_weights())
    add(language="de")
    add(language="sw", task="language-modeling")
    add(domain="hotel", task="classification", backbone=str(checkpoint))
    add(language="de", domain="hotel")
    assert names(library.list()) == ["de", "de-hotel", "hotel", "sw"]
    assert names(library.list("German")) == ["de", "de-hotel"]
    assert names(library.list(domain="hotel")) == ["de-hotel", "hotel"]
    assert names(library.list("de", "hotel")) == ["de-hotel"]
    assert names(library.list(task="classification")) == ["hotel"]
    assert names(library.list(fingerprint=fingerprint(checkpoint))) == names(library.list())
    assert names(library.list(fingerprint="another")) == ["de", "de-hotel", "sw"]
    assert library.list("pt") == []
    with pytest.raises(LanguageError):
        library.list("hotel")


INDEX = ".index.json"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b'{"de": '),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.write_bytes(b"[]"),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: file.write_bytes(b'{"de": 5, "sw": {}, "gone": {"state": []}}'),
        lambda file: file.write_text(file.read_text().replace('"info":', '"other":')),
        lambda file: file.write_text(file.read_text().replace('"language":"de"', '"language":5')),
        lambda file: file.write_text(file.read_text().replace('"name":"de"', '"rank":3')),
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
def test_the_index_is_only_a_cache(library, add, damage, caplog):
    add(language="de")
    add(language="sw", seed=1)
    before = library.list()
    assert set(json.loads((library.root / INDEX).read_text())) == {"de", "sw"}
    damage(library.root / INDEX)
    assert library.list() == before
    assert library.list() == before
    assert not caplog.records


def test_what_is_changed_by_hand_is_seen(library, add, tmp_path):
    add(language="de")
    add(language="sw")
    assert names(library.list()) == ["de", "sw"]
    save_file(lora_tensors(rank=5), library.root / "de" / WEIGHTS)
    config = library.root / "sw" / CONFIG
    config.write_text(json.dumps(lora_config(task_type="SEQ_CLS", r=99)))
    assert library.get("de").rank == 5
    assert library.verify("sw") == [f"{CONFIG} differs from the header in r, task_type"]
    os.rename(library.root / "sw", library.root / "renamed")
    assert names(library.list()) == ["de", "renamed"]
    shutil.rmtree(library.root / "de")
    assert names(library.list()) == ["renamed"]
    (library.root / "notes.txt").write_text("a file beside the adapters")
    (library.root / ".git").mkdir()
    assert names(library.list()) == library.names() == ["renamed"]


@pytest.mark.parametrize(
    ("front", "language"),
    [
        ("language: de", "de"),
        ("language: Swahili", "sw"),
        ("language: [pt_br]", "pt-BR"),
        ("language: no", "no"),
        ("language: [de, en]", None),
        ("language: multilingual", None),
        ("language: 5", None),
        ("license: mit", None),
    ],
)
def test_a_foreign_folder_dropped_in_by_hand(library, front, language):
    card = f"---\nlibrary_name: peft\n{front}\n---\n# Mine\n"
    config = lora_config(base_model_name_or_path="org/model")
    write_peft_folder(library.root / "dropped", config=config, card=card)
    (info,) = library.list()
    assert (info.name, info.language, info.backbone) == ("dropped", language, "org/model")
    assert info.license == ("mit" if "license" in front else None)
    assert library.verify("dropped") == ["no content hash was stored"]
    again = library.add(library.root / "dropped", name="again")
    assert (again.language, again.license) == (info.language, info.license)
    assert names(library.list(language)) == ["again", "dropped"]


def test_a_foreign_card_that_changes_is_read_again(library):
    folder = write_peft_folder(library.root / "dropped", card="---\nlanguage: de\n---\n")
    assert library.get("dropped").language == "de"
    (folder / "README.md").write_text("---\nlanguage: sw\n---\n")
    os.utime(folder / "README.md", ns=(1, 1))
    assert library.get("dropped").language == "sw"
    (folder / "README.md").unlink()
    assert library.get("dropped").language is None


def test_a_damaged_adapter_is_left_out_and_reported(library, add, caplog):
    add(language="de")
    add(language="sw")
    weights = library.root / "de" / WEIGHTS
    os.truncate(weights, weights.stat().st_size - 4)
    with caplog.at_level(logging.WARNING):
        assert names(library.list()) == ["sw"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(weights) in record.getMessage()
    assert "truncated" in record.getMessage()
    assert library.names() == ["de", "sw"]
    assert "truncated" in library.verify("de")[0]
    for look in (library.find, library.resolve, library.get):
        with pytest.raises(AdapterFileError, match="truncated"):  # not as absent
            look("de")
    library.remove("de")
    assert library.names() == ["sw"]


def test_verify_sees_one_changed_byte(library, add):
    add(language="de")
    weights = library.root / "de" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1
    weights.write_bytes(data)
    (problem,) = library.verify("de")
    assert problem.startswith("the tensors changed: sha256:")
    assert "no such folder" in library.verify("missing")[0]


def test_where_the_default_library_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTERS_HUB_LIBRARY", raising=False)
    bundled = Library().root
    assert bundled == paths.bundled_root()
    assert bundled.name == "adapters"
    assert not str(bundled).startswith(str(tmp_path))
    (tmp_path / "adapters").mkdir()
    assert Library().root.resolve() == tmp_path / "adapters"
    monkeypatch.setenv("ADAPTERS_HUB_LIBRARY", str(tmp_path / "chosen"))
    assert Library().root == tmp_path / "chosen"
    assert Library(tmp_path / "given").root == tmp_path / "given"


def test_reading_changes_nothing_but_the_index(library, add):
    add(language="de")
    before = snapshot(library.root)
    library.list()
    library.verify("de")
    library.find("German")
    assert snapshot(library.root) == before
    assert set(os.listdir(library.root)) <= {"de", INDEX, ".lock", ".changes"}
