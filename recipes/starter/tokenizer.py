"""Train the byte-level BPE tokenizer of the starter backbone.

    python recipes/starter/tokenizer.py --data BUILD_FOLDER --out BUILD_FOLDER/tokenizer

The merges are learnt from the pretraining languages only, drawn with p ∝ n^alpha so that small
languages get their share. The kept-out languages still have a language token, since adapters for
them are trained later and must not resize the embedding.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from clean import LANGUAGES, PRETRAIN
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

BASE = ["<pad>", "<s>", "</s>"]
LANGUAGE_TOKENS = [f"<{language}>" for language in LANGUAGES]
RESERVED = [f"<reserved{index}>" for index in range(10)]


def read_texts(data: Path, language: str, split: str = "train") -> list[str]:
    """Return the texts of one language and split."""
    path = data / "mono" / f"{language}.{split}.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def mixture(data: Path, alpha: float, megabytes: float) -> Iterator[str]:
    """Yield training text of all languages, each with a share of its size to the power alpha."""
    texts = {language: read_texts(data, language) for language in PRETRAIN}
    sizes = {language: sum(len(t.encode()) for t in texts[language]) for language in PRETRAIN}
    total = sum(size**alpha for size in sizes.values())
    for language in PRETRAIN:
        budget = megabytes * 1e6 * sizes[language] ** alpha / total
        random.Random(0).shuffle(texts[language])
        for text in texts[language]:
            if budget <= 0:
                break
            budget -= len(text.encode())
            yield text


def build(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the BPE merges and wrap them with the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*BASE, *LANGUAGE_TOKENS, *RESERVED],
        # All 256 bytes: nothing is ever unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[*LANGUAGE_TOKENS, *RESERVED],
        padding_side="right",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Train, save, and check that the saved folder gives every byte back."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder written by corpus.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=10_240)
    parser.add_argument("--alpha", type=float, default=0.4)
    parser.add_argument("--megabytes", type=float, default=24.0)
    options = parser.parse_args()
    built = build(mixture(options.data, options.alpha, options.megabytes), options.vocabulary)
    built.save_pretrained(options.out)
    # Names that transformers 4 knows too.
    path = options.out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(options.out)
    for language in LANGUAGES:
        sample = read_texts(options.data, language, "test")[:500]
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        if tokenizer.batch_decode(ids) != sample:
            raise ValueError(f"the tokenizer does not give {language} text back")
        size = sum(len(text.encode()) for text in sample) / sum(map(len, ids))
        print(f"{language}: {size:.2f} bytes per token")


if __name__ == "__main__":
    main()
