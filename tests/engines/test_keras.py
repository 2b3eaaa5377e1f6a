"""KerasHub reads what was exported for it, on TensorFlow and on PyTorch.

It wants an environment of its own, whose Python is named by $ADAPTERS_HUB_TEST_KERAS:

    python -m venv keras && keras/bin/pip install keras-hub tensorflow-cpu safetensors torch
"""

import pytest
import torch
from conftest import TEXTS, tiny_config, tiny_tokenizer
from helpers.other_python import engine, run
from transformers import AutoModelForMaskedLM

import adapters_hub as ah
from adapters_hub.data.rows import Row

PYTHON, pytestmark = engine("KERAS")
READ = """
from adapters_hub.sharing.keras import load_keras
ids = {name: array.astype("int32") for name, array in given.items()}
result = load_keras(folder).predict(ids, verbose=0)
"""


def in_keras(backend, folder, inputs, tmp_path):
    """Logits of a folder in KerasHub; ``inputs`` as the tokenizer gives them."""
    given = {
        "token_ids": inputs["input_ids"].numpy(),
        "padding_mask": inputs["attention_mask"].numpy(),
    }
    if "token_type_ids" in inputs:
        given["segment_ids"] = inputs["token_type_ids"].numpy()
    return run(PYTHON, READ, folder, tmp_path, given, KERAS_BACKEND=backend)


@pytest.fixture
def xlm_roberta(tmp_path):
    """A folder of a tiny XLM-R whose padding token and epsilon are those of the real ones."""
    config = tiny_config("xlm-roberta")
    config.pad_token_id, config.layer_norm_eps = 1, 1e-5
    torch.manual_seed(0)
    folder = tmp_path / "xlm-roberta"
    model = AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():  # away from zero, so that rows differ
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_bert_classifies_the_same_in_keras(tiny, lora_folder, tmp_path, inputs, backend):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("bert", "cls", labels=3), name="cls")
    model = ah.load_backbone(str(tiny("bert")), library=library)
    folder = model.export("cls", tmp_path / "out", engine="keras")
    given = {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}
    same_in_keras(backend, folder, model.merge("cls"), given, tmp_path)


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_xlm_roberta_classifies_the_same_in_keras(xlm_roberta, tmp_path, inputs, backend):
    rows = [Row(text, label=str(n % 2)) for n, text in enumerate(TEXTS * 4)]
    model = ah.load_backbone(str(xlm_roberta), library=tmp_path / "library")
    ah.train(
        model, {"train": rows, "dev": rows}, domain="hotel", steps=4, rank=4, learning_rate=1e-2,
        over=("none",), run_folder=str(tmp_path / "runs"),
    )  # fmt: skip
    folder = model.export("hotel", tmp_path / "out", engine="keras")
    padded = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 1)
    same_in_keras(backend, folder, model.merge("hotel"), {**inputs, "input_ids": padded}, tmp_path)


def same_in_keras(backend, folder, plain, inputs, tmp_path):
    with torch.no_grad():
        want = plain(**inputs).logits
    got = in_keras(backend, folder, inputs, tmp_path)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert want.std(0).max() > 1e-3


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_a_language_model_says_the_same_in_keras(
    tiny, lora_folder, tmp_path, inputs, kind, backend
):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder(kind, "one"), name="one")
    model = ah.load_backbone(str(tiny(kind)), library=library)
    folder = model.export("one", tmp_path / "out", engine="keras")
    with torch.no_grad():
        want = model(**inputs, adapters="one").logits
        bare = model(**inputs, adapters=None).logits
    got = in_keras(backend, folder, inputs, tmp_path)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)
    assert (bare - want).abs().max() > 1e-2
