"""Folders of adapters as the Hub has them come into the library, each with a row."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import CONFIG, SITES, WEIGHTS, lora_config, lora_tensors, write_peft_folder
from safetensors.numpy import load_file, save_file

from adapters_hub.cli import main
from adapters_hub.errors import AdapterFileError
from adapters_hub.library.library import Library
from adapters_hub.sharing.importing import clean_name, import_adapters
from adapters_hub.sharing.normalising import plain_names
from adapters_hub.sharing.pickles import convert_pickle

STEM = "base_model.model."


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "library")


def rows(library, source, **given):
    return [(row.status, row.name) for row in import_adapters(library, source, **given)]


def renamed(how, tensors=None):
    return {how(name): tensor for name, tensor in (tensors or lora_tensors()).items()}


def test_a_repository_of_several_adapters(library, tmp_path):
    repo = tmp_path / "models--org--many" / "snapshots" / "0123"
    write_peft_folder(repo, card="---\nlanguage: sw\nlicense: mit\n---\n")
    write_peft_folder(repo / "hotel", seed=1)
    write_peft_folder(repo / "old" / "health v2!", seed=2)
    write_peft_folder(repo / "checkpoint-500", seed=3)
    write_peft_folder(repo / ".git" / "x", seed=4)
    broken = write_peft_folder(repo / "broken")
    (broken / WEIGHTS).write_bytes(b"nothing")
    write_peft_folder(repo / "dora", config=lora_config(use_dora=True))
    (write_peft_folder(repo / "empty") / WEIGHTS).unlink()
    assert rows(library, repo) == [
        ("added", "many"), ("refused", None), ("left out", None), ("refused", None),
        ("refused", None), ("added", "hotel"), ("added", "old-health-v2"),
    ]  # fmt: skip
    assert library.names() == ["hotel", "many", "old-health-v2"]
    assert library.get("many").language == "sw"
    assert rows(library, repo / "hotel") == [("refused", None)]  # is there already
    assert rows(library, repo / "hotel", replace_existing=True) == [("added", "hotel")]
    assert rows(library, repo / "checkpoint-500", language="fi") == [("added", "checkpoint-500")]
    assert library.get("checkpoint-500").language == "fi"


def test_two_folders_that_would_get_one_name(library, tmp_path):
    write_peft_folder(tmp_path / "repo" / "a b")
    write_peft_folder(tmp_path / "repo" / "a-b")
    write_peft_folder(tmp_path / "repo" / "a" / "b")
    assert [status for status, _ in rows(library, tmp_path / "repo")] == ["added", *["refused"] * 2]


def test_lone_files(library, tmp_path):
    first = library.add(write_peft_folder(tmp_path / "first"), name="de")
    folder = tmp_path / "mailed"
    folder.mkdir()
    (folder / "sw.safetensors").write_bytes((library.root / first.name / WEIGHTS).read_bytes())
    save_file(lora_tensors(), folder / "plain.safetensors")
    assert rows(library, folder) == [("refused", None), ("added", "sw")]


@pytest.mark.parametrize("source", ["nowhere", "nothing"])
def test_no_adapters(library, tmp_path, source):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(AdapterFileError, match="no "):
        rows(library, tmp_path / source)


@pytest.mark.parametrize(
    "how",
    [
        lambda name: name.replace("layers.0.", "_orig_mod.layers.0."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".sw.weight"),
        lambda name: name.removeprefix(STEM),
    ],
)
def test_names_of_wrappers_are_left_out(library, tmp_path, how):
    source = write_peft_folder(
        tmp_path / "sw", tensors=renamed(how), card="---\nlicense: mit\n---\n"
    )
    (row,) = import_adapters(library, source)
    assert (row.status, row.name) == ("added", "sw")
    assert row.why
    stored = load_file(library.root / "sw" / WEIGHTS)
    assert stored.keys() == lora_tensors().keys()
    for name, tensor in lora_tensors().items():
        np.testing.assert_array_equal(stored[name], tensor)
    assert library.get("sw").license == "mit"
    assert library.verify("sw") == []


def test_names_of_vision_language_models_before(library, tmp_path):
    site = "language_model.model.layers.0.self_attn.q_proj"
    tensors = lora_tensors([site, "vision_tower.layers.0.q_proj"])
    config = lora_config(
        alpha_pattern={site: 8, r".*language_model\.model\.layers\.1\.x": 2},
        target_modules=["q_proj"],
    )
    source = write_peft_folder(tmp_path / "sw", tensors=tensors, config=config)
    assert rows(library, source) == [("added", "sw")]
    stored = library.read("sw")
    path = "model.language_model.layers.0.self_attn.q_proj"
    assert set(stored.modules) == {path, "model.vision_tower.layers.0.q_proj"}
    assert stored.spec.scaling(path, 2) == 4
    assert stored.spec.scaling("model.vision_tower.layers.0.q_proj", 2) == 2
    assert list(stored.spec.config["alpha_pattern"])[1] == r".*model\.language_model\.layers\.1\.x"


def test_peft_reads_what_came_in(library, tmp_path, tiny, lora_folder):
    import shutil

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = tmp_path / "one"
    shutil.copytree(lora_folder("qwen3", "one"), source)
    tensors = load_file(source / WEIGHTS)
    save_file(renamed(lambda name: f"module.{name.replace('layers', '_orig_mod.layers')}", tensors),
              source / WEIGHTS)  # fmt: skip
    assert rows(library, source) == [("added", "one")]
    ids = torch.tensor([[5, 6, 7]])
    outputs = []
    for folder in (lora_folder("qwen3", "one"), library.root / "one"):
        base = AutoModelForCausalLM.from_pretrained(tiny("qwen3")).eval()
        with torch.no_grad():
            bare = base(ids).logits
            outputs.append(PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert not torch.allclose(outputs[0], bare)


def test_tensors_that_would_get_one_name():
    with pytest.raises(AdapterFileError, match="differ only"):
        plain_names([f"{STEM}x.lora_A.weight", f"{STEM}_orig_mod.x.lora_A.weight"])


@pytest.mark.parametrize(
    ("config", "status"),
    [
        (
            {"enable_lora": None, "merge_weights": False, "inference_mode": True},
            "added",
        ),  # PEFT 0.2
        ({"enable_lora": [True, False, True]}, "refused"),
        ({"layers_pattern": None, "layers_to_transform": None, "revision": None}, "added"),  # 0.4
        ({"megatron_core": "megatron.core", "loftq_config": {}, "auto_mapping": None}, "added"),
    ],
)
def test_configurations_of_old_versions(library, tmp_path, config, status):
    folder = write_peft_folder(tmp_path / "x")
    (folder / CONFIG).write_text(json.dumps({**lora_config(), **config}))
    assert [row for row, _ in rows(library, folder)] == [status]


@pytest.mark.parametrize(
    ("text", "name"),
    [("health v2!", "health-v2"), ("a--b", "a-b"), ("..", "adapter"), ("123", "adapter-123"),
     ("-x.", "x"), ("a..b", "a-b"), ("日本語", "日本語"), ("x" * 300, "x" * 90), ("a.-b", "a-b")],
)  # fmt: skip
def test_names(text, name):
    from adapters_hub.library.folder import check_name

    assert clean_name(text) == name
    check_name(clean_name(text))


def test_a_signed_adapter_is_not_changed_where_it_must_be_signed(tmp_path):
    pytest.importorskip("model_signing.signing")
    from adapters_hub.sharing.signing import new_key, sign

    root = tmp_path / "library"
    root.mkdir()
    private, public = new_key(tmp_path / "ops")
    os.rename(public, root / "ops.pub")
    (root / "trust.yaml").write_text('keys: {ops: ops.pub}\nadapters: {"*": ops}\n')
    for name, tensors in (("sound", None), ("old", renamed(lambda name: f"module.{name}"))):
        sign(write_peft_folder(tmp_path / "repo" / name, tensors=tensors), private)
    write_peft_folder(tmp_path / "repo" / "bare")
    results = [*import_adapters(Library(root), tmp_path / "repo")]
    assert [row.status for row in results] == ["refused", "refused", "added"]
    assert all("unsigned" in row.why for row in results[:2])
    assert Library(root).read("sound")


# ── pickles ──────────────────────────────────────────────────────────────────────────────────────


def pickled(folder, value=None):
    import torch

    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({n: torch.from_numpy(t) for n, t in tensors.items()} if value is None else value,
               folder / "adapter_model.bin")  # fmt: skip
    return folder


def test_pickles_are_refused_with_the_way(library, tmp_path):
    folder = write_peft_folder(tmp_path / "sw")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    (row,) = import_adapters(library, folder)
    assert row.status == "refused"
    assert "--convert-pickle" in row.why


@pytest.mark.slow
def test_pickles_are_converted(library, tmp_path):
    folder = pickled(write_peft_folder(tmp_path / "sw", tensors=renamed(lambda n: f"module.{n}")))
    (row,) = import_adapters(library, folder, convert=True)
    assert (row.status, row.why) == ("added", "converted from a pickle; module. left out"), row
    stored = load_file(library.root / "sw" / WEIGHTS)
    for name, tensor in lora_tensors().items():
        np.testing.assert_array_equal(stored[name], tensor)
    assert os.listdir(library.root / "sw").count("adapter_model.bin") == 0


@pytest.mark.slow
def test_hostile_pickles(library, tmp_path):
    import torch

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    wide = torch.as_strided(torch.zeros(1), (1 << 20, 1 << 20), (0, 0))
    hostile = {
        "bomb": pickle.dumps(Bomb()), "not a dictionary": [torch.zeros(2)], "text": {"a": "b"},
        "bomb inside": {"a": Bomb()}, "huge": {"a": wide}, "junk": b"\x80\x02junk",
        "sparse": {"a": torch.eye(2).to_sparse()}, "names": {1: torch.zeros(1)}, "empty": {},
    }  # fmt: skip
    for name, value in hostile.items():
        folder = write_peft_folder(tmp_path / "repo" / name)
        if isinstance(value, bytes):
            (folder / WEIGHTS).unlink()
            (folder / "adapter_model.bin").write_bytes(value)
        else:
            pickled(folder, value)
    results = [*import_adapters(library, tmp_path / "repo", convert=True)]
    assert [row.status for row in results] == ["refused"] * len(hostile)
    assert all("not converted" in row.why for row in results), results
    assert not (tmp_path / "exploded").exists()
    assert library.names() == []


SANDBOXED = """
import importlib.util, os, platform, socket, sys
spec = importlib.util.spec_from_file_location("box", sys.argv[1])
box = importlib.util.module_from_spec(spec)
spec.loader.exec_module(box)
before = socket.socketpair()
box.limit(1000)
box.forbid(box.MACHINES[platform.machine()])
def refused(what):
    try:
        what()
    except PermissionError:
        return
    raise SystemExit(f"{what} was not refused")
