"""Damaged and hostile adapters: each is refused with an error of ours and changes nothing."""

import json
import os
import pickle
import signal
import struct
import zipfile

import numpy as np
import pytest
from helpers import (
    CONFIG,
    SITES,
    WEIGHTS,
    lora_config,
    lora_tensors,
    raw_safetensors,
    snapshot,
    write_peft_folder,
)
from safetensors.numpy import load_file, save_file

from adapters_hub.errors import (
    AdapterFileError,
    AdapterNameError,
    AdaptersHubError,
    LibraryError,
    UnsupportedAdapterError,
)
from adapters_hub.library.adapter_file import METADATA_KEY
from adapters_hub.library.library import Library

A, B = (f"base_model.model.{SITES[0]}.lora_{side}.weight" for side in "AB")


def two_factors(**changes):
    """The header of a sound adapter of one site, with the entry of B changed."""
    return {
        A: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        B: {"dtype": "F32", "shape": [1, 2], "data_offsets": [24, 32], **changes},
    }


def text(**changes):
    return json.dumps(two_factors(**changes))


HUGE = 2**62
DEEP = '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"
FILES = {
    "empty file": b"",
    "seven bytes": b"\x10\x00\x00\x00\x00\x00\x00",
    "truncated header": raw_safetensors(two_factors(), bytes(32))[:60],
    "truncated data": raw_safetensors(two_factors(), bytes(31)),
    "header length of 2^64-1": b"\xff" * 8 + b"{}",
    "header length beyond the limit": struct.pack("<Q", 100_000_001) + b"{}",
    "header length beyond the file": struct.pack("<Q", 99_999_999) + b"{}",
    "no header at all": raw_safetensors("", bytes(32)),
    "header is not UTF-8": raw_safetensors(b'{"\xff\xfe": 1}'),
    "header is not JSON": raw_safetensors("{not json}"),
    "header is a list": raw_safetensors("[]"),
    "header is a number": raw_safetensors("17"),
    "header is null": raw_safetensors("null"),
    "header nested a hundred thousand deep": raw_safetensors(DEEP),
    "a number of five thousand digits": raw_safetensors('{"x":' + "9" * 5000 + "}"),
    "no tensors": raw_safetensors("{}"),
    "a name twice": raw_safetensors(text()[:-1] + "," + text()[1:], bytes(32)),
    "a field twice": raw_safetensors(
        text().replace('"dtype"', '"dtype": "F16", "dtype"'), bytes(32)
    ),
    "a lone surrogate as a name": raw_safetensors(text().replace("q_proj", "\\ud800"), bytes(32)),
    "a lone surrogate in the metadata": raw_safetensors(
        text()[:-1] + ',"__metadata__": {"note": "\\udfff"}}', bytes(32)
    ),
    "overlapping tensors": raw_safetensors(two_factors(data_offsets=[16, 24]), bytes(24)),
    "two tensors at one place": raw_safetensors(
        two_factors(shape=[3, 2], data_offsets=[0, 24]), bytes(24)
    ),
    "a hole": raw_safetensors(two_factors(data_offsets=[28, 36]), bytes(36)),
    "trailing bytes": raw_safetensors(two_factors(), bytes(32) + b"#!/bin/sh"),
    "negative offset": raw_safetensors(two_factors(data_offsets=[-8, 0]), bytes(24)),
    "huge offset": raw_safetensors(two_factors(data_offsets=[HUGE, HUGE + 8]), bytes(32)),
    "reversed offsets": raw_safetensors(two_factors(data_offsets=[32, 24]), bytes(32)),
    "offsets true and false": raw_safetensors(
        two_factors(shape=[0, 2], data_offsets=[True, True]), bytes(24)
    ),
    "offsets are text": raw_safetensors(two_factors(data_offsets=["24", "32"]), bytes(32)),
    "offsets are fractions": raw_safetensors(two_factors(data_offsets=[24.0, 32.0]), bytes(32)),
    "three offsets": raw_safetensors(two_factors(data_offsets=[24, 28, 32]), bytes(32)),
    "offsets NaN": raw_safetensors(two_factors(data_offsets=[float("nan"), 32]), bytes(32)),
    "no offsets": raw_safetensors(text().replace("data_offsets", "offsets"), bytes(32)),
    "shape that does not fill the bytes": raw_safetensors(two_factors(shape=[2, 2]), bytes(32)),
    "negative shape": raw_safetensors(two_factors(shape=[-1, -2]), bytes(32)),
    "shape beyond all memory": raw_safetensors(two_factors(shape=[HUGE, HUGE]), bytes(32)),
    "shape of a hundred thousand dimensions": raw_safetensors(
        two_factors(shape=[HUGE] * 100_000), bytes(32)
    ),
    "shape true": raw_safetensors(two_factors(shape=[True, 2]), bytes(32)),
    "shape is an object": raw_safetensors(two_factors(shape={}, data_offsets=[24, 28]), bytes(28)),
    "shape is null": raw_safetensors(two_factors(shape=None), bytes(32)),
    "unknown dtype": raw_safetensors(two_factors(dtype="F31"), bytes(32)),
    "dtype is a list": raw_safetensors(two_factors(dtype=["F32"]), bytes(32)),
    "an entry is a list": raw_safetensors({A: [1, 2, 3]}, bytes(32)),
    "metadata is not text": raw_safetensors(two_factors() | {"__metadata__": {"a": 1}}, bytes(32)),
    "metadata is a list": raw_safetensors(two_factors() | {"__metadata__": ["a"]}, bytes(32)),
    "metadata is null": raw_safetensors(two_factors() | {"__metadata__": None}, bytes(32)),
    "integers": raw_safetensors(two_factors(dtype="I32"), bytes(32)),
    "rank 0": raw_safetensors(
        {
            A: {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
            B: {"dtype": "F32", "shape": [1, 0], "data_offsets": [0, 0]},
        }
    ),
    **{f"pickle of protocol {p}": pickle.dumps({"x": [1.0] * 99}, p) for p in range(2, 6)},
}


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "first"), name="sound", language="de")
    return library


