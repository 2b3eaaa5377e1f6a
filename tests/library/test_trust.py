"""A library that demands signatures: nothing that lacks them is added or loaded."""

import json
import os

import pytest
from helpers import CONFIG, WEIGHTS, adder, lora_config, lora_tensors, snapshot, write_peft_folder
from safetensors.numpy import save_file

from adapters_hub.errors import AdapterFileError, SettingsError, SignatureError
from adapters_hub.library.library import Library
from adapters_hub.library.trust import TrustPolicy

pytest.importorskip("model_signing.signing")
from adapters_hub.sharing.signing import new_key, sign

POLICY = """
keys: {ops: ops.pub, partner: partner.pub}
adapters:
  hotel: [partner]
  "test-*": unsigned
  "de*": [ops, partner]
  "*": ops
"""


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "library"
    root.mkdir()
    for name in ("ops", "partner"):
        new_key(tmp_path / name)
        os.rename(tmp_path / f"{name}.pub", root / f"{name}.pub")
    (root / "trust.yaml").write_text(POLICY)
    return Library(root)


@pytest.fixture
def source(tmp_path):
    def make(name, key=None, **given):
        folder = write_peft_folder(tmp_path / "sources" / name, **given)
        if key:
            sign(folder, tmp_path / f"{key}.pem")
        return folder

    return make


def test_which_keys_are_for_which_names(library):
    policy = TrustPolicy.read(library.root)
    named = {name: keys and [key.name for key in keys]
             for name in ("hotel", "test-x", "de", "de-AT", "sw")
             for keys in [policy.keys(name)]}  # fmt: skip
    assert named == {
        "hotel": ["partner"], "test-x": None, "de": ["ops", "partner"], "de-AT": ["ops", "partner"],
        "sw": ["ops"],
    }  # fmt: skip


def test_adding(library, source):
    before = snapshot(library.root)
    for folder, name, what in (
        (source("a"), "de", "unsigned"),
        (source("b", "partner"), "sw", "another key"),
        (source("c", "ops"), "hotel", "another key"),
    ):
        with pytest.raises(SignatureError, match=what):
            library.add(folder, name=name)
        assert snapshot(library.root) == before
    library.add(source("d"), name="test-1")
    added = library.add(source("e", "partner"), name="hotel")
    assert library.read("hotel").info.sites == added.sites == 2
    assert library.verify("hotel") == ["no content hash was stored"]


def test_a_signed_folder_is_kept_as_it_is(library, source):
    folder = source("sw", "ops", card="---\nlanguage: sw\n---\n")
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("kept")
    library.add(folder)
    assert not (library.root / "sw" / "more").exists()
    sign(folder, folder.parent.parent / "ops.pem")
    assert library.add(folder, replace_existing=True).name == "sw"
    assert snapshot(library.root / "sw") == snapshot(folder)
    with pytest.raises(SettingsError, match="language, license would change files"):
        library.add(folder, language="en", license="mit", replace_existing=True)


def test_loading(library, source, tmp_path):
    library.add(source("sw", "ops"), name="sw")
    library.read("sw")
    folder = library.root / "sw"
    sound = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_text(json.dumps(lora_config(lora_alpha=400)))
    with pytest.raises(SignatureError, match=f"changed: {CONFIG}"):
        library.read("sw")
    assert any("not as ops" in line for line in library.verify("sw"))
    (folder / CONFIG).write_bytes(sound)
    library.read("sw")
    os.rename(write_peft_folder(tmp_path / "by hand"), library.root / "de")
    assert "de" in library
    with pytest.raises(SignatureError, match="unsigned"):
        library.read("de")
    (library.root / "trust.yaml").unlink()
    library.read("de")


def test_a_rule_that_changes_counts_at_once(library, source):
    library.add(source("sw", "ops"), name="sw")
    library.read("sw")
    (library.root / "trust.yaml").write_text('keys: {p: partner.pub}\nadapters: {"*": p}\n')
    with pytest.raises(SignatureError, match="another key"):
        library.read("sw")
    (library.root / "trust.yaml").write_text("keys: {}\nadapters: {de: unsigned}\n")
    with pytest.raises(SignatureError, match="no rule for 'sw'"):
        library.read("sw")


