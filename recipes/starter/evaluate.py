"""Measure bits per byte on the held-out test text, against `xz -9e` and a 5-gram model.

    python recipes/starter/evaluate.py --model adapters_hub/starter --data BUILD_FOLDER \
        --run BUILD_FOLDER/run

The model predicts every token of a line and its end, which stands for the line break, given
`<s> <xx>`. Only the bytes of the text are counted, so tokenizers can be compared. xz has to
describe the same file on its own: it knows nothing of the language beforehand. The 5-gram model
(ngram.py, needs --run) predicts the same tokens and has read the very batches that the run trained
on; --steps gives it more of them, for the tokens of an earlier round.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from mixture import Mixture
from ngram import KneserNey
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def read_lines(path: Path, limit: int) -> list[str]:
    """Return texts, evenly spread over the file, with at most `limit` bytes in all."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    size = sum(len(text.encode()) + 1 for text in texts)
    return texts[:: max(1, math.ceil(size / limit))]


def xz_bits_per_byte(data: bytes) -> float:
    """Return the size `xz -9e` compresses to, in bits per byte."""
    packed = subprocess.run(
        ["xz", "-9e", "--format=raw", "--stdout"], input=data, capture_output=True, check=True
    ).stdout
    return 8 * len(packed) / len(data)


@torch.inference_mode()
def model_bits(model: PreTrainedModel, rows: list[list[int]], prefix: int, pad: int) -> float:
    """Return the total code length in bits of all tokens after the first `prefix` ones."""
    bits = 0.0
    rows = sorted(rows, key=len)
    for begin in range(0, len(rows), 32):
        part = rows[begin : begin + 32]
        width = max(map(len, part))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in part], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        logits = model(input_ids=ids, attention_mask=mask.to(ids.device)).logits[:, prefix - 1 : -1]
        goal = ids[:, prefix:].masked_fill(mask[:, prefix:].to(ids.device) == 0, -100)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), goal.flatten(), ignore_index=-100, reduction="sum"
        )
        bits += loss.item() / math.log(2)
    return bits


def five_gram(run: Path, tokenizer: PreTrainedTokenizerBase, steps: int | None) -> KneserNey:
    """The 5-gram model of the batches that a pretraining run drew."""
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    mixture = Mixture(Namespace(**state["settings"]), tokenizer, "train")
    batches = [mixture.batch(step).numpy().ravel() for step in range(steps or state["step"])]
    return KneserNey(np.concatenate(batches), len(tokenizer))


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder written by corpus.py")
    parser.add_argument("--run", type=Path, help="pretraining run, for the 5-gram model")
    parser.add_argument("--steps", type=int, help="batches the 5-gram model reads [the run's]")
    parser.add_argument("--languages", nargs="*", help="default: all with test text")
    parser.add_argument("--limit", type=int, default=100_000, help="bytes of text per language")
    parser.add_argument("--no-language-token", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tests = {path.name.split(".")[0]: path for path in (options.data / "mono").glob("*.test.jsonl")}
    ngrams = five_gram(options.run, tokenizer, options.steps) if options.run else None
    results = {}
    print(f"{'language':9}{'bytes':>9}{'bytes/token':>13}{'model':>8}{'xz -9e':>8}{'5-gram':>8}")
    for language in options.languages or sorted(tests):
        texts = read_lines(tests[language], options.limit)
        data = "".join(text + "\n" for text in texts).encode()
        head = [tokenizer.bos_token_id]
        if not options.no_language_token:
            head.append(tokenizer.convert_tokens_to_ids(f"<{language}>"))
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [[*head, *ids, tokenizer.eos_token_id] for ids in encoded]
        bits = model_bits(model, rows, len(head), tokenizer.pad_token_id)
        results[language] = {
            "bytes": len(data),
            "bytes_per_token": round(len(data) / sum(map(len, rows)), 2),
            "model": round(bits / len(data), 3),
            "xz": round(xz_bits_per_byte(data), 3),
        }
        if ngrams:
            told = sum(ngrams.bits(np.array(row), len(head)) for row in rows)
            results[language]["five_gram"] = round(told / len(data), 3)
        row = results[language]
        print(
            f"{language:9}{row['bytes']:9}{row['bytes_per_token']:13}{row['model']:8}{row['xz']:8}"
            f"{row.get('five_gram', '-'):>8}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
