import json
import os
import re

import numpy as np
import pytest
from helpers import raw_safetensors, write_checkpoint

from adapters_hub.errors import AdaptersHubError, BackboneError
from adapters_hub.library.fingerprint import belongs, fingerprint

CONFIG = {"model_type": "tiny", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 16}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed.weight": (16, 8), "norm.weight": (8,)}
    shapes |= {f"layers.{i}.{p}.weight": (8, 8) for i in range(2) for p in "qkvo"}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_bfloat16(tensor):
    """The upper half of each float32, rounded to nearest even, worked out one value at a time."""
    out = []
    for bits in tensor.reshape(-1).view(np.uint32).tolist():
        low, high = bits & 0xFFFF, bits >> 16
        out.append(high + (low > 0x8000 or (low == 0x8000 and high & 1)))
    return np.array(out, "<u2").tobytes()


def write_bfloat16(folder, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = as_bfloat16(tensor)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    write_checkpoint(folder, {})
    (folder / "model.safetensors").write_bytes(raw_safetensors(header, data))
    return folder


def shard(folder, tensors, parts):
    names = sorted(tensors)
    placed = {}
    for part in range(parts):
        own = {name: tensors[name] for name in names[part::parts]}
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        write_checkpoint(folder, own, name=file)
        placed |= dict.fromkeys(own, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


@pytest.fixture
def base(tmp_path):
    return fingerprint(write_checkpoint(tmp_path / "base", weights()))


def test_it_begins_with_what_a_person_recognises(base):
    assert re.fullmatch(r"tiny-2L-8-v2-[0-9a-f]{16}", base)


def test_equal_weights_at_another_place(base, tmp_path):
    shuffled = dict(reversed(weights().items()))
    assert fingerprint(write_checkpoint(tmp_path / "other", shuffled)) == base
    assert fingerprint(str(tmp_path / "other")) == base


def test_a_bfloat16_copy_is_the_same(base, tmp_path):
    assert fingerprint(write_bfloat16(tmp_path / "bf16", weights())) == base


def test_rounding_is_to_nearest_even(tmp_path):
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF818000, 0], np.uint32)
    tensors = {"x": ties.view(np.float32)}
    first = fingerprint(write_checkpoint(tmp_path / "f32", tensors))
    assert fingerprint(write_bfloat16(tmp_path / "bf16", tensors)) == first


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_shards_do_not_matter(base, tmp_path, parts):
    assert fingerprint(shard(tmp_path / "sharded", weights(), parts)) == base


def test_structure_counts_and_the_rest_of_the_configuration_does_not(base, tmp_path):
    other = write_checkpoint(tmp_path / "x", weights(), {**CONFIG, "dtype": "bfloat16", "eos": 3})
    assert fingerprint(other) == base
    other = write_checkpoint(tmp_path / "y", weights(), {**CONFIG, "num_attention_heads": 4})
    assert fingerprint(other) != base


def test_a_changed_configuration_is_seen_beside_the_same_weights(base, tmp_path):
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**CONFIG, "num_attention_heads": 4}))
    assert fingerprint(tmp_path / "base") != base


def test_changed_weights_are_seen_in_the_same_folder(base, tmp_path):
    write_checkpoint(tmp_path / "base", weights(seed=1))
    os.utime(tmp_path / "base" / "model.safetensors", ns=(1, 1))
    assert fingerprint(tmp_path / "base") != base


@pytest.mark.parametrize("name", sorted(weights()))
def test_one_changed_value_in_the_middle_of_any_tensor(base, tmp_path, name):
    tensors = weights()
    flat = tensors[name].reshape(-1)
    flat[len(flat) // 2] *= 1.02
    assert fingerprint(write_checkpoint(tmp_path / "x", tensors)) != base


def test_a_name_a_shape_and_a_missing_tensor_are_seen(base, tmp_path):
    renamed, reshaped, less = weights(), weights(), weights()
    renamed["layers.0.z.weight"] = renamed.pop("layers.0.q.weight")
    reshaped["embed.weight"] = reshaped["embed.weight"].reshape(8, 16)
    del less["norm.weight"]
    others = [
        fingerprint(write_checkpoint(tmp_path / name, tensors))
        for name, tensors in {"renamed": renamed, "reshaped": reshaped, "less": less}.items()
    ]
    assert len({base, *others}) == 4


def test_integers_count_by_name_and_shape_only(tmp_path):
    ids = {"position_ids": np.arange(16)}
    one = fingerprint(write_checkpoint(tmp_path / "one", weights() | ids))
    ids = {"position_ids": np.zeros(16, np.int32)}
    assert fingerprint(write_checkpoint(tmp_path / "two", weights() | ids)) == one


def test_sampling_spreads_over_hundreds_of_tensors(tmp_path):
    many = {f"t{i:03}": np.full((4, 4), i, np.float32) for i in range(300)}
    one = fingerprint(write_checkpoint(tmp_path / "one", many))
    assert fingerprint(write_checkpoint(tmp_path / "two", {k: v + 1 for k, v in many.items()})) != (
        one
    )


def test_a_folder_without_a_configuration(tmp_path):
    folder = write_checkpoint(tmp_path / "x", weights())
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"no config\.json"):
        fingerprint(folder)
    with pytest.raises(BackboneError, match=r"no config\.json"):
        fingerprint(tmp_path / "missing")


def test_pickled_weights_are_not_read(tmp_path):
    folder = write_checkpoint(tmp_path / "x", weights())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"pickled weights \(\.bin\) are not read"):
        fingerprint(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 100_000),
        ("model.safetensors", "not a model"),
        ("model.safetensors.index.json", "{"),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "missing.safetensors"}}'),
    ],
)
def test_damaged_checkpoints(tmp_path, file, text):
    folder = write_checkpoint(tmp_path / "x", weights())
    if file.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(text)
    with pytest.raises(AdaptersHubError, match=str(folder)):
        fingerprint(folder)


@pytest.mark.slow
def test_every_tensor_counts(tmp_path):
    """Also in a model whose tensors repeat in their sorted order, of which few would be met."""
    rng = np.random.default_rng(1)
    names = (
        "attn.bias",
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "ln.weight",
        "mlp.c_fc.weight",
    )
    tensors = {
        f"h.{i}.{n}": rng.normal(size=(4, 4)).astype(np.float32) for i in range(24) for n in names
    }
    whole = fingerprint(write_checkpoint(tmp_path / "whole", tensors))
    for number, name in enumerate(tensors):
        changed = {**tensors, name: tensors[name] + 1}
        assert fingerprint(write_checkpoint(tmp_path / f"{number}", changed)) != whole, name


def test_a_fingerprint_of_the_first_version_is_that_backbones_and_no_others(tmp_path, base):
    other = fingerprint(write_checkpoint(tmp_path / "other", weights(seed=1)))
    first = "tiny-2L-8-f45563043dd6b2d0"
    assert belongs(first, base)
    assert belongs(base, first)
    assert not belongs(first, other)
    assert not belongs(base, other)
    assert belongs(None, base)
    unseen = "tiny-2L-8-v2-0123456789abcdef"
    assert belongs(first, unseen)  # undecided until that backbone is looked at
    assert not belongs(first, "tiny-3L-8-v2-0123456789abcdef")
