"""Reading adapters on bare parameters, without a model."""

import numpy as np
import pytest
from helpers import lora_config, write_peft_folder

from adapters_hub.errors import AdapterFileError
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.library.target_parameters import (
    is_targeted,
    unwrapped,
    wrapped,
    wrapped_modules,
)

EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("path", "targets", "hit"),
    [
        ("a.experts.w", {"experts.w"}, True),
        ("a.experts.w", {"a.experts.w"}, True),
        ("a.experts.w", {"w"}, True),
        ("a.experts.w", {"xperts.w"}, False),
        ("a.experts.w_bias", {"experts.w"}, False),
        ("experts.w", {"a.experts.w"}, False),
    ],
)
def test_targets_are_matched_as_peft_does(path, targets, hit):
    assert is_targeted(path, targets) == hit
    assert hit == (path in targets or any(path.endswith(f".{target}") for target in targets))


def test_the_first_parameter_is_wrapped_innermost():
    names = wrapped("m.experts", ["gate_up_proj", "down_proj"])
    inner = "m.experts.base_layer"
    assert names == {"gate_up_proj": inner, "down_proj": "m.experts"}
    assert unwrapped(inner) == ("m.experts", 1)
    assert unwrapped(f"{inner}.base_layer") == ("m.experts", 2)
    assert unwrapped("m.experts") == ("m.experts", 0)
    paths = ["a.experts", "a.experts.base_layer", "a.q_proj", "a.my_experts"]
    assert wrapped_modules(paths, {"experts.w"}) == set(paths[:2])
    assert wrapped_modules(paths, set()) == set()


def folder(path, **changes):
    """Four experts of rank 2, whose tensors are of all of them, and a layer of rank 3."""
    shapes = {EXPERTS: (8, 6, 4), f"{EXPERTS}.base_layer": (8, 6, 4), "layers.0.q_proj": (3, 6, 4)}
    tensors = {}
    for module, (rank, inputs, outputs) in shapes.items():
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"] = np.ones((rank, inputs), np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.ones((outputs, rank), np.float32)
    targets = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    return write_peft_folder(path, tensors=tensors, config=lora_config(**targets | changes))


def test_what_is_known_of_such_an_adapter_without_a_model(tmp_path):
    files = read_adapter(folder(tmp_path / "x"))
    assert files.wrapped == {EXPERTS, f"{EXPERTS}.base_layer"}
    assert (files.info.rank, files.info.sites) == (3, 3)


@pytest.mark.parametrize("targets", ["experts.w", {"experts.w": 1}, [1], ["experts.w", None]])
def test_targets_that_are_no_names_are_refused(tmp_path, targets):
    with pytest.raises(AdapterFileError, match="target_parameters"):
        read_adapter(folder(tmp_path / "x", target_parameters=targets))