@pytest.mark.parametrize(
    "policy",
    ["", "[]", "{", "keys: {ops: none.pub}\nadapters: {}", "keys: 5\nadapters: {}",
     'keys: {}\nadapters: {"*": ops}', "keys: {}\nadapters: {de: []}", "rules: {}",
     "keys: {}\nadapters: {de: unsigned, de: unsigned}", "keys: &a {}\nadapters: *a", "a: " + "[" * 900,
     "keys: {ops: trust.yaml}\nadapters: {}", "\x00", "keys: {}\nadapters: {de: {ops: 1}}"],
)  # fmt: skip
def test_a_damaged_policy_lets_nothing_in(library, source, policy):
    library.add(source("x"), name="test-1")
    (library.root / "trust.yaml").write_text(policy)
    with pytest.raises(SettingsError, match=r"trust\.yaml"):
        library.read("test-1")
    with pytest.raises(SettingsError, match=r"trust\.yaml"):
        library.add(source("y"), name="test-2")


def test_what_would_be_left_unsigned_is_refused_before_the_work(library, source):
    from adapters_hub.library.pair_weight import PairWeight

    library.check_writable("test-2")
    with pytest.raises(SignatureError, match="demands a signature of ops"):
        library.check_writable("sw")
    library.add(source("sw", "ops"), name="sw")
    measured = PairWeight(
        weight=1.0, metric="loss", alone=1.0, together=0.5, rows=3, hash="x", task="y"
    )
    with pytest.raises(SignatureError, match="another weight"):
        library.keep_pair_weight("sw", "sw", measured)


def test_pickles_and_lone_files_stay_out(library, source, tmp_path):
    folder = source("sw")
    (folder / "training_args.bin").write_bytes(b"x")
    sign(folder, tmp_path / "ops.pem")
    with pytest.raises(AdapterFileError, match="pickle"):
        library.add(folder, name="sw")
    plain = Library(tmp_path / "plain")
    added = plain.add(source("lone"), name="sw")
    lone = tmp_path / "sw.safetensors"
    lone.write_bytes((plain.root / added.name / WEIGHTS).read_bytes())
    sign(lone, tmp_path / "ops.pem")
    with pytest.raises(SignatureError, match="lone file"):
        library.add(lone)


def test_signed_numbers_must_be_numbers(library, source, tmp_path):
    tensors = lora_tensors()
    next(iter(tensors.values()))[0, 0] = float("nan")
    with pytest.raises(AdapterFileError, match="NaN"):
        library.add(source("sw", "ops", tensors=tensors), name="sw")


def test_a_model_loads_only_what_is_signed(library, tiny, lora_folder, tmp_path):
    import shutil

    import adapters_hub as ah

    folder = tmp_path / "adapter"
    shutil.copytree(lora_folder("qwen3", "one"), folder)
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    shutil.copytree(folder, library.root / "sw")
    with pytest.raises(SignatureError, match="unsigned"):
        model.use("sw")
    sign(library.root / "sw", tmp_path / "ops.pem")
    model.use("sw")
    save_file(lora_tensors(), library.root / "sw" / WEIGHTS)
    with pytest.raises(SignatureError, match=f"changed: {WEIGHTS}"):
        ah.load_backbone(str(tiny("qwen3")), library=library).use("sw")


def test_no_policy_demands_nothing(tmp_path):
    library = Library(tmp_path / "free")
    adder(library, tmp_path / "sources")("de")
    assert library.read("de").info.sites == 2


def test_every_load_goes_through_the_library():
    """What reads a library's adapters past `Library.open` would not ask for signatures."""
    from pathlib import Path

    import adapters_hub

    root = Path(adapters_hub.__file__).parent
    callers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "read_adapter(" in path.read_text(encoding="utf-8")
    }
    assert callers == {
        "library/adapter_file.py", "library/index.py", "library/library.py",
        "library/signed_copy.py",
        "sharing/doctor/subject.py",  # which looks, and loads nothing
        "library/exchange.py",  # what came in, which `Library.add` checks, and what goes out
        "cli/blends.py", "evaluation/matrix.py",  # files that they wrote themselves
        "evaluation/kept_results.py",  # the same
    }  # fmt: skip
