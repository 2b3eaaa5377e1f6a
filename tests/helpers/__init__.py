"""What tests of several rooms share; here what needs no torch: small files, other processes."""

import json
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SITES = ("layers.0.q_proj", "layers.0.v_proj")


def lora_config(**changes):
    """The configuration of a plain LoRA; a value of None leaves the field out."""
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "base_model_name_or_path": None,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def lora_tensors(sites=SITES, rank=2, inputs=6, outputs=4, seed=0, dtype=np.float32):
    """Random factors by the names that PEFT gives them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for site in sites:
        stem = f"base_model.model.{site}"
        tensors[f"{stem}.lora_A.weight"] = rng.normal(size=(rank, inputs)).astype(dtype)
        tensors[f"{stem}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype(dtype)
    return tensors


def site_weights(inputs=6, outputs=4):
    """The backbone's weights at those sites."""
    return {f"{site}.weight": np.ones((outputs, inputs), np.float32) for site in SITES}


def write_peft_folder(path, *, tensors=None, config=None, metadata=None, card=None, seed=0):
    """A folder as PEFT's ``save_pretrained`` leaves it; returns its path."""
    path = Path(path)
    path.mkdir(parents=True)
    save_file(lora_tensors(seed=seed) if tensors is None else tensors, path / WEIGHTS, metadata)
    (path / CONFIG).write_text(json.dumps(lora_config() if config is None else config))
    if card is not None:
        (path / "README.md").write_text(card, encoding="utf-8")
    return path


def raw_safetensors(header, data=b""):
    """The bytes of a safetensors file with any header at all: a dict, a text or bytes."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def write_checkpoint(folder, tensors, config=None, name="model.safetensors"):
    """A backbone's folder with one file of weights, enough for a fingerprint."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    default = {"model_type": "tiny", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config or default))
    save_file(tensors, folder / name)
    return folder


def adder(library, sources):
    """A function that adds one small adapter more, with the name and facts that are given."""

    def add(name=None, source=None, seed=0, **given):
        folder = Path(sources) / (source or f"{len(library.names())}-{seed}")
        return library.add(write_peft_folder(folder, seed=seed), name=name, **given)

    return add


def snapshot(root):
    """Every file and folder below, with the content of files, but for the lock and the index."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        if path.name not in (".lock", ".index.json"):
            found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else None
    return found


def run_python(code, *arguments, check=True):
    """Run code in a fresh interpreter that can import the package and these helpers."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


def in_threads(work, arguments):
    """Call ``work`` with each argument in a thread of its own; a thread's failure is raised."""
    arguments = list(arguments)
    with ThreadPoolExecutor(len(arguments)) as pool:
        list(pool.map(work, arguments))
