"""Adapters come from files, stay within a budget, leave and come back, and rows are never wrong."""

import gc
import os
import shutil

import psutil
import pytest
import torch
from helpers import in_threads

import adapters_hub as ah
from adapters_hub.backbone.loading import read_backbone
from adapters_hub.errors import AdapterFileError, NotFoundError
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.model import AdaptedModel
from adapters_hub.runtime import residents as residency
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.tensors import read_tensor_bytes

NAMES = [f"a{n}" for n in range(6)]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory, tiny):
    """A library of six adapters for the tiny decoder, and the logits of each on one input."""
    from conftest import auto_class
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("stocked")
    library = ah.Library(root / "library")
    base = auto_class("qwen3").from_pretrained(tiny("qwen3"))
    peft = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        for key, value in peft.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, std=0.2)
        peft.save_pretrained(root / name)
        library.add(root / name, name=name)
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    ids = torch.arange(5)[None] + 7
    with torch.no_grad():
        want = {name: model(input_ids=ids, adapters=name).logits for name in NAMES}
    return library, ids, want, model.residents["a0"].factors.flat.nbytes


def adapters_in_memory():
    gc.collect()
    return sum(isinstance(thing, Adapter) for thing in gc.get_objects())


def make(tiny, library, adapters, size, **options):
    """A model with room for a number of the stocked adapters."""
    return AdaptedModel(
        read_backbone(str(tiny("qwen3"))), library, memory=adapters * size, **options
    )


@pytest.mark.slow
def test_a_thousand_loads_and_evictions_never_give_a_wrong_row_nor_leak(tiny, stocked):
    library, ids, want, size = stocked
    model = make(tiny, library, 2, size)
    random = torch.Generator().manual_seed(0)
    used, others = [], adapters_in_memory()
    process = psutil.Process()
    with torch.no_grad():
        for call in range(1000):
            first, second = torch.randint(0, len(NAMES), (2,), generator=random).tolist()
            rows = [NAMES[first], NAMES[second]]
            got = model(input_ids=ids.expand(2, -1), adapters=rows).logits
            for row, name in enumerate(rows):
                torch.testing.assert_close(got[row : row + 1], want[name], atol=1e-4, rtol=1e-4)
            assert model.bank.bytes <= 2 * size
            if call in (199, 999):
                gc.collect()
                used.append(process.memory_info().rss)
    assert len(model.bank) <= 2
    assert adapters_in_memory() - others <= 2
    assert model.bank.bytes_beside <= 2 * size
    assert used[1] - used[0] < 16 << 20


@pytest.mark.slow
def test_threads_that_evict_each_others_adapters_get_their_own_rows(tiny, stocked):
    library, ids, want, size = stocked
    model = make(tiny, library, 2, size)

    def work(name):
        with torch.no_grad():
            for _ in range(30):
                got = model(input_ids=ids, adapters=name).logits
                torch.testing.assert_close(got, want[name], atol=1e-4, rtol=1e-4)

    in_threads(work, NAMES[:4])
    assert model.bank.current() is None


def test_those_a_call_needs_stay_however_little_room_there_is(tiny, stocked):
    library, ids, want, size = stocked
    model = make(tiny, library, 0, size)
    with torch.no_grad():
        got = model(input_ids=ids.expand(3, -1), adapters=NAMES[:3]).logits
    for row, name in enumerate(NAMES[:3]):
        torch.testing.assert_close(got[row : row + 1], want[name], atol=1e-4, rtol=1e-4)
    assert set(model.bank.names()) == set(NAMES[:3])
    model.use(NAMES[4])
    assert model.bank.names() == [NAMES[4]]


def test_what_host_memory_keeps_is_not_read_again(tiny, stocked, monkeypatch):
    library, ids, want, size = stocked
    read = []
    real = residency.read_tensor_bytes
    monkeypatch.setattr(
        residency, "read_tensor_bytes", lambda *given: read.append(given[0]) or real(*given)
    )
    model = make(tiny, library, 1, size, host_memory=2 * size)
    with torch.no_grad():
        for name in ("a0", "a1", "a0", "a1"):
            got = model(input_ids=ids, adapters=name).logits
            torch.testing.assert_close(got, want[name], atol=1e-4, rtol=1e-4)
        assert len(read) == 2
        model.use("a2")  # room for two: a0 was used before a1
        model.use("a1")
        assert len(read) == 3
        model.use("a0")
        assert len(read) == 4


