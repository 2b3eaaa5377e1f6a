"""Write the model folder that ships with the package from a pretraining run.

    python recipes/starter/publish.py --run BUILD_FOLDER/run --data BUILD_FOLDER \
        --tokenizer BUILD_FOLDER/tokenizer --out adapters_hub/starter

The weights are stored in bf16. The model card and the picture in it are written from the run's
curve (and that of the rounds before it), the corpus's sources.json and, where --scores names one,
the table evaluate.py saved.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from clean import KEPT_OUT, LANGUAGES, PRETRAIN
from curve import CURVE, draw, join
from transformers import AutoTokenizer, Qwen3ForCausalLM

CARD = """---
language: [{languages}]
license: other
license_name: mixed-free-licences
library_name: transformers
pipeline_tag: text-generation
tags: [multilingual, causal-lm, lora, starter]
---

# Starter backbone

A small multilingual causal language model, pretrained from nothing, that comes with the package so
that language and domain adapters can be trained, combined and tested without a download. It is
a real model of its training text, but a tiny one; read the limits below.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("adapters_hub/starter")
model = AutoModelForCausalLM.from_pretrained("adapters_hub/starter")
batch = tokenizer("<de>Dieses Paket", return_tensors="pt")
print(tokenizer.decode(model.generate(**batch, max_new_tokens=30)[0]))
```

- **Shape**: Qwen3, {parameters:.2f} M parameters ({embedding:.2f} M of them the tied embedding),
  hidden size {hidden}, {layers} layers, {heads} heads of {head_dim} ({kv_heads} for keys and
  values), feed-forward {intermediate}, {positions} positions, stored in bf16.
- **Tokenizer**: byte-level BPE, {vocabulary} tokens, digits one by one, no unknown token. `<s>` is
  put in front. `<pad>`, `<s>`, `</s>`, one token per language and `<reserved0>` to `<reserved9>`.
- **Pretraining languages** ({n_pretrain}): {pretrain}.
- **Kept-out languages**: {kept_out}. They have a language token (untrained) but no text of theirs
  was used, for the tokenizer either: they are for training adapters on.
- **Forms of text seen**: `<s> <xx> text </s>` and `<s> text </s>`, half of the time each, and for
  about {parallel:.0%} of the tokens pairs `<s> <en> sentence <xx> translation </s>`, either way.
  The blanks are for reading only: text follows its language token directly.

## Training

Text of Debian packages: translated package descriptions, manual pages, handbooks and interface
messages. {segments:,} segments were kept in all after cleaning and removing copies, of which about
1% each is held out for development and test, by package and by message, so that translations of
one text are in the same part. Languages are drawn with p ∝ n^{alpha}.

{tokens:,} tokens in {steps:,} steps: {rounds}.
Muon for the matrices in the layers, AdamW for the rest; constant rate, then linear to zero, in
each round. That is {passes:.2f} passes over the {available:.0f} M tokens available: the model is
undertrained.

![Training and held-out loss over tokens](curve.png)

| tokens | training loss | held-out loss |
|-------:|--------------:|--------------:|
{curve}

Loss is in nats per token; where a new round begins its rate is high again and the loss rises.

## Quality

{quality}

## Limits

- It completes short technical phrases; it knows no facts, follows no instructions, does not
  reason, and is not useful as an assistant. Translations it writes are not reliable.
- Its world is software: package descriptions, manuals and interface texts, a little game fiction.
  Everyday language, news or speech are nearly absent. Many segments are short.
- It saw packed windows of {length} tokens; longer inputs are accepted but were never trained.
- Chinese is simplified only; Portuguese mixes both standards. Some lines in the wrong language
  get past the filter.
- Nothing was done against bias or offensive wording in the sources.

## Sources and licences

All text is from Debian's `main` archive, that is, under free licences. Families named in each
package's copyright file (a package often has several; versions are in the recipe's `sources.json`).
What such licences mean for weights trained on the text is not settled; the list is here so that
you can judge for your use.

| licences | packages |
|----------|----------|
{sources}
"""


def quality_table(scores: dict[str, dict[str, float]]) -> str:
    """Return the section with bits per byte, pretraining languages first."""
    if not scores:
        return "An early checkpoint: not measured yet."
    lines = [
        "Bits per byte on held-out test text (lower is better), next to `xz -9e` on the same text",
        "and a 5-gram model (interpolated, modified Kneser-Ney) over the same tokens, which read",
        "as many of them as the starter, drawn in the same way. xz starts from nothing on each of",
        "these small files: it tells how difficult the text is. The starter never saw text or",
        "tokens of the kept-out languages; that is what language adapters are for.",
        "",
        "| language | test bytes | bytes per token | starter | xz -9e | 5-gram |",
        "|----------|-----------:|----------------:|--------:|-------:|-------:|",
    ]
    if not all("five_gram" in row for row in scores.values()):
        raise SystemExit("the scores have no 5-gram model: give evaluate.py --run")
    keys = ("model", "xz", "five_gram")
    for language in LANGUAGES:
        row, name = scores[language], language + (" (kept out)" if language in KEPT_OUT else "")
        lines.append(f"| {name} | {row['bytes']} | {row['bytes_per_token']} | "
                     f"{' | '.join(format(row[key], '.2f') for key in keys)} |")  # fmt: skip
    for name, group in (("mean, pretraining", PRETRAIN), ("mean, kept out", KEPT_OUT)):
        means = [sum(scores[x][key] for x in group) / len(group) for key in keys]
        lines.append(f"| {name} | | | {' | '.join(format(mean, '.2f') for mean in means)} |")
    return "\n".join(lines)


def source_rows(sources: list[dict]) -> str:
    """Return table rows: packages grouped by their set of licences."""
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in sources:
        groups[", ".join(sorted(entry["licences"]))].append(entry["package"])
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return "\n".join(f"| {names} | {', '.join(sorted(packages))} |" for names, packages in ordered)


def main() -> None:
    """Write weights, configuration, tokenizer and card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("run", "data", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scores", type=Path, help="JSON written by evaluate.py")
    parser.add_argument("--note", default="", help="a remark on the scores, for the card")
    parser.add_argument("--machine", default="a CPU with two cores", help="for the card")
    options = parser.parse_args()
    state = json.loads((options.run / "checkpoint" / "state.json").read_text())
    settings = state["settings"]
    if settings["start"] and options.out.resolve() == Path(settings["start"]).resolve():
        raise SystemExit("--out is what the run started from, whose curve would be lost")
    options.out.mkdir(parents=True, exist_ok=True)
    model = Qwen3ForCausalLM.from_pretrained(options.run / "checkpoint", dtype=torch.bfloat16)
    model.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)  # the library leaves it private
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / name, options.out / name)

    config = model.config
    rounds = join(options.run, options.machine)
    (options.out / CURVE).write_text(json.dumps(rounds, indent=1) + "\n")
    draw(rounds, options.out / "curve.png")
    sources = json.loads((options.data / "sources.json").read_text())
    ids = (options.run / "tokens").glob("*.train.text.ids.npy")
    available = sum(path.stat().st_size / 2 for path in ids)
    tokens, curve = sum(part["tokens"] for part in rounds), []
    for number, part in enumerate(rounds):
        before = sum(earlier["tokens"] for earlier in rounds[:number])
        points = part["points"]
        chosen = points[:: max(1, len(points) // 8)]
        chosen += [] if chosen[-1] is points[-1] else points[-1:]
        curve += [f"| {before + p['tokens']:,} | {p['loss']:.3f} | {p['dev_loss']:.3f} |"
                  for p in chosen]  # fmt: skip
    card = CARD.format(
        languages=", ".join(f'"{lang}"' for lang in LANGUAGES), pretrain=", ".join(PRETRAIN),
        n_pretrain=len(PRETRAIN), kept_out=", ".join(KEPT_OUT),
        parameters=model.num_parameters() / 1e6,
        embedding=model.get_input_embeddings().weight.numel() / 1e6, hidden=config.hidden_size,
        layers=config.num_hidden_layers, heads=config.num_attention_heads, head_dim=config.head_dim,
        kv_heads=config.num_key_value_heads, intermediate=config.intermediate_size,
        positions=config.max_position_embeddings, vocabulary=len(tokenizer),
        parallel=settings["parallel"], alpha=settings["alpha"], length=settings["length"],
        segments=sum(entry["segments"] for entry in sources), tokens=tokens,
        steps=sum(part["steps"] for part in rounds), available=available / 1e6,
        rounds=", then ".join(f"{part['minutes']} minutes on {part['machine']}" for part in rounds),
        passes=tokens / available, sources=source_rows(sources), curve="\n".join(curve),
        quality=quality_table(json.loads(options.scores.read_text()) if options.scores else {})
        + (f"\n\n{options.note}" if options.note else ""),
    )  # fmt: skip
    (options.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
