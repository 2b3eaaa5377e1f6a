"""Rows of every task, and what augmentation of them works with."""

import json

from conftest import TEXTS

import adapters_hub as ah
from adapters_hub.data.rows import Row
from helpers.training import settings

WORDS = {"the": "le", "room": "chambre", "staff": "personnel", "view": "vue", "again": "encore"}


def rows_of(task):
    texts = [f"{text} {n}" for n, text in enumerate(TEXTS[:4] * 3)]
    fields = {
        "classification": [{} for _ in texts],
        "language-modeling": [{} for _ in texts],
        "retrieval": [{"positive": f"about {n} {text}"} for n, text in enumerate(texts)],
        "matching": [{"positive": f"rum {n}"} for n in range(12)],
        "generation": [{"target": f"it was {n}"} for n in range(12)],
        "translation": [{"target": f"es war {n}", "target_language": "de"} for n in range(12)],
        "question-answering": [
            {"question": "which?", "answers": {"text": [text.split()[1]],
             "answer_start": [text.index(text.split()[1])]}} for text in texts
        ],
        "token-classification": [
            {"words": text.split(), "tags": ["B-X" if w[0] in "rsv" else "O" for w in text.split()]}
            for text in texts
        ],
    }[task]  # fmt: skip
    label = {"classification": ["good", "bad", "fine"]}.get(task, [None])
    return [
        Row(text, label[n % len(label)], "en", key=f"None/{n}", where=f"rows:{n}", fields=some)
        for n, (text, some) in enumerate(zip(texts, fields, strict=True))
    ]


def write_dictionary(tmp_path):
    path = tmp_path / "words.tsv"
    lines = [f"{word}\t{other}\tfr" for word, other in WORDS.items()]
    path.write_text("\n".join(["word\ttranslation\tlanguage", *lines]) + "\n", encoding="utf-8")
    return str(path)


def write_translations(tmp_path):
    folder = tmp_path / "translations"
    folder.mkdir()
    lines = [{"id": str(n), "text": f"la chambre {n}", "language": "fr"} for n in range(12)]
    path = folder / "fr.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return str(folder)


def load(folder, tmp_path):
    return ah.load_backbone(str(folder), library=tmp_path / "library")


def of(task, **values):
    return settings(task=task, **values)
