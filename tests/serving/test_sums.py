"""A sum in files is the blend that the bank computes, and is written once for each content."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import ROOT, lora_config, lora_tensors, write_peft_folder
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.errors import (
    AdapterFileError,
    BackboneMismatchError,
    BlendError,
    LibraryError,
    NotFoundError,
    SettingsError,
    UnsupportedAdapterError,
)
from adapters_hub.serving import sums as module
from adapters_hub.serving.sums import Sums

BLEND = "one - 0.5*two + 2*three"


@pytest.fixture
def small(tmp_path):
    """Sums of a library of two adapters for no backbone in particular."""
    library = ah.Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "1", seed=1), name="one", language="sw")
    library.add(write_peft_folder(tmp_path / "2", seed=2), name="two")
    return Sums(library, tmp_path / "cache")


def deltas_of(folder):
    """Site → alpha / r · B·A by the numbers that vLLM reads, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora"))
    tensors = load_file(folder / "adapter_model.safetensors")
    out = {}
    for key, a in tensors.items():
        if ".lora_A." in key:
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            assert len(a) == b.shape[1] == config["r"]
            stem = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            out[stem] = config["lora_alpha"] / config["r"] * b.double() @ a.double()
    return out


def test_a_sum_has_the_deltas_of_the_blend(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    unlike = {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2}}
    library.add(lora_folder("qwen3", "one", **unlike), name="one")
    library.add(lora_folder("qwen3", "two", r=3, lora_alpha=5), name="two")
    library.add(lora_folder("qwen3", "three", target_modules=["k_proj"]), name="three")
    made = Sums(library, tmp_path / "cache")(BLEND)
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    exported = deltas_of(model.export(BLEND, tmp_path / "out", engine="vllm"))
    got = deltas_of(made.folder)
    assert got.keys() == exported.keys()
    for site, delta in exported.items():
        torch.testing.assert_close(got[site], delta, atol=1e-6, rtol=1e-5)
    assert made.rank == 4 + 3 + 4  # where all three act


def test_one_that_was_saved_for_the_bare_body_acts_in_the_language_model(tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "1", seed=1), name="body")
    sites = ("model.layers.0.q_proj", "model.layers.0.v_proj")
    whole = write_peft_folder(tmp_path / "2", tensors=lora_tensors(sites, seed=1))
    library.add(whole, name="whole")
    sums = Sums(library, tmp_path / "cache")
    body, both = deltas_of(sums("body").folder), deltas_of(sums("body + whole").folder)
    assert body.keys() == both.keys() == {*sites}
    for site in sites:
        torch.testing.assert_close(both[site], 2 * body[site])


def test_the_digest_is_of_content_and_weights_in_any_order(small, tmp_path):
    first = small("one + 0.5*two")
    assert small("0.5*two + lang:sw").digest == first.digest == small.digest("two*0.5 + one")
    others = {small(text).digest for text in ("one + two", "one", "one - 0.5*two")}
    assert len(others | {first.digest}) == 4
    assert 1 <= first.number < 2**62
    source = write_peft_folder(tmp_path / "3", seed=3)
    small.library.add(source, name="two", replace_existing=True)
    assert small("one + 0.5*two").digest != first.digest
    source = write_peft_folder(tmp_path / "4", seed=2, config=lora_config(lora_alpha=5))
    small.library.add(source, name="two", replace_existing=True)
    assert small("one + 0.5*two").digest != first.digest
    source = write_peft_folder(tmp_path / "5", seed=2)
    small.library.add(source, name="two", replace_existing=True)
    assert small("one + 0.5*two").digest == first.digest


def test_a_sum_is_written_once(small, monkeypatch):
    written = []
    real = module.write_folder
    monkeypatch.setattr(
        module, "write_folder", lambda *given: written.append(given[0]) or real(*given)
    )
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(small, ["one + two", "two + one"] * 4)]
    assert len({sum_.folder for sum_ in made}) == 1
    assert written == [made[0].folder]
    again = Sums(small.library, small.cache)("one + two")
    assert again.folder == made[0].folder
    assert len(written) == 1
    assert {path.name for path in small.cache.iterdir()} <= {made[0].digest, ".lock"}


