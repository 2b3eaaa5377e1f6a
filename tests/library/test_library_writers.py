"""What several writers, a killed one, or one without space or rights leave behind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    ROOT,
    WEIGHTS,
    lora_config,
    lora_tensors,
    run_python,
    snapshot,
    write_checkpoint,
    write_peft_folder,
)
from safetensors.numpy import load_file

from adapters_hub.errors import AdapterFileError, LibraryError, NotFoundError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library


@pytest.fixture
def library(tmp_path):
    """A library with one adapter, ``de``."""
    library = Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "old", seed=1), name="de", language="de")
    return library


@pytest.fixture
def newer(tmp_path):
    return write_peft_folder(tmp_path / "newer", seed=2)


def seed_of(library, name="de"):
    """Which of the adapters of these tests an adapter's numbers are."""
    stored = load_file(library.root / name / WEIGHTS)
    for seed in (1, 2):
        expected = lora_tensors(seed=seed)
        if all((stored[key] == expected[key]).all() for key in expected):
            return seed
    raise AssertionError("neither the old nor the new numbers")


def working_files(library):
    return (
        set(os.listdir(library.root)) - {".lock", ".index.json", ".changes"} - set(library.names())
    )


def test_an_adapter_is_replaced_only_on_demand(library, newer):
    before = snapshot(library.root)
    with pytest.raises(LibraryError, match="already has 'de'"):
        library.add(newer, name="de")
    assert snapshot(library.root) == before
    replaced = library.add(newer, name="de", replace_existing=True)
    assert seed_of(library) == 2
    assert replaced.language is None
    assert library.list() == [replaced]
    assert library.verify("de") == []
    assert working_files(library) == set()


def test_replacing_what_is_not_there_adds(library, newer):
    library.add(newer, name="sw", replace_existing=True)
    assert library.names() == ["de", "sw"]


def test_remove(library):
    library.remove("de")
    assert library.names() == library.list() == []
    assert working_files(library) == set()
    with pytest.raises(NotFoundError):
        library.remove("de")


def test_an_adapter_removed_by_another_writer_meanwhile(library, monkeypatch):
    monkeypatch.setattr(library, "names", lambda: ["de", "gone"])
    with pytest.raises(LibraryError, match="No such file"):
        library.remove("gone")
    assert [info.name for info in Library(library.root).list()] == ["de"]


ADD_TEN = """
import sys, time
from pathlib import Path
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library
root, source, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
library = Library(root)
for number in range(10):
    library.add(source, name=f"{who}-n{number}", language="de")
    assert f"{who}-n{number}" in [info.name for info in library.list()]
"""
ADD_SAME = """
import sys
from adapters_hub.errors import LibraryError
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(10):
    try:
        won += bool(Library(sys.argv[1]).add(sys.argv[2], name=f"same{number}"))
    except LibraryError as error:
        assert "already has" in str(error)
print(won)
"""


def at_once(code, library, source):
    """Run two processes that begin together; what each printed last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(library.root), str(source), who],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )
        for who in ("left", "right")
    ]  # fmt: skip
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in running]
    for process, (_, errors) in zip(running, results, strict=True):
        assert process.returncode == 0, errors
    return [output.strip() for output, _ in results]


def test_two_processes_that_add_at_once_lose_nothing(library, newer):
    at_once(ADD_TEN, library, newer)
    expected = sorted(["de", *(f"{who}-n{n}" for who in ("left", "right") for n in range(10))])
    assert [info.name for info in library.list()] == library.names() == expected
    assert all(library.verify(name) == [] for name in expected)
    assert working_files(library) == set()


def test_of_two_processes_that_add_one_name_one_succeeds(library, newer):
    won = at_once(ADD_SAME, library, newer)
    assert sum(map(int, won)) == 10
    assert len(library) == 11


KILLED = """
import os, shutil, sys
from pathlib import Path
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library
root, source, moment = sys.argv[1:]
rename, calls = os.rename, []

def half_written(old, header, target, metadata):
    Path(target).write_bytes(Path(old).read_bytes()[:50])
    os._exit(9)

def dying_rename(old, new):
    calls.append(new)
    if len(calls) == {"before the first rename": 1, "between the renames": 2}.get(moment):
        os._exit(9)
    rename(old, new)

def dying_rmtree(path, *args, **options):
    if Path(path).name == ".trash" and Path(path).exists():
        os._exit(9)

if moment == "in the weights":
    tensorfile.copy = half_written
os.rename = dying_rename
if moment in ("after the renames", "in a removal"):
    shutil.rmtree = dying_rmtree
if moment == "in a removal":
    Library(root).remove("de")
else:
    Library(root).add(source, name="de", replace_existing=True)
