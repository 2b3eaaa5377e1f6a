"""mlx-lm reads what was exported for it.

It wants an environment of its own, whose Python is named by $ADAPTERS_HUB_TEST_MLX:

    python -m venv mlx && mlx/bin/pip install mlx-cpu mlx-lm   # mlx instead of mlx-cpu on a Mac
"""

import pytest
import torch
from helpers.other_python import engine, run

import adapters_hub as ah

PYTHON, pytestmark = engine("MLX")
READ = """
import os
import mlx.core as mx
from mlx_lm import load
model, _ = load(os.environ["BASE"], adapter_path=folder)
result = np.array(model(mx.array(given["input_ids"])).astype(mx.float32))
"""


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_mlx_lm_says_the_same(tiny, lora_folder, tmp_path, inputs, kind):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder(kind, "one", use_rslora=True, rank_pattern={"q_proj": 2}), name="one")
    library.add(lora_folder(kind, "two", r=3, target_modules=["down_proj", "q_proj"]), name="two")
    model = ah.load_backbone(str(tiny(kind)), library=library)
    blend = "one - 0.5*two"
    folder = model.export(blend, tmp_path / "out", engine="mlx")
    ids = {"input_ids": inputs["input_ids"][:1]}  # of which no token is padding
    with torch.no_grad():
        want = model(**ids, adapters=blend).logits
        bare = model(**ids, adapters=None).logits
    got = run(PYTHON, READ, folder, tmp_path, {"input_ids": ids["input_ids"].numpy()},
              BASE=str(tiny(kind)))  # fmt: skip
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)
    assert (bare - want).abs().max() > 1e-2
