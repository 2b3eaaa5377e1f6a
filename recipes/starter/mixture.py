"""Packed batches of monolingual and parallel documents, drawn by language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from clean import PRETRAIN
from transformers import PreTrainedTokenizerBase


class MixtureSettings(Protocol):
    """The part of the pretraining settings that decides the data."""

    data: str
    out: str
    length: int
    batch: int
    alpha: float
    parallel: float
    seed: int


class Texts:
    """Token ids of many texts in one array, kept on disk between starts."""

    def __init__(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self.ids, self.ends = ids, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    @classmethod
    def load(cls, tokenizer: PreTrainedTokenizerBase, source: Path, key: str, cache: Path) -> Texts:
        """Tokenize one column of a JSONL file, or read what an earlier start left."""
        stem = cache / f"{source.stem}.{key}"
        names = (stem.with_suffix(f".{key}.ids.npy"), stem.with_suffix(f".{key}.ends.npy"))
        if not all(name.exists() for name in names):
            lines = source.read_text(encoding="utf-8").splitlines()
            parts, sizes = [np.zeros(0, dtype=np.uint16)], []
            for begin in range(0, len(lines), 20_000):
                texts = [json.loads(line)[key] for line in lines[begin : begin + 20_000]]
                encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
                sizes += [len(ids) for ids in encoded["input_ids"]]
                parts += [np.array(ids, dtype=np.uint16) for ids in encoded["input_ids"]]
            cache.mkdir(parents=True, exist_ok=True)
            for name, array in zip(names, (np.concatenate(parts), np.cumsum(sizes)), strict=True):
                np.save(name, array)
        return cls(*(np.load(name) for name in names))


class Mixture:
    """Draw packed batches; batch number `step` is always the same."""

    def __init__(
        self, settings: MixtureSettings, tokenizer: PreTrainedTokenizerBase, split: str
    ) -> None:
        self.settings = settings
        data, cache = Path(settings.data), Path(settings.out) / "tokens"
        self.first, self.last = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.tokens = {lang: tokenizer.convert_tokens_to_ids(f"<{lang}>") for lang in PRETRAIN}
        self.mono = {
            lang: Texts.load(tokenizer, data / "mono" / f"{lang}.{split}.jsonl", "text", cache)
            for lang in PRETRAIN
        }
        self.pairs = {
            lang: tuple(
                Texts.load(tokenizer, data / "parallel" / f"en-{lang}.{split}.jsonl", key, cache)
                for key in ("source", "target")
            )
            for lang in PRETRAIN
            if lang != "en"
        }
        sizes = np.array([len(texts.ids) for texts in self.mono.values()]) ** settings.alpha
        self.shares = sizes / sizes.sum()
        pair_sizes = np.array([len(pair[1].ids) for pair in self.pairs.values()]) ** settings.alpha
        self.pair_shares = pair_sizes / pair_sizes.sum()
        # Shares are counted in tokens, and a pair is longer than a single text.
        lengths = [len(texts.ids) / len(texts) + 2.5 for texts in self.mono.values()]
        pair_lengths = [(len(a.ids) + len(b.ids)) / len(a) + 4 for a, b in self.pairs.values()]
        ratio = float(self.pair_shares @ pair_lengths) / float(self.shares @ lengths)
        share = settings.parallel
        self.pair_chance = share / (share + (1 - share) * ratio)

    def document(self, random: np.random.Generator) -> list[np.ndarray | list[int]]:
        """Draw one document."""
        if random.random() < self.pair_chance:
            lang = list(self.pairs)[random.choice(len(self.pairs), p=self.pair_shares)]
            sources, targets = self.pairs[lang]
            index = int(random.integers(len(sources)))
            sides = [("en", sources[index]), (lang, targets[index])]
            (one, left), (two, right) = sides if random.random() < 0.5 else sides[::-1]
            return [[self.first, self.tokens[one]], left, [self.tokens[two]], right, [self.last]]
        lang = PRETRAIN[random.choice(len(PRETRAIN), p=self.shares)]
        text = self.mono[lang][int(random.integers(len(self.mono[lang])))]
        head = [self.first, self.tokens[lang]] if random.random() < 0.5 else [self.first]
        return [head, text, [self.last]]

    def batch(self, step: int, worker: int = 0) -> torch.Tensor:
        """Return (batch, length + 1) token ids; a document may go on in the next row."""
        random = np.random.default_rng((self.settings.seed, step, worker))
        need = self.settings.batch * (self.settings.length + 1)
        parts: list[np.ndarray | list[int]] = []
        have = 0
        while have < need:
            document = self.document(random)
            parts += document
            have += sum(map(len, document))
        flat = np.concatenate(parts).astype(np.int64)[:need]
        return torch.from_numpy(flat.reshape(self.settings.batch, -1))