"""


@pytest.mark.parametrize(
    ("moment", "seed"),
    [
        ("in the weights", 1),
        ("before the first rename", 1),
        ("between the renames", 1),
        ("after the renames", 2),
        ("in a removal", None),
    ],
)
def test_a_writer_killed_at_any_moment(library, newer, moment, seed):
    assert run_python(KILLED, library.root, newer, moment, check=False).returncode == 9
    assert working_files(library) != set()
    found = [info.name for info in library.list()]
    if seed is None:
        assert found == library.names() == []
    else:
        assert found == library.names() == ["de"]
        assert seed_of(library) == seed
        assert library.verify("de") == []
    library.add(newer, name="sw")
    assert library.names() == ([] if seed is None else ["de"]) + ["sw"]
    assert working_files(library) == set()


def test_a_reader_that_comes_between_the_two_renames(library, monkeypatch):
    scandir, calls = os.scandir, []

    def just_moved_away(path):
        calls.append(path)
        if len(calls) == 1:
            (library.root / ".trash").mkdir()
            os.rename(library.root / "de", library.root / ".trash" / f"de~keep~{'0' * 32}")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", just_moved_away)
        assert [info.name for info in library.list()] == ["de"]
    assert len(calls) >= 2
    assert working_files(library) == set()


def test_the_moment_of_no_death_replaces(library, newer):
    run_python(KILLED, library.root, newer, "never")
    assert seed_of(library) == 2


def test_a_reader_killed_while_it_writes_the_index(library, newer):
    code = """
import os, sys
from adapters_hub.library.blend import Blend
from adapters_hub.library.library import Library
os.replace = lambda old, new: os._exit(9)
os.unlink(sys.argv[1] + "/.index.json")
Library(sys.argv[1]).list()
"""
    assert run_python(code, library.root, check=False).returncode == 9
    assert len(working_files(library)) == 1
    assert [info.name for info in library.list()] == ["de"]
    library.add(newer, name="sw")
    assert working_files(library) == set()


def test_a_full_disk(library, newer, monkeypatch):
    before = snapshot(library.root)

    def full(source, header, target, metadata):
        Path(target).write_bytes(b"as much as there was room for")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr(tensorfile, "copy", full)
        for name in ("sw", "de"):
            with pytest.raises(LibraryError, match="no space left; nothing was added"):
                library.add(newer, name=name, replace_existing=True)
            assert snapshot(library.root) == before
    assert working_files(library) == set()
    assert library.add(newer, name="sw").name == "sw"


def test_a_replacement_that_cannot_be_moved_into_place(library, newer, monkeypatch):
    rename = os.rename

    def no_move_from_staging(old, new):
        if ".tmp" in str(old):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", no_move_from_staging)
        with pytest.raises(LibraryError, match="Input/output error; nothing was added"):
            library.add(newer, name="de", replace_existing=True)
    assert [info.name for info in library.list()] == ["de"]
    assert seed_of(library) == 1
    assert working_files(library) == set()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place nobody can write to")
def test_a_place_where_nothing_can_be_made(newer):
    library = Library("/proc/adapters")
    assert library.list() == []
    with pytest.raises(LibraryError, match="cannot write to /proc/adapters"):
        library.add(newer, name="de")


def test_a_library_that_may_only_be_read(library, newer):
    (library.root / ".index.json").unlink()
    os.chmod(library.root, 0o555)
    try:
        if os.access(library.root, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert [info.name for info in library.list()] == ["de"]
        assert not (library.root / ".index.json").exists()
        for change in (lambda: library.add(newer, name="sw"), lambda: library.remove("de")):
            with pytest.raises(LibraryError):
                change()
        assert library.names() == ["de"]
    finally:
        os.chmod(library.root, 0o755)


@pytest.mark.parametrize("name", ["होटल", "விடுதி", "হোটেল", "โรงแรม", "mu\u0308ller"])
def test_names_may_be_in_any_script(library, newer, name):
    info = library.add(newer, name=name)
    assert library.get(info.name).name == library.find(name).name == info.name
    assert info.name in Library(library.root).names()
    assert Blend(f"0.5*{name} + de").terms == (info.name, "de")


def test_names_that_differ_only_in_case_are_one_to_some_file_systems(library, newer):
    with pytest.raises(LibraryError, match="differs from 'DE' only in case"):
        library.add(newer, name="DE")
    assert library.names() == ["de"]


def test_layers_that_the_configuration_promises_are_missed(library, tmp_path):
    sites = [f"layers.{layer}.{kind}" for layer in (0, 1) for kind in ("q_proj", "v_proj")]
    matrix = np.zeros((4, 6), np.float32)
    backbone = tmp_path / "backbone"
    write_checkpoint(backbone, {f"{site}.weight": matrix + n for n, site in enumerate(sites)})
    whole = write_peft_folder(tmp_path / "whole", tensors=lora_tensors(sites))
    library.add(whole, name="whole", backbone=str(backbone))
    assert library.verify("whole") == []
    cut = write_peft_folder(tmp_path / "cut", tensors=lora_tensors(sites[:2]))
    with pytest.raises(AdapterFileError, match=r"lack 2 that target_modules .* layers\.1\.q_proj"):
        library.add(cut, name="cut", backbone=str(backbone))
    cut = write_peft_folder(
        tmp_path / "meant",
        tensors=lora_tensors(sites[:2]),
        config=lora_config(layers_to_transform=[0]),
    )
    library.add(cut, name="meant", backbone=str(backbone))
    assert library.names() == ["de", "meant", "whole"]


def test_a_library_reads_as_a_collection(library, tmp_path):
    assert library["de"].language == "de"
    assert "de" in library
    assert "yo" not in library
    assert [info.name for info in library] == ["de"]
    assert bool(Library(tmp_path / "empty"))
    assert len(Library(tmp_path / "empty")) == 0
