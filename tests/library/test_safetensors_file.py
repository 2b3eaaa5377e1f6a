import contextlib
import json
import os
import struct

import numpy as np
import pytest
from helpers import raw_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adapters_hub.errors import AdapterFileError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.atomic import atomic_write

TENSORS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.array([1.5, -2.0], dtype=np.float16),
    "empty": np.zeros((0, 5), dtype=np.float32),
    "scalar": np.array(7.0, dtype=np.float64),
    "ints": np.array([[1], [2]], dtype=np.int64),
}


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.safetensors"
    save_file(TENSORS, path, {"format": "pt", "note": "größe"})
    return path


def test_a_header_says_what_the_file_holds(sound):
    header = tensorfile.read_header(sound)
    assert header.metadata == {"format": "pt", "note": "größe"}
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }
    assert header.tensors["a"].dtype == "F16"
    data = sound.read_bytes()[header.data_start :]
    for name, entry in header.tensors.items():
        assert data[entry.start : entry.end] == TENSORS[name].tobytes()


def test_a_sound_header_whose_length_begins_like_a_pickle(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for length in (0x80, 0x280, 0x480, 0x580):
        path = tmp_path / f"{length}.safetensors"
        text = json.dumps(header).ljust(length)
        path.write_bytes(raw_safetensors(text, struct.pack("<f", 2.5)))
        assert path.read_bytes()[0] == 0x80
        assert tensorfile.read_header(path).tensors["x"].shape == (1,)
        assert load_file(path)["x"] == [2.5]


@given(st.binary(max_size=120))
@settings(max_examples=100, deadline=None)
def test_no_bytes_raise_anything_but_an_adapter_file_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(AdapterFileError):
        assert tensorfile.read_header(path).data_start <= len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "U8", "F4"]) | json_values, "shape": json_values},
    optional={"data_offsets": st.just([0, 4]) | json_values},
)


@given(
    st.dictionaries(st.sampled_from(["__metadata__", "x", "y"]), entries | json_values, min_size=1)
)
@settings(max_examples=150, deadline=None)
def test_no_header_raises_anything_but_an_adapter_file_error(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(raw_safetensors(header, bytes(4)))
    try:
        found = tensorfile.read_header(path)
    except AdapterFileError:
        return
    assert sum(entry.end - entry.start for entry in found.tensors.values()) == 4
    assert load_file(path).keys() == found.tensors.keys()


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_one_changed_byte_is_refused_or_leaves_all_tensors_inside_the_file(
    tmp_path_factory, position, value
):
    folder = tmp_path_factory.getbasetemp()
    save_file({"x": TENSORS["b"], "y": TENSORS["a"]}, folder / "one.safetensors", {"k": "v"})
    data = bytearray((folder / "one.safetensors").read_bytes())
    data[position % len(data)] = value
    (folder / "one.safetensors").write_bytes(data)
    try:
        header = tensorfile.read_header(folder / "one.safetensors")
    except AdapterFileError:
        return
    assert all(e.start <= e.end <= len(data) for e in header.tensors.values())


def test_a_copy_with_other_metadata_has_the_same_bytes(sound, tmp_path):
    target = tmp_path / "copy.safetensors"
    header = tensorfile.read_header(sound)
    digest = tensorfile.copy(sound, header, target, lambda digest: {"other": f"日本 {digest}"})
    copied = tensorfile.read_header(target)
    assert copied.metadata == {"other": f"日本 {digest}"}
    assert copied.data_start % 8 == 0
    assert tensorfile.content_hash(target, copied) == tensorfile.content_hash(sound, header)
    assert digest == tensorfile.content_hash(sound, header)
    for name, tensor in load_file(target).items():
        assert tensor.tobytes() == TENSORS[name].tobytes()
    with safe_open(target, "np") as file:
        assert file.metadata() == copied.metadata


def test_a_copy_never_overwrites(sound, tmp_path):
    target = tmp_path / "there"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        tensorfile.copy(sound, tensorfile.read_header(sound), target, lambda digest: {})
    assert target.read_bytes() == b"precious"


def test_a_copy_of_what_is_not_finite_or_has_changed_is_refused(sound, tmp_path):
    header = tensorfile.read_header(sound)
    os.utime(sound, ns=(1, 1))
    with pytest.raises(AdapterFileError, match="changed while it was read"):
        tensorfile.copy(sound, header, tmp_path / "copy", lambda digest: {})
    bad = tmp_path / "bad.safetensors"
    save_file({"x": np.array([1, np.inf], np.float32)}, bad)
    with pytest.raises(AdapterFileError, match="x holds NaN or infinity"):
        tensorfile.copy(bad, tensorfile.read_header(bad), tmp_path / "two", lambda digest: {})


def non_finite(path):
    return tensorfile.inspect(path, tensorfile.read_header(path))[1]


def hash_of(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return tensorfile.content_hash(path, tensorfile.read_header(path))


def test_the_content_hash_sees_names_types_shapes_and_bytes_only(tmp_path):
    path = tmp_path / "x.safetensors"
    base = hash_of(path, {"x": TENSORS["b"], "y": TENSORS["a"]})
    assert base.startswith("sha256:")
    assert len(base) == len("sha256:") + 64
    assert base == hash_of(path, {"y": TENSORS["a"], "x": TENSORS["b"]}, {"any": "metadata"})
    changed = TENSORS["b"].copy()
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(9e9))
    others = {
        "a value": {"x": changed, "y": TENSORS["a"]},
        "a shape": {"x": TENSORS["b"].reshape(4, 3), "y": TENSORS["a"]},
        "a name": {"z": TENSORS["b"], "y": TENSORS["a"]},
        "a type": {"x": TENSORS["b"].view(np.int32), "y": TENSORS["a"]},
        "one less": {"x": TENSORS["b"]},
    }
    assert len({base, *(hash_of(path, tensors) for tensors in others.values())}) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_number_that_is_not_finite(tmp_path, dtype, value):
    path = tmp_path / "x.safetensors"
    sound = np.ones((3, 5), dtype)
    sound[0, 0] = np.finfo(dtype).max
    sound[0, 1] = np.finfo(dtype).smallest_subnormal
    bad = sound.copy()
    bad[2, 4] = value
    save_file({"sound": sound, "bad": bad}, path)
    assert non_finite(path) == "bad"
    save_file({"sound": sound}, path)
    assert non_finite(path) is None


@pytest.mark.parametrize(
    ("bits", "finite"),
    [(0x3F80, True), (0x7F7F, True), (0x8000, True), (0x7F80, False), (0xFF80, False),
     (0x7FC0, False), (0xFF81, False)],
)  # fmt: skip
def test_a_number_that_is_not_finite_in_bfloat16(tmp_path, bits, finite):
    path = tmp_path / "x.safetensors"
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    path.write_bytes(raw_safetensors(header, struct.pack("<HH", 0x3F80, bits)))
    bad = non_finite(path)
    assert bad == (None if finite else "x")


def test_a_bad_value_is_found_behind_the_first_piece_of_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "_CHUNK", 64)
    path = tmp_path / "x.safetensors"
    large = np.zeros(1000, np.float32)
    large[-1] = np.nan
    save_file({"x": large}, path)
    assert non_finite(path) == "x"


def test_a_file_that_becomes_shorter_while_it_is_read(sound):
    header = tensorfile.read_header(sound)
    os.truncate(sound, sound.stat().st_size - 9)
    with pytest.raises(AdapterFileError, match="shorter"):
        tensorfile.content_hash(sound, header)


def test_an_atomic_write_shows_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", "not bytes"])
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
