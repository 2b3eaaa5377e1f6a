"""Write the cleaned, split and deduplicated text: monolingual, parallel, and adapter samples."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from clean import KEPT_OUT, LANGUAGES, Deduplicator, LanguageCheck, accept, segments

SPLITS = ("test", "dev", "train")  # the order in which a repeated text finds its home
ADAPTER_LANGUAGES = [*KEPT_OUT, "de", "fr", "es", "ru", "zh", "en"]
ADAPTER_DOMAINS = ["games", "science", "story"]  # enough held-out text each
ADAPTER_ROWS = {"train": 20_000, "dev": 500, "test": 500}
# The versions of an item: language -> (blocks, domain, package).
Versions = tuple[list[str], str, str]
Items = Mapping[str, Mapping[str, Versions]]


def split_of(item: str) -> str:
    """Return the split of an item: about 1% test, 1% dev.

    All translations of an item share it, and so do all binary packages of a source package,
    whose descriptions repeat each other.
    """
    key = item.rsplit(":", 1)[0] if item.startswith("desc:") else item
    slot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "test" if slot == 0 else "dev" if slot == 1 else "train"


def dump(path: Path, rows: Iterable[dict[str, str]]) -> int:
    """Write rows as JSON lines and return their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_mono(items: Items, folder: Path) -> Counter[str]:
    """Write mono/<lang>.<split>.jsonl and return the number of segments per package."""
    shutil.rmtree(folder, ignore_errors=True)
    rows: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for item, versions in items.items():
        split, message = split_of(item), item.startswith("mo:")
        for language, (blocks, domain, package) in versions.items():
            for block in blocks:
                for piece in segments(block, language):
                    text = accept(piece, language, message=message)
                    if text:
                        rows[language].append((split, text, domain, package))
    chooser = random.Random(0)
    check = LanguageCheck({
        language: [row[1] for row in chooser.sample(rows[language], min(30_000, len(candidates)))]
        for language, candidates in rows.items()
    })  # fmt: skip
    used: Counter[str] = Counter()
    for language in LANGUAGES:
        candidates = rows.pop(language)
        wrong = check.wrong([row[1] for row in candidates], language)
        kept = [row for row, bad in zip(candidates, wrong, strict=True) if not bad]
        new = Deduplicator(language).is_new
        counts = {}
        for split in SPLITS:
            unique = [row for row in kept if row[0] == split and new(row[1])]
            used.update(row[3] for row in unique)
            counts[split] = dump(folder / f"{language}.{split}.jsonl", (
                {"text": text, "language": language, "domain": domain, "source": package}
                for _, text, domain, package in unique
            ))  # fmt: skip
            counts[f"{split}_mb"] = round(sum(len(row[1].encode()) for row in unique) / 1e6, 2)
        print(language, len(candidates), f"wrong language: {wrong.mean():.1%}", counts, flush=True)
    return used


def held_out(mono: Path, language: str) -> set[str]:
    """Return the texts of a language that are kept for development and test."""
    return {
        json.loads(line)["text"]
        for split in ("dev", "test")
        for line in (mono / f"{language}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    }


def write_parallel(items: Items, folder: Path, mono: Path) -> None:
    """Write parallel/en-<lang>.<split>.jsonl from blocks that align by position.

    Two items can share a text, so a training pair must not hold a text that `mono` holds out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pairs: dict[str, list[tuple[str, str, str, str, str]]] = defaultdict(list)
    for item, versions in items.items():
        if "en" not in versions:
            continue
        split, message = split_of(item), item.startswith("mo:")
        english = versions["en"][0]
        for language, (blocks, domain, package) in versions.items():
            if language == "en" or len(blocks) != len(english):
                continue
            for left, right in zip(english, blocks, strict=True):
                source = accept(left, "en", message=message)
                target = accept(right, language, message=message)
                if source and target and source != target and well_matched(source, target):
                    pairs[language].append((split, source, target, domain, package))
    english_out = held_out(mono, "en")
    for language, aligned in sorted(pairs.items()):
        new, target_out = Deduplicator(language).is_new, held_out(mono, language)
        counts = {
            split: dump(folder / f"en-{language}.{split}.jsonl", (
                {"source": source, "target": target, "target_language": language,
                 "domain": domain, "package": package}
                for part, source, target, domain, package in aligned
                if part == split
                and new(target)
                and (split != "train" or (source not in english_out and target not in target_out))
            ))
            for split in SPLITS
        }  # fmt: skip
        print(f"en-{language}", counts, flush=True)


def well_matched(source: str, target: str) -> bool:
    """Tell whether a pair can be a translation by its length in bytes, and is short enough."""
    ratio = len(target.encode()) / len(source.encode())
    return 0.5 < ratio < 3.0 and len(source) <= 300 and len(target) <= 330


def write_samples(mono: Path, languages: Path, domains: Path) -> None:
    """Write samples of decent single segments for adapters, drawn at random.

    One file a language and split, of any domain; one a domain and split, of all those languages.
    """
    shutil.rmtree(languages, ignore_errors=True)
    shutil.rmtree(domains, ignore_errors=True)
    for split, limit in ADAPTER_ROWS.items():
        of_domain: dict[str, list[dict[str, str]]] = {domain: [] for domain in ADAPTER_DOMAINS}
        for language in ADAPTER_LANGUAGES:
            lines = (mono / f"{language}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [
                {key: row[key] for key in ("text", "language", "domain")}
                for row in map(json.loads, lines)
                if 30 <= len(row["text"]) <= 400
            ]
            for row in rows:
                if row["domain"] in of_domain:
                    of_domain[row["domain"]].append(row)
            dump(languages / f"{language}.{split}.jsonl", _draw(rows, limit))
        for domain, rows in of_domain.items():
            dump(domains / f"{domain}.{split}.jsonl", _draw(rows, limit))


def _draw(rows: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    return random.Random(0).sample(rows, min(limit, len(rows)))
