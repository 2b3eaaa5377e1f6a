"""A backbone in parts on two CPU processes (FSDP2): the same adapters as on a whole one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import WORDS
from helpers import ROOT
from helpers.recipes import launch
from helpers.sharded_runs import RUNS, learnt
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.backbone.sharding import shard
from adapters_hub.data.batches import by_length
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.training.accelerator import make_accelerator
from adapters_hub.training.settings import TrainingSettings
from adapters_hub.training.sharding import shard_model, wants_shards


def write(folder, row_of):
    """Rows in two languages of words that the tiny tokenizer knows; few, so that shares differ."""
    folder.mkdir()
    for split, items in (("train", 12), ("dev", 3), ("test", 3)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for item in range(items):
                words = [WORDS[(item * 3 + k) % len(WORDS)] for k in range(3 + item % 4)]
                for language in ("de", "da"):
                    row = {"language": language, **row_of(words, item % 2)}
                    file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """Backbones and data of the runs, by the names in `RUNS`."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in {kind for kind, _, _ in RUNS.values()}:
        (folder / kind).symlink_to(tiny(kind))
    write(folder / "data", lambda words, odd: {
        "text": " ".join([*words, "lovely" if odd else "rude"]), "label": "good" if odd else "bad"
    })  # fmt: skip
    write(folder / "pairs", lambda words, odd: {
        "text": " ".join(words), "positive": " ".join(reversed(words)), "positive_language": "en"
    })  # fmt: skip
    write(folder / "answers", lambda words, odd: {
        "text": " ".join(words), "target": " ".join(words[:2])
    })  # fmt: skip
    return folder


def run_in_two_processes(place, *names, **more):
    """Runs of these names, or all, by two processes that accelerate was asked for FSDP2 in."""
    environment = {
        **os.environ,
        **more, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "-m", "helpers.sharded_runs", str(place), *names]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def shared(place):
    """What came of all runs."""
    run_in_two_processes(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_that_share_a_backbone_learn_what_one_does(
    name, shared, tmp_path, fresh_accelerate
):
    kind, data, _ = RUNS[name]
    whole, _ = learnt(name, shared / kind, shared / data, tmp_path)
    for process in (0, 1):
        got = load_file(shared / f"{name} {process}.safetensors")
        held = got.pop("held")
        local, numel = held.sum(0).tolist()
        assert 0.45 * numel < local < 0.55 * numel
        assert got.keys() == whole.keys()
        for key, tensor in whole.items():
            off = (got[key].double() - tensor.double()).abs().max()
            assert off <= 1e-3 * tensor.double().abs().max() + 2e-5, key


@pytest.mark.slow
def test_control_c_in_a_sharded_run_saves_and_the_same_command_goes_on(tiny, place, tmp_path):
    arguments = ["--backbone", tiny("qwen3"), "--data", place / "data", "--library", "library"]
    arguments += ["--language", "da", "--steps", 40, "--eval-every", 20, "--rank", 2, "--cpu"]
    arguments += ["--batch-size", 8, "--threads", 1, "--save-every", 3]
    for folder in ("stopped", "whole"):
        (tmp_path / folder).mkdir()

    def start(folder, processes):
        options = {"cwd": tmp_path / folder, "sharded": processes > 1, "start_new_session": True}
        return launch("lora_language.py", *arguments, processes=processes, **options)

    running = start("stopped", 2)
    checkpoint = tmp_path / "stopped" / "runs" / "da" / "checkpoint.safetensors"
    for _ in range(2400):
        if checkpoint.exists() or running.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "interrupted after step" in output, output
    assert checkpoint.exists()

    again = start("stopped", 2)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert "going on from step" in output
    assert "sharded (FSDP2): this process holds 11,888 of 23,776 weights" in output
    one = start("whole", 1)
    output, _ = one.communicate(timeout=120)
    assert one.returncode == 0, output
    assert "FSDP" not in output
    went_on, at_once = (
        load_file(tmp_path / folder / "library" / "da" / "adapter_model.safetensors")
        for folder in ("stopped", "whole")
    )
    assert went_on.keys() == at_once.keys()
    for key, tensor in at_once.items():
        torch.testing.assert_close(went_on[key], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    ])
    for name in ("decoder", "recomputed", "classification", "retrieval", "written")
])  # fmt: skip
def test_two_gpus_that_share_a_backbone_learn_what_a_cpu_does(
    name, place, tmp_path, fresh_accelerate
):
    run_in_two_processes(place, name, SHARDED_RUNS_ON_GPUS="1")
    kind, data, _ = RUNS[name]
    whole, _ = learnt(name, place / kind, place / data, tmp_path)
    got = load_file(place / f"{name} 0.safetensors")
    local, numel = got.pop("held").sum(0).tolist()
    assert 0.45 * numel < local < 0.55 * numel
    for key, tensor in whole.items():
        off = (got[key].double() - tensor.double()).abs().max()
        assert off <= 1e-2 * tensor.double().abs().max() + 1e-4, key