def test_a_replaced_adapter_is_read_again_from_host_memory_too(tiny, stocked, tmp_path):
    library, ids, want, size = stocked
    own = ah.Library(shutil.copytree(library.root, tmp_path / "own"))
    model = make(tiny, own, 8, size, host_memory=8 * size)
    with torch.no_grad():
        model(input_ids=ids, adapters="a0")
        source = shutil.copytree(library.root / "a1", tmp_path / "a0")
        own.add(source, name="a0", replace_existing=True)
        got = model(input_ids=ids, adapters="a0").logits
        torch.testing.assert_close(got, want["a1"], atol=1e-4, rtol=1e-4)
    own.remove("a0")
    with pytest.raises(NotFoundError):
        model.use("a0")


def test_a_file_replaced_between_header_and_numbers_is_refused(stocked, tmp_path):
    library, *_ = stocked
    folder = shutil.copytree(library.root / "a0", tmp_path / "a0")
    files = read_adapter(folder, "a0")
    other = tmp_path / "other"
    shutil.copy(library.root / "a1" / files.weights.name, other)
    os.replace(other, files.weights)
    with pytest.raises(AdapterFileError, match="changed while it was read"):
        read_tensor_bytes(files)


def test_a_load_that_fails_leaves_what_was_there_and_the_next_one_works(tiny, stocked, tmp_path):
    library, ids, want, size = stocked
    own = ah.Library(shutil.copytree(library.root, tmp_path / "own"))
    model = make(tiny, own, 8, size).use("a0")
    weights = own.root / "a1" / "adapter_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-8])
    with pytest.raises((AdapterFileError, NotFoundError)):
        model.use("a1")
    assert str(model.active) == "a0"
    weights.write_bytes(sound)
    with torch.no_grad():
        got = model(input_ids=ids.expand(2, -1), adapters=["a0", "a1"]).logits
    torch.testing.assert_close(got[1:], want["a1"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtypes", [("F16", "F16"), ("BF16", "BF16"), ("F64", "F32")])
def test_other_precisions_and_mixed_ones_load(tiny, stocked, tmp_path, dtypes):
    from safetensors.torch import load_file, save_file

    kinds = {
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F64": torch.float64,
        "F32": torch.float32,
    }
    library, ids, want, _ = stocked
    folder = shutil.copytree(library.root / "a0", tmp_path / "a0")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k: t.to(kinds[dtypes["lora_B" in k]]) for k, t in tensors.items()}, weights)
    own = ah.Library(tmp_path / "own")
    own.add(folder, name="a0")
    model = ah.load_backbone(str(tiny("qwen3")), library=own)
    with torch.no_grad():
        got = model(input_ids=ids, adapters="a0").logits
    close = 1e-4 if "F32" in dtypes else 0.1
    torch.testing.assert_close(got, want["a0"], atol=close, rtol=close)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tiny, stocked, tmp_path, bad):
    from safetensors.torch import load_file, save_file

    library, *_ = stocked
    own = ah.Library(shutil.copytree(library.root, tmp_path / "own"))
    weights = own.root / "a0" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[3]][0, 0] = bad
    save_file(tensors, weights)
    with pytest.raises(AdapterFileError, match="NaN or infinity"):
        ah.load_backbone(str(tiny("qwen3")), library=own).use("a0")


def test_numbers_whose_sum_is_too_large_are_no_infinity(tiny, stocked, tmp_path):
    from safetensors.torch import load_file, save_file

    library, *_ = stocked
    own = ah.Library(shutil.copytree(library.root, tmp_path / "own"))
    weights = own.root / "a0" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[3]][:] = 3e38
    save_file(tensors, weights)
    model = ah.load_backbone(str(tiny("qwen3")), library=own).use("a0")
    assert "a0" in model.bank
