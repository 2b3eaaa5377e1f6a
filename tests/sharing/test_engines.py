"""Every engine's form holds the blend: read back by the engine's rules, not by ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, TEXTS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.cli import sharing as commands
from adapters_hub.errors import SettingsError, UnsupportedAdapterError
from adapters_hub.library.paths import bundled_root
from adapters_hub.sharing.engine import Source
from adapters_hub.sharing.engines import ENGINES, check_written, write_for

BLEND = "one - 0.5*two"
UNLIKE = {
    "one": {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2}},
    "two": {"r": 3, "lora_alpha": 5},
}
OF_GGUF = ("llama", "qwen3", "gemma3", "gpt2", "bert", "xlm-roberta")
OF_MLX = ("llama", "qwen3", "gemma3")


@pytest.fixture
def load(tiny, lora_folder, tmp_path):
    """A tiny backbone with two adapters whose ranks and scales are unlike."""

    def model(kind, **options):
        body = (
            {}
            if kind not in ENCODERS
            else {"exclude_modules": ["lm_head.dense", "transform.dense"]}
        )
        library = ah.Library(tmp_path / "library")
        for name, unlike in UNLIKE.items():
            source = lora_folder(kind, name, **(options or {**unlike, **body}))
            library.add(source, name=name)
        return ah.load_backbone(str(tiny(kind)), library=library)

    return model


def deltas(model, blend=BLEND):
    """Site → weighted sum of the stored deltas, in float64."""
    out = {}
    for site, pieces in model.pieces(model.resolve(blend)).items():
        parts = [w * b.double() @ a.double() for w, a, b in pieces if len(a)]
        if parts:
            out[site] = sum(parts)
    return out


def close(got, want):
    assert got.keys() == want.keys()
    for site in want:
        torch.testing.assert_close(got[site].double(), want[site], atol=1e-6, rtol=1e-5)
    assert max(delta.abs().max() for delta in want.values()) > 1e-3


# ── by the rules of each engine ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_servers_read_one_rank_and_one_alpha(load, tmp_path, engine):
    model = load("llama")
    folder = model.export(BLEND, tmp_path / "out", engine=engine)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("use_rslora")
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert not {"megatron_core", "auto_mapping"} & config.keys()
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]  # what they read, and nothing else
    got = {}
    for site in deltas(model):
        stem = f"base_model.model.model.{site}"
        a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        assert len(a) == config["r"]
        got[site] = scale * b @ a
    close(got, deltas(model))


@pytest.mark.parametrize("kind", OF_GGUF)
def test_llama_cpp_reads_its_names_and_its_order_of_rows(load, tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    model = load(kind)
    folder = model.export(BLEND, tmp_path / "out", engine="gguf", name="both")
    reader = gguf.GGUFReader(folder / "both.gguf")
    field = lambda key: reader.get_field(key).contents()
    assert (field("general.type"), field("adapter.type")) == ("adapter", "lora")
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    want = deltas(model)
    assert len(tensors) == 2 * len(want)
    config = model.config
    for site, delta in want.items():
        delta = delta.numpy()
        name = site.rsplit(".", 1)[-1]
        if kind == "llama" and name in ("q_proj", "k_proj"):  # as its converter changes weights
            heads = config.num_attention_heads if name == "q_proj" else config.num_key_value_heads
            shape = (heads, 2, delta.shape[0] // heads // 2, *delta.shape[1:])
            delta = delta.reshape(shape).swapaxes(1, 2).reshape(delta.shape)
        ours = [
            stem for stem in {key.rsplit(".", 1)[0] for key in tensors}
            if (b := tensors[f"{stem}.lora_b"]).shape[0] == delta.shape[0]
            and (a := tensors[f"{stem}.lora_a"]).shape[1] == delta.shape[1]
            and np.allclose(field("adapter.lora.alpha") / len(a) * b @ a, delta, atol=1e-6)
        ]  # fmt: skip
        assert len(ours) == 1, site
        layer = next((part for part in site.split(".") if part.isdigit()), None)
        assert layer is None or ours[0].startswith(f"blk.{layer}.")


@pytest.mark.parametrize("kind", OF_MLX)
def test_mlx_multiplies_by_a_then_b(load, tmp_path, kind):
    model = load(kind)
    folder = model.export(BLEND, tmp_path / "out", engine="mlx")
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapters.safetensors")
    lora = config["lora_parameters"]
    assert config["num_layers"] == model.config.num_hidden_layers
    got = {}
    for site in model.backbone.body_sites:
        if site.split(".", 2)[-1] not in lora["keys"]:
            continue
        a, b = tensors[f"model.{site}.lora_a"], tensors[f"model.{site}.lora_b"]
        assert a.shape == (model.backbone.shapes[site][0], lora["rank"])
        got[site] = lora["scale"] * (a @ b).T
    close(got, deltas(model))


def test_mlx_gets_zeros_where_a_layer_of_that_name_is_not_adapted(load, tmp_path):
    model = load("llama", target_modules=["layers.0.mlp.down_proj"])
    folder = model.export("one", tmp_path / "out", engine="mlx")
    tensors = load_file(folder / "adapters.safetensors")
    assert tensors["model.layers.0.mlp.down_proj.lora_b"].any()
    assert not tensors["model.layers.1.mlp.down_proj.lora_b"].any()


def test_openvino_scales_by_the_alpha_in_the_file(load, tmp_path):
    model = load("llama")
    folder = model.export(BLEND, tmp_path / "out", engine="openvino", name="both")
    tensors = load_file(folder / "both.safetensors")
    got = {}
    for site in deltas(model):
        stem = f"base_model.model.model.{site}"
        a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        got[site] = tensors[f"{stem}.alpha"] / len(a) * b @ a
    close(got, deltas(model))


@pytest.mark.parametrize("engine", ["merged", "keras"])
def test_a_whole_model_needs_nothing_of_ours(load, tmp_path, inputs, engine):
    model = load("gpt2")
    folder = model.export(BLEND, tmp_path / "out", engine=engine)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        want = model(**inputs, adapters=BLEND).logits
        bare = model(**inputs, adapters=None).logits
        torch.testing.assert_close(plain(**inputs).logits, want, atol=1e-5, rtol=1e-5)
    assert (want - bare).abs().max() > 1e-3


def test_a_whole_model_has_the_head(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("bert", "cls", labels=3), name="cls")
    model = ah.load_backbone(str(tiny("bert")), library=library)
    folder = model.export("cls", tmp_path / "out", engine="merged")
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    scores = model.classify(TEXTS, adapters="cls")
    with torch.no_grad():
        for text, score in zip(TEXTS, scores, strict=True):
            logits = plain(**model.tokenizer(text, return_tensors="pt")).logits
            assert plain.config.id2label[int(logits.argmax())] == max(score, key=score.get)
    assert check_written("merged", Source(model, "cls"), folder).agrees


# ── the check ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["peft", "vllm", "gguf", "mlx", "openvino", "merged"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_written_agrees(load, tmp_path, engine, dtype):
    model = load("llama")
    source = Source(model, BLEND, dtype=dtype)
    write_for(engine, source, tmp_path / "out")
    check = check_written(engine, source, tmp_path / "out")
    assert check.agrees
    assert check.difference <= (1e-4 if dtype == "float32" else 0.2) * check.effect


def test_a_wrong_scale_a_missing_layer_and_no_effect_are_seen(load, tmp_path):
    model = load("llama")
    source = Source(model, BLEND, name="both")
    write_for("openvino", source, tmp_path / "out")
    path = tmp_path / "out" / "both.safetensors"
    tensors = load_file(path)
    check = lambda: check_written("openvino", source, tmp_path / "out")
    assert check().agrees
    save_file({k: t * 2 if k.endswith("alpha") else t for k, t in tensors.items()}, path)
    assert not check().agrees
    save_file({k: t * 0 if "lora_B" in k else t for k, t in tensors.items()}, path)
    assert not check().agrees


def test_the_readers_name_and_version_are_said(load, tmp_path):
    import peft

    source = Source(load("llama"), BLEND)
    write_for("vllm", source, tmp_path / "out")
    assert f"PEFT {peft.__version__}" in str(check_written("vllm", source, tmp_path / "out"))


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["vllm", "sglang", "gguf", "mlx", "openvino"])
def test_a_task_head_is_refused_where_it_would_be_lost(tiny, lora_folder, tmp_path, engine):
    pytest.importorskip("gguf")
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("llama", "cls", labels=3), name="cls")
    model = ah.load_backbone(str(tiny("llama")), library=library)
    with pytest.raises(UnsupportedAdapterError, match=r"task head.*--for merged"):
        model.export("cls", tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["gguf", "mlx"])
def test_an_output_layer_that_the_engine_ties_is_refused(load, tmp_path, engine):
    pytest.importorskip("gguf")
    model = load("qwen3", target_modules=["lm_head"])
    with pytest.raises(UnsupportedAdapterError, match="output layer"):
        model.export("one", tmp_path / "out", engine=engine)


@pytest.mark.parametrize("engine", ["gguf", "mlx", "keras"])
def test_an_architecture_that_is_not_known_is_refused(load, tmp_path, engine):
    pytest.importorskip("gguf")
    model = load("m2m100")
    with pytest.raises(SettingsError, match="m2m_100"):
        model.export(BLEND, tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_experts_are_refused(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    model = ah.load_backbone(str(tiny("mixtral")), library=library)
    from peft import LoraConfig

    from adapters_hub.library.adapter_file import AdapterInfo
    from adapters_hub.tasks.language_modeling import LanguageModeling

    lora = LoraConfig(target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    task = LanguageModeling()
    adapter = task.new_adapter(AdapterInfo(name="one", task=task.name), model.backbone, lora)
    factors = {site: (a, b + 0.1) for site, (a, b) in adapter.factors.items()}
    adapter.factors = factors
    model.add(adapter)
    with pytest.raises(UnsupportedAdapterError, match="experts"):
        model.export("one", tmp_path / "out", engine="vllm")
    assert model.export("one", tmp_path / "peft").exists()


def test_options_that_cannot_be_are_refused(load, tmp_path):
    model = load("llama")
    with pytest.raises(SettingsError, match="choose one of peft, vllm"):
        model.export(BLEND, tmp_path / "out", engine="onnx")
    with pytest.raises(SettingsError, match="float32, bfloat16, float16"):
        model.export(BLEND, tmp_path / "out", dtype="int8")
    with pytest.raises(SettingsError, match="--base"):
        model.export(BLEND, tmp_path / "out", engine="ollama")
    with pytest.raises(SettingsError, match="the exact sum"):
        model.export(BLEND, tmp_path / "out", engine="merged", rank=2)
    assert not (tmp_path / "out").exists()


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def test_a_rank_cuts_to_what_loses_least(load, tmp_path):
    model = load("llama")
    cut = model.export(BLEND, tmp_path / "cut", engine="openvino", name="both", rank=2)
    svd = model.export(BLEND, tmp_path / "svd", method="svd", rank=2)
    ours, theirs = load_file(cut / "both.safetensors"), load_file(svd / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.mlp.down_proj"
    product = lambda t: t[f"{stem}.lora_B.weight"] @ t[f"{stem}.lora_A.weight"]
    torch.testing.assert_close(product(ours), product(theirs), atol=1e-6, rtol=1e-5)
    assert len(ours[f"{stem}.lora_A.weight"]) == 2


def test_the_least_rank_that_vllm_allows_is_said(load, tmp_path):
    model = load("llama", r=9, lora_alpha=9)
    written = write_for("vllm", Source(model, "one"), tmp_path / "out")
    assert "--max-lora-rank 16 " in written.hint
    assert str(tmp_path / "out") in written.hint


def test_ollama_has_a_modelfile_beside_the_adapter(load, tmp_path):
    pytest.importorskip("gguf")
    source = Source(load("llama"), BLEND, name="both", base="llama3.2:1b")
    write_for("ollama", source, tmp_path / "out")
    assert (tmp_path / "out/Modelfile").read_text() == "FROM llama3.2:1b\nADAPTER ./both.gguf\n"
    assert check_written("ollama", source, tmp_path / "out").agrees


def test_from_the_command_line(load, tmp_path, capsys):
    model = load("llama")
    common = ["export", BLEND, "--library", str(model.library.root)]
    out = str(tmp_path / "out")
    backbone = ["--backbone", model.backbone.name]
    assert main([*common, "-o", out, "--for", "vllm", "--verify", *backbone]) == 0
    said = capsys.readouterr().out
    assert "vllm serve" in said
    assert "agrees: logits of 3 texts" in said
    assert main([*common, "-o", out, "--for", "ollama", *backbone]) == 1
    assert "--base" in capsys.readouterr().err


def test_the_command_knows_every_engine():
    assert tuple(ENGINES) == commands.ENGINES


def test_what_is_done_to_a_merged_model_does_not_reach_the_adapter(tiny, lora_folder, tmp_path):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("bert", "cls", labels=3), name="cls")
    model = ah.load_backbone(str(tiny("bert")), library=library)
    before = model.classify(TEXTS, adapters="cls")
    plain = model.merge("cls")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert model.classify(TEXTS, adapters="cls") == before


@pytest.mark.parametrize("engine", ["gguf", "openvino"])
def test_exports_of_several_blends_may_share_a_folder(load, tmp_path, engine):
    pytest.importorskip("gguf")
    model = load("llama")
    for blend in ("one", "two"):
        write_for(engine, Source(model, blend), tmp_path / "out")
    for blend in ("one", "two"):
        assert check_written(engine, Source(model, blend), tmp_path / "out").agrees


def test_the_starter_is_named_by_its_folder(tmp_path):
    model = ah.load_backbone("starter", library=bundled_root())
    written = write_for("vllm", Source(model, "da"), tmp_path / "out")
    base = written.hint.split()[2]
    assert (Path(base) / "config.json").is_file()
