"""Cross-lingual sentence retrieval: does a sentence find its translation among all of them?

    python benchmarks/retrieval.py --data my/parallel --languages de fr es it pt pl ru zh ja tr vi

``--data`` is a folder of ``<language>.txt``, one sentence a line, line i the same in every file.
For each language, accuracy@1 is the share of its sentences whose nearest English sentence, by
cosine, is their translation; the mean of both directions.

Rows: ``--backbone`` as it is (mean of a layer's hidden states over the tokens, each language's mean
vector taken away); the same shape with random weights; TF-IDF of character 2- to 5-grams inside
words. A layer is chosen for each backbone on the first tenth of the lines, and those are not among
the queries that count; every line is a candidate.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from report import report
from torch import Tensor
from torch.nn.functional import normalize

import adapters_hub as ah
from adapters_hub.metrics.tables import markdown


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, texts: list[str], batch_size: int = 64) -> Tensor:
    """Mean over the tokens of every layer's hidden states: (layers, texts, hidden)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in numbers],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=256,
            return_tensors="pt",
        )
        states = model(**batch, output_hidden_states=True).hidden_states[1:]
        mask = batch["attention_mask"][None, :, :, None]
        mean = (torch.stack(states) * mask).sum(2) / mask.sum(2)
        for place, number in enumerate(numbers):
            found[number] = mean[:, place].float()
    return torch.stack(found, dim=1)


def accuracy(one: Tensor, two: Tensor, queries: slice) -> float:
    """Accuracy@1 of row i of ``one`` (n, hidden) finding row i of ``two``; mean of both ways."""
    one, two = (normalize(x - x.mean(0), dim=-1) for x in (one, two))
    right = torch.arange(len(one))[queries]
    ways = [(a[queries] @ b.T).argmax(1) == right for a, b in ((one, two), (two, one))]
    return torch.cat(ways).float().mean().item()


def by_backbone(
    model: Any, tokenizer: Any, lines: dict[str, list[str]], pivot: str
) -> tuple[int, dict[str, float]]:
    """The layer chosen on the first tenth of the lines, and each language's accuracy with it."""
    vectors = {language: embed(model, tokenizer, texts) for language, texts in lines.items()}
    tenth = len(lines[pivot]) // 10
    others = [language for language in lines if language != pivot]

    def mean(layer: int) -> float:
        seen = slice(0, tenth)
        return sum(accuracy(vectors[x][layer], vectors[pivot][layer], seen) for x in others)

    layer = max(range(len(vectors[pivot])), key=mean)
    rest = slice(tenth, None)
    return layer, {x: accuracy(vectors[x][layer], vectors[pivot][layer], rest) for x in others}


def by_tfidf(lines: dict[str, list[str]], pivot: str) -> dict[str, float]:
    """Each language's accuracy by TF-IDF of character n-grams, fitted on all the lines."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tenth = len(lines[pivot]) // 10
    found = {}
    for language in lines:
        if language == pivot:
            continue
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        vectorizer.fit(lines[language] + lines[pivot])
        one, two = (vectorizer.transform(lines[x]) for x in (language, pivot))
        similar = torch.from_numpy((one @ two.T).toarray())
        right = torch.arange(len(lines[pivot]))[tenth:]
        ways = [similar[tenth:].argmax(1) == right, similar.T[tenth:].argmax(1) == right]
        found[language] = torch.cat(ways).float().mean().item()
    return found


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="starter", help="starter, a folder or a hub id")
    parser.add_argument("--languages", nargs="+", help="default: all of the folder")
    parser.add_argument("--pivot", default="en")
    parser.add_argument("--limit", type=int, help="only so many lines")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    names = options.languages or sorted(path.stem for path in options.data.glob("*.txt"))
    names = [options.pivot, *(name for name in names if name != options.pivot)]
    lines = {
        name: (options.data / f"{name}.txt").read_text("utf-8").splitlines()[: options.limit]
        for name in names
    }
    backbone = ah.load_backbone(options.backbone).backbone
    transformers.set_seed(options.seed)
    random = transformers.AutoModel.from_config(backbone.config).float().eval()
    layer, own = by_backbone(backbone.base, backbone.tokenizer, lines, options.pivot)
    layer_random, other = by_backbone(random, backbone.tokenizer, lines, options.pivot)
    results = {
        f"{options.backbone}, layer {layer + 1}": own,
        f"random weights, layer {layer_random + 1}": other,
        "TF-IDF, character n-grams": by_tfidf(lines, options.pivot),
    }
    head = ["", "mean", *names[1:]]
    rows = [
        [
            name,
            f"{sum(scores.values()) / len(scores):.3f}",
            *(f"{scores[x]:.3f}" for x in names[1:]),
        ]
        for name, scores in results.items()
    ]
    count = len(lines[options.pivot])
    title = f"Retrieval of translations, accuracy@1 among {count} sentences, with {options.pivot}"
    report(title, markdown(head, rows), {"results": results}, options.json)


if __name__ == "__main__":
    main()
