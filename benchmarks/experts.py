"""What adapters on experts cost in a forward, beside PEFT's ``target_parameters`` and no adapter.

    python benchmarks/experts.py
    python benchmarks/experts.py --layers 4 --rounds 1 --json experts.json

A Qwen3-MoE of random weights (width 128, 128 experts of width 48, 8 a token) with adapters of rank
8 on both stacks of every layer: 256 sites a layer. Rows: 8 × 32 tokens at once, or 8 × 1.

- ``PEFT``, ``one blend``: one adapter in all rows; ``2 blends``, ``4 blends``: a mixed batch, of
  which a fourth or a half is bare. Over the bare backbone, medians of the rounds' ratios.
- ``CPU s``: the bare backbone's time.

Beneath it, what making the adapter resident takes. Fairness: all in one process, in turn, CPU time,
float32; PEFT wraps a copy of the same weights.
"""

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from report import report
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig

import adapters_hub as ah
from adapters_hub.library.paths import starter_folder
from adapters_hub.metrics.tables import markdown

TARGETS = ["experts.gate_up_proj", "experts.down_proj"]
MIXES = {"one blend": "a", "2 blends": ["a", None], "4 blends": ["a", "b", "a + b", None]}


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="peft")

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(starter_folder())
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=options.layers, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, moe_intermediate_size=48, num_experts=128,
        num_experts_per_tok=8,
    )  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(r=8, target_modules=[], target_parameters=TARGETS, init_lora_weights=False)
    peft: Any = None
    with tempfile.TemporaryDirectory() as folder:
        library = ah.Library(Path(folder) / "library")
        for name in ("b", "a"):  # the last one stays
            peft = get_peft_model(copy.deepcopy(backbone), lora).eval()
            peft.save_pretrained(Path(folder) / name)
            library.add(Path(folder) / name, name=name)
        model = ah.load_backbone(
            backbone, tokenizer=tokenizer, library=library, check_backbone=False
        )
        resident = timed(lambda: model.use("a + b"))

        rows, data = [], {}
        for tokens in (32, 1):
            ids = torch.randint(5, len(tokenizer), (8, tokens))
            ways: dict[str, Callable[[], Any]] = {
                "bare": lambda ids=ids: model(input_ids=ids, adapters=None),
                "PEFT": lambda ids=ids: peft(input_ids=ids),
            }
            for name, mix in MIXES.items():
                blends = [mix[n % len(mix)] for n in range(8)] if isinstance(mix, list) else mix
                ways[name] = lambda ids=ids, blends=blends: model(input_ids=ids, adapters=blends)
            with torch.inference_mode():
                times: dict[str, list[float]] = {name: [] for name in ways}
                for number in range(options.rounds + 1):
                    for name, work in ways.items():
                        seconds = timed(work)
                        if number:  # the first one stacks
                            times[name].append(seconds)
            bare = times.pop("bare")
            ratios = {
                name: statistics.median(a / b for a, b in zip(of_way, bare, strict=True))
                for name, of_way in times.items()
            }
            shown = [f"{ratio:.2f}" for ratio in ratios.values()]
            rows.append([f"8 × {tokens}", f"{statistics.median(bare):.3f}", *shown])
            data[f"8x{tokens}"] = {"bare_s": bare, **times}
    sites = len(model.backbone.shapes)
    title = f"Adapters on experts, {options.layers} layers, {options.rounds} rounds"
    table = markdown(["tokens", "CPU s", "PEFT", *MIXES], rows)
    table += f"\n\ntwo adapters resident, of {sites} sites: {resident:.2f} CPU s"
    report(title, table, {"resident_s": resident, "sites": sites, **data}, options.json)


if __name__ == "__main__":
    main()