@pytest.fixture
def asked(monkeypatch, fresh_accelerate):
    """What accelerate's launcher leaves in the environment, and further FSDP options."""

    def ask(**options):
        for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **options}.items():
            monkeypatch.setenv(name, value)
        return make_accelerator(TrainingSettings(cpu=True))

    return ask


def test_one_process_has_nobody_to_share_with(asked):
    assert not wants_shards(asked())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"FSDP_VERSION": "1"}, "take FSDP2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient-checkpointing"),
    ],
)
def test_what_fsdp_cannot_be_asked_for_here_says_so(options, said, asked):
    with pytest.raises(SettingsError, match=said):
        wants_shards(asked(**options))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"regularise": {"kl": "0.1"}}, "regularise kl"),
        ({"joint_weights": "dro"}, "joint_weights"),
        ({"augment": {"mixup": 0.2}}, "augment mixup"),
    ],
)
def test_what_needs_other_forwards_in_each_process_says_so(settings, said, asked, monkeypatch):
    accelerator = asked()
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(SettingsError, match=said):
        shard_model(None, accelerator, TrainingSettings(**settings))


def test_batches_that_keep_others_company():
    """As many for each process, all rows among them, and one that is there already."""
    lengths = [5, 1, 4, 2, 3]
    for rows in range(1, 6):
        for size in (1, 2, 3):
            cut = [by_length(lengths[:rows], size, p, 3, even=True) for p in range(3)]
            assert len({len(batches) for batches in cut}) == 1
            plain = [by_length(lengths[:rows], size, p, 3) for p in range(3)]
            for even, batches in zip(cut, plain, strict=True):
                assert even[: len(batches)] == batches


@pytest.fixture
def alone():
    """A group of one process, and its mesh."""
    from torch.distributed.device_mesh import init_device_mesh

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_what_needs_whole_weights_says_so(alone, tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    model = ah.load_backbone(tiny("qwen3"), library=library)
    with torch.no_grad():
        want = model(**inputs, adapters=["one", None] * 2).logits
    shard(model.backbone, alone)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, adapters=["one", None] * 2).logits, want)
    for refused in (
        lambda: model.merge("one"),
        lambda: model.to(torch.bfloat16),
        lambda: model.compile(),
        lambda: shard(model.backbone, alone),
    ):
        with pytest.raises(BackboneError, match="sharded"):
            refused()
    assert not model.can_merge(model.plan(model.blends(4, "one")))
    assert model.export("one", tmp_path / "out").exists()


def test_what_cannot_be_cut_says_so(alone, tiny):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(BackboneError, match="8-bit weights"):
        shard(ah.load_backbone(tiny("qwen3"), bits=8).backbone, alone)
    with pytest.raises(BackboneError, match="no layer of class Nobody"):
        shard(ah.load_backbone(tiny("qwen3")).backbone, alone, layers=["Nobody"])