refused(socket.socket)
refused(socket.socketpair)
refused(lambda: os.execv("/bin/true", ["true"]))
refused(lambda: before[0].connect("/x"))
import threading
late = []
thread = threading.Thread(target=lambda: late.append(refused(socket.socket)))
thread.start(); thread.join()
assert late == [None]
try:
    bytearray(4 << 30)
except MemoryError:
    pass
else:
    raise SystemExit("no limit of memory")
open(sys.argv[2], "wb").write(b"x" * 1000)
try:
    with open(sys.argv[2], "wb") as file:
        file.write(b"x" * (3 << 20))
except OSError:
    print("kept in")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_what_opens_a_pickle_has_no_network_and_bounds(tmp_path):
    from adapters_hub.sharing import pickle_sandbox

    done = subprocess.run(
        [sys.executable, "-c", SANDBOXED, pickle_sandbox.__file__, tmp_path / "out"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "kept in\n"), done.stderr


def test_a_machine_that_cannot_keep_a_process_in(tmp_path, monkeypatch):
    """Nothing is opened then; here the program is another one, which says so."""
    from adapters_hub.sharing import pickles

    program = tmp_path / "other.py"
    program.write_text('print(\'{"error": "no way here"}\')')
    monkeypatch.setattr(pickles.pickle_sandbox, "__file__", str(program))
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(AdapterFileError, match="not converted: no way here"):
        convert_pickle(tmp_path / "x.bin", tmp_path / "y.safetensors")
    program.write_text("raise SystemExit(3)")
    with pytest.raises(AdapterFileError, match="ended with 3"):
        convert_pickle(tmp_path / "x.bin", tmp_path / "y.safetensors")


def test_the_command(tmp_path, capsys):
    repo = tmp_path / "repo"
    write_peft_folder(repo / "de")
    where = ["--library", str(tmp_path / "library")]
    assert main(["import", str(repo), *where, "--license", "mit"]) == 0
    assert "1 added, 0 refused, 0 left out" in capsys.readouterr().out
    write_peft_folder(repo / "fi")
    assert main(["import", str(repo), *where, "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["status"], row["name"]) for row in found] == [("refused", None), ("added", "fi")]
    assert main(["import", str(repo), *where, "--replace"]) == 0
    assert main(["import", str(tmp_path / "nowhere"), *where]) == 1
    assert SITES
