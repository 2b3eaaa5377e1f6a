"""llama.cpp adds what was exported for it, at the scales it is asked for.

It wants an environment of its own, whose Python is named by $ADAPTERS_HUB_TEST_LLAMA_CPP:

    python -m venv llama && llama/bin/pip install llama-cpp-python   # compiles for some minutes
"""

import json

import pytest
import torch
from helpers.other_python import engine, run

import adapters_hub as ah

PYTHON, pytestmark = engine("LLAMA_CPP")
READ = """
import ctypes, json, os
import llama_cpp
llm = llama_cpp.Llama(os.environ["BASE"], n_ctx=64, n_batch=64, logits_all=True, verbose=False)
scales = json.loads(os.environ["SCALES"])
loaded = [llama_cpp.llama_adapter_lora_init(llm.model, path.encode()) for path in scales]
assert all(loaded)
adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
weights = (ctypes.c_float * len(loaded))(*scales.values())
assert llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, len(loaded), weights) == 0
ids = given["input_ids"].tolist()
llm.eval(ids)
result = np.array(llm.scores[:len(ids)])
"""


def write_base(model, path):
    """A tiny Llama or Qwen3 as llama.cpp's converter writes it, without a vocabulary."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    kind = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path, tensor in model.backbone.model.state_dict().items():
        if path == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = path.split(".")[-2]
        if config.model_type == "llama" and part in heads:  # LlamaModel.permute in the converter
            shape = (heads[part], 2, tensor.shape[0] // heads[part] // 2, *tensor.shape[1:])
            tensor = tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
        name = names.get_name(path, try_suffixes=(".weight",))
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tiny, lora_folder, tmp_path):
    kind = request.param
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder(kind, "one", use_rslora=True, rank_pattern={"q_proj": 2}), name="one")
    library.add(lora_folder(kind, "two", r=3, target_modules=["k_proj", "q_proj"]), name="two")
    return ah.load_backbone(str(tiny(kind)), library=library)


def logits(model, tmp_path, inputs, scales):
    base = tmp_path / "base.gguf"
    write_base(model, base)
    ids = {"input_ids": inputs["input_ids"][0].numpy()}
    return run(PYTHON, READ, "-", tmp_path, ids, BASE=str(base), SCALES=json.dumps(scales))


def exported(model, blend, tmp_path):
    (path,) = model.export(blend, tmp_path / blend, engine="gguf").glob("*.gguf")
    return str(path)


def test_a_blend_is_one_adapter(model, tmp_path, inputs):
    got = logits(model, tmp_path, inputs, {exported(model, "one - 0.5*two", tmp_path): 1.0})
    same(got, model, inputs, "one - 0.5*two")


def test_scales_of_a_request_are_a_blend(model, tmp_path, inputs):
    scales = {exported(model, "one", tmp_path): 0.7, exported(model, "two", tmp_path): -1.3}
    same(logits(model, tmp_path, inputs, scales), model, inputs, "0.7*one - 1.3*two")


def same(got, model, inputs, blend):
    ids = inputs["input_ids"][:1]
    with torch.no_grad():
        want, bare = (model(input_ids=ids, adapters=b).logits[0] for b in (blend, None))
    torch.testing.assert_close(got, want, atol=5e-3, rtol=5e-3)  # it multiplies in its own way
    assert (bare - want).abs().max() > 0.1