def refused(library, source, **options):
    """Adding raises an error of ours, returned, and leaves the library as it was."""
    before = snapshot(library.root)
    with pytest.raises(AdaptersHubError) as caught:
        library.add(source, **options)
    assert snapshot(library.root) == before
    assert not {".tmp", ".trash"} & set(os.listdir(library.root))
    return caught.value


def dropped_in(library, source):
    """Copied into the library by hand, it is left out of the list and said to be damaged."""
    os.rename(source, library.root / "hostile")
    assert [info.name for info in library.list()] == ["sound"]
    assert len(library.verify("hostile")) == 1
    library.remove("hostile")
    assert library.names() == ["sound"]


@pytest.mark.parametrize("attack", FILES)
def test_hostile_weights(library, tmp_path, attack):
    source = write_peft_folder(tmp_path / "hostile")
    (source / WEIGHTS).write_bytes(FILES[attack])
    assert isinstance(refused(library, source), AdapterFileError)
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes(FILES[attack])
    assert isinstance(refused(library, lone), AdapterFileError)
    dropped_in(library, source)


def test_the_sound_file_that_the_attacks_change_is_accepted(library, tmp_path):
    source = write_peft_folder(tmp_path / "sound")
    (source / WEIGHTS).write_bytes(raw_safetensors(two_factors(), bytes(32)))
    assert library.add(source, name="en").parameters == 8


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05"])
def test_a_pickle_is_called_a_pickle(library, tmp_path, magic):
    source = write_peft_folder(tmp_path / "hostile")
    (source / WEIGHTS).write_bytes(magic.ljust(200, b"\xff"))
    assert "pickle" in str(refused(library, source))