@pytest.mark.slow
def test_two_processes_write_one_sum(small):
    code = (
        "import sys, pathlib, adapters_hub as ah; from adapters_hub.serving.sums import Sums;"
        "s = Sums(ah.Library(sys.argv[1]), pathlib.Path(sys.argv[2]));"
        "print([s(f'one + {n}*two').rank for n in range(1, 9)])"
    )
    command = [sys.executable, "-c", code, str(small.library.root), str(small.cache)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == [str([4] * 8)] * 2
    assert len([path for path in small.cache.iterdir() if path.is_dir()]) == 8


def test_numbers_that_came_while_it_was_read_are_not_kept_as_the_old(small, tmp_path, monkeypatch):
    old = small("one + two").digest
    source = write_peft_folder(tmp_path / "3", seed=3)
    small.library.add(source, name="two", replace_existing=True)
    new = small("one + two")
    first, second = write_peft_folder(tmp_path / "4", seed=4), tmp_path / "2"
    real, sources = module.summed, [second, first]

    def replaced_before(blend, files):
        if sources:
            small.library.add(sources.pop(), name="two", replace_existing=True)
        return real(blend, files)

    monkeypatch.setattr(module, "summed", replaced_before)
    small.library.add(write_peft_folder(tmp_path / "5", seed=5), name="two", replace_existing=True)
    made = small("one + two")
    assert made.digest == old  # of the last that was put there
    assert {p.name for p in small.cache.iterdir() if p.is_dir()} == {old, new.digest}


def test_an_adapter_that_is_away_while_it_is_replaced_is_waited_for(small, monkeypatch):
    place, away = small.library.root / "two", small.library.root / ".away"
    place.rename(away)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: away.rename(place))
    real = small.library.state
    states = iter([(0,)])
    monkeypatch.setattr(small.library, "state", lambda: next(states, None) or real())
    assert small("one + two").rank == 4


def test_optional_terms_are_left_out(small):
    assert small("one + two? + nobody?").digest == small.digest("one + two")
    with pytest.raises(NotFoundError, match="bare backbone"):
        small("nobody?")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("nobody", NotFoundError, "have: one, two"),
        ("one two", BlendError, "cannot read the blend"),
        ("../one", BlendError, "cannot read the blend"),
        ("one - one", NotFoundError, "bare backbone"),
        ("auto", SettingsError, "chosen before its text is read"),
        ("auto + one", SettingsError, "name the language"),
    ],
)
def test_what_is_no_blend_is_refused(small, text, error, said):
    with pytest.raises(error, match=said):
        small(text)
    assert not small.cache.exists()


def test_adapters_of_another_backbone_are_refused(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="one")
    other = ah.load_backbone(str(tiny("llama"))).backbone.fingerprint
    with pytest.raises(BackboneMismatchError):
        Sums(library, tmp_path / "cache", other)("one")
    assert Sums(library, tmp_path / "cache", other).servable() == []


def test_heads_are_refused_and_not_listed(small, lora_folder):
    small.library.add(lora_folder("llama", "cls", labels=3), name="cls")
    with pytest.raises(UnsupportedAdapterError, match=r"task head.*--for merged"):
        small("one + cls")
    assert [info.name for info in small.servable()] == ["one", "two"]


def test_a_damaged_file_is_refused(small):
    small("one")
    weights = small.library.root / "two" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(AdapterFileError):
        small("one + two")
    assert small("one").rank == 2


def test_a_full_cache_is_not_made_larger(small, monkeypatch):
    made = small("one")
    monkeypatch.setenv("ADAPTERS_HUB_CACHE_GB", "0")
    assert small("one").folder == made.folder
    with pytest.raises(LibraryError, match="ADAPTERS_HUB_CACHE_GB allows 0"):
        small("two")
    monkeypatch.setenv("ADAPTERS_HUB_CACHE_GB", "much")
    with pytest.raises(SettingsError, match="give a number"):
        small("two")


def test_a_cache_that_cannot_be_written_is_said(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match=r"the sum of 'one': .*file/cache"):
        Sums(small.library, tmp_path / "file" / "cache")("one")


@pytest.mark.slow
def test_sums_bring_in_neither_transformers_nor_peft():
    code = (
        "import sys, adapters_hub.serving.sums, adapters_hub.serving.vllm_middleware;"
        "print({'transformers', 'peft', 'accelerate', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