def test_a_pickle_is_never_opened(library, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    source = write_peft_folder(tmp_path / "hostile")
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "is a pickle" in str(refused(library, source))
    with zipfile.ZipFile(source / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    assert "pickle" in str(refused(library, source))
    assert not (tmp_path / "exploded").exists()


METADATA = {
    "not JSON": "{",
    "nested too deep": "[" * 50_000,
    "a list": "[1]",
    "no version": "{}",
    "of a newer version": '{"version": 2}',
    "version is text": '{"version": "1"}',
    "language is a path": '{"version": 1, "language": "../../x"}',
    "language is a number": '{"version": 1, "language": 5}',
    "language is an object": '{"version": 1, "language": {"de": 1}}',
    "labels are a number": '{"version": 1, "labels": 5}',
    "labels are numbers": '{"version": 1, "labels": [1, 2]}',
    "over is a number": '{"version": 1, "over": 7}',
    "metrics are text": '{"version": 1, "metrics": {"accuracy": "high"}}',
    "metrics are a list": '{"version": 1, "metrics": [1]}',
    "backbone is a list": '{"version": 1, "backbone": []}',
    "a lone surrogate": '{"version": 1, "description": "\\ud800"}',
}


@pytest.mark.parametrize("case", METADATA)
def test_hostile_metadata_of_ours(library, tmp_path, case):
    metadata = {METADATA_KEY: METADATA[case]}
    source = write_peft_folder(tmp_path / "hostile", metadata=metadata)
    error = refused(library, source, name="x")
    assert isinstance(error, AdapterFileError)
    assert ("newer version" in str(error)) == (case in ("of a newer version", "version is text"))
    dropped_in(library, source)


CONFIGS = {
    "not JSON": b"{",
    "not UTF-8": b'"\xff"',
    "a list": b"[]",
    "empty": b"",
    "nested too deep": b"[" * 100_000,
    **{
        name: json.dumps(lora_config(**changes)).encode()
        for name, changes in {
            "alpha is text": {"lora_alpha": "16"},
            "alpha is NaN": {"lora_alpha": float("nan")},
            "alpha is infinite": {"lora_alpha": float("inf")},
            "alpha is beyond floats": {"lora_alpha": 10**400},
            "alpha pattern is a list": {"alpha_pattern": ["q_proj"]},
            "alpha pattern is no expression": {"alpha_pattern": {"(": 1}},
            "alpha pattern is text": {"alpha_pattern": {"q_proj": "x"}},
            "modules_to_save is a number": {"modules_to_save": 5},
            "task type is a list": {"task_type": ["SEQ_CLS"]},
            "the base model is a number": {"base_model_name_or_path": 5},
            "the base model is an object": {"base_model_name_or_path": {}},
            "a lone surrogate": {"base_model_name_or_path": "\ud800"},
            "peft_type is a list": {"peft_type": ["LORA"]},
        }.items()
    },
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configurations(library, tmp_path, case):
    source = write_peft_folder(tmp_path / "hostile")
    (source / CONFIG).write_bytes(CONFIGS[case])
    assert isinstance(refused(library, source, name="x"), AdapterFileError)
    dropped_in(library, source)


@pytest.fixture
def soon():
    """Fail after twenty seconds, where the test would otherwise never end."""

    def late(number, frame):
        raise AssertionError("still busy")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.slow
@pytest.mark.parametrize(
    "patterns",
    [
        {"(a|a)*b": 1},
        {"(a+)+b": 1},
        {"(a*)*(a*)*b": 1},
        {"(.*)*x": 1},
        {"(a|a)" * 40 + "b": 1},
        {".*" * 40 + "b": 1},
        {"a?" * 400 + "a" * 400: 1},
        {"(" * 5000 + "a" + ")" * 5000: 1},
        {r"(a)\1*b": 1},
        {"(?=a*)b": 1},
        {"a{99999}b": 1},
        {f"{'a' * 900}{number}": 1 for number in range(5000)},
        {f"{'a*' * 400}{number}": 1 for number in range(400)},
    ],
)
def test_a_pattern_cannot_keep_the_library_busy(library, tmp_path, patterns, soon):
    sites = [f"layers.{number}.{'a' * 900}" for number in range(60)]
    config = lora_config(alpha_pattern=patterns)
    tensors = lora_tensors(sites, inputs=1, outputs=1)
    source = write_peft_folder(tmp_path / "hostile", tensors=tensors, config=config)
    os.rename(source, library.root / "hostile")
    assert "sound" in {info.name for info in library.list()}


def not_a_file(path, kind):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/stdin"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_pipes_and_devices_where_the_files_should_be(library, tmp_path, name, kind, soon):
    source = write_peft_folder(tmp_path / "hostile")
    not_a_file(source / name, kind)
    assert "not a regular file" in str(refused(library, source, name="x"))
    dropped_in(library, source)
    lone = tmp_path / "lone.safetensors"
    lone.touch()
    not_a_file(lone, kind)
    assert "not a regular file" in str(refused(library, lone, name="x"))


def test_links_to_files_are_files(library, tmp_path):
    """The Hub's cache is made of links."""
    source = write_peft_folder(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "snapshot" / name).symlink_to(source / name)
    assert library.add(tmp_path / "snapshot", name="x").sites == 2


def test_a_configuration_beyond_all_measure(library, tmp_path):
    source = write_peft_folder(tmp_path / "hostile")
    (source / CONFIG).write_bytes(b" " * 10_000_001 + json.dumps(lora_config()).encode())
    assert "larger than 10000000 bytes" in str(refused(library, source, name="x"))


@pytest.mark.parametrize("base", ["a\x00b", "a\nb", "\x1b[31m"])
def test_a_base_model_that_cannot_be_shown(library, tmp_path, base):
    source = write_peft_folder(tmp_path / "x", config=lora_config(base_model_name_or_path=base))
    assert "cannot be printed" in str(refused(library, source, name="x"))


@pytest.mark.parametrize("saved", [[["classifier"]], [None], [1]])
def test_modules_to_save_that_are_no_names(library, tmp_path, saved):
    source = write_peft_folder(tmp_path / "x", config=lora_config(modules_to_save=saved))
    assert "no names" in str(refused(library, source, name="x"))


@pytest.mark.parametrize("base", ["/" + "x" * 5000, "../" * 50 + "etc"])
def test_a_base_model_that_is_no_possible_path_is_only_a_name(library, tmp_path, base):
    config = lora_config(base_model_name_or_path=base)
    info = library.add(write_peft_folder(tmp_path / "x", config=config), name="en")
    assert (info.backbone, info.fingerprint) == (base, None)


@pytest.mark.parametrize(
    "card",
    ["---\nlanguage: [de\n---\n", "---\n" + "[" * 600 + "\n---\n",
     "---\na: &a {x: 1}\nb: {<<: [*a, *a]}\n---\n"],
)  # fmt: skip
def test_hostile_cards(library, tmp_path, card):
    source = write_peft_folder(tmp_path / "hostile", card=card)
    assert "its front matter" in str(refused(library, source, name="x"))
    os.rename(source, library.root / "hostile")
    assert [info.name for info in library.list()] == ["sound"]


@pytest.mark.parametrize(
    "value", ["2001-13-45", "!!bool x", "!!int ''", "!!python/object/apply:os.mkdir [exploded]"]
)
def test_what_a_card_says_is_text(library, tmp_path, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_peft_folder(tmp_path / "odd", card=f"---\nlanguage: {value}\n---\n")
    assert library.add(source, name="odd").language is None
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_are_none(library, tmp_path, dtype, value):
    tensors = lora_tensors(dtype=dtype)
    tensors[B][-1, -1] = value
    source = write_peft_folder(tmp_path / "hostile", tensors=tensors)
    assert f"{B} holds NaN or infinity" in str(refused(library, source, name="x"))
    os.rename(source, library.root / "hostile")
    assert any("NaN" in line for line in library.verify("hostile"))


def test_bfloat16_infinity(library, tmp_path):
    source = write_peft_folder(tmp_path / "hostile")
    header = {A: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
              B: {"dtype": "BF16", "shape": [1, 1], "data_offsets": [4, 6]}}  # fmt: skip
    (source / WEIGHTS).write_bytes(raw_safetensors(header, struct.pack("<HHH", 0x3F80, 0x7F80, 0)))
    assert f"{A} holds NaN" in str(refused(library, source, name="x"))


NAMES = [
    "", " ", ".", "..", "../x", "/etc/x", "a/b", "a\\b", ".hidden", "trailing.", "trailing-",
    "a..b", "a--b", "-x", "x y", "nul\x00byte", "x" * 300, "ü" * 60, "123", "con_", "NUL_", "C:x",
    "lang:de", "x\n", "\ud800", "*", "~", "$HOME", "x;rm",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_leave_the_library_or_be_no_term(library, tmp_path, name):
    source = write_peft_folder(tmp_path / "source")
    around = sorted(os.listdir(tmp_path))
    assert isinstance(refused(library, source, name=name or ".."), AdapterNameError)
    if name:
        assert isinstance(refused(library, source, name="x", domain=name), AdapterNameError)
    with pytest.raises(AdapterNameError):
        library.verify(name)
    with pytest.raises(LookupError):
        library.remove(name)
    assert sorted(os.listdir(tmp_path)) == around


def test_a_name_or_domain_in_the_metadata_cannot_leave_the_library(library, tmp_path):
    for field in ("name", "domain"):
        ours = json.dumps({"version": 1, field: "../../evil", "lora": lora_config()})
        lone = tmp_path / f"{field}.safetensors"
        save_file(lora_tensors(), lone, {METADATA_KEY: ours})
        if field == "domain":
            assert isinstance(refused(library, lone), AdapterNameError)
        else:
            assert library.add(lone).name == "name"
    assert not list(tmp_path.parent.rglob("evil*"))


def test_symlinked_entries_are_no_adapters(library, tmp_path):
    outside = write_peft_folder(tmp_path / "outside")
    (library.root / "linked").symlink_to(outside, target_is_directory=True)
    (library.root / "dangling").symlink_to(tmp_path / "nowhere")
    assert [info.name for info in library.list()] == library.names() == ["sound"]
    for name in ("linked", "dangling"):
        error = refused(library, outside, name=name, replace_existing=True)
        assert isinstance(error, LibraryError)
        with pytest.raises(LibraryError, match="is a link to a folder"):
            library.remove(name)
        with pytest.raises(LibraryError, match="is a link to a folder"):
            library.find(name)
    assert load_file(outside / WEIGHTS).keys() == lora_tensors().keys()


def test_a_file_where_the_adapter_should_be(library, tmp_path):
    (library.root / "de").write_text("mine")
    source = write_peft_folder(tmp_path / "source")
    assert "in the way" in str(refused(library, source, name="de", replace_existing=True))
    assert (library.root / "de").read_text() == "mine"
    assert [info.name for info in library.list()] == ["sound"]


def test_a_file_where_the_library_should_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LibraryError, match="is a file"):
        Library(tmp_path / "file")
    with pytest.raises(LibraryError, match="cannot write"):
        Library(tmp_path / "file" / "below").add(write_peft_folder(tmp_path / "source"), name="x")


def test_working_folders_that_are_links_are_not_followed(library, tmp_path):
    treasure = write_peft_folder(tmp_path / "treasure" / f"stolen~keep~{'0' * 32}")
    for name in (".trash", ".tmp"):
        (library.root / name).symlink_to(treasure.parent, target_is_directory=True)
    library.add(write_peft_folder(tmp_path / "source"), name="en")
    assert [info.name for info in library.list()] == ["en", "sound"]
    assert treasure.is_dir()


@pytest.mark.parametrize("source", ["missing", "folder", "text.txt", "nul\x00byte"])
def test_sources_that_are_no_adapter(library, tmp_path, source):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    assert isinstance(refused(library, tmp_path / source), AdapterFileError)


def test_folders_where_the_files_should_be(library, tmp_path):
    source = write_peft_folder(tmp_path / "source")
    (source / CONFIG).unlink()
    assert "missing" in str(refused(library, source))
    (source / CONFIG).mkdir()
    assert isinstance(refused(library, source), AdapterFileError)
    (source / WEIGHTS).unlink()
    (source / WEIGHTS).mkdir()
    assert isinstance(refused(library, source), AdapterFileError)


def test_a_tensor_that_is_no_factor_is_not_silently_dropped(library, tmp_path):
    tensors = lora_tensors() | {"base_model.model.embed.weight": np.ones((2, 2), np.float32)}
    source = write_peft_folder(tmp_path / "hostile", tensors=tensors)
    assert isinstance(refused(library, source), UnsupportedAdapterError)
    dropped_in(library, source)
