"""What regularisation and augmentation bring in languages that were not trained on.

    python benchmarks/transfer.py --backbone my/encoder --data my/topics --parallel my/parallel
    python benchmarks/transfer.py ... --ways none codeswitch l2 --test ha yo tr --rows 200

A classifier is learnt from rows in one language, each way at equal steps, and measured on test rows
in others: macro-F1, and nats a row (the surprise at the right label). Differences from "none" are
those of the mean over the other languages, with a 95% interval by a paired bootstrap over seeds and
items, which are taken for the same in all languages (percentiles of 2,000 draws). CPU seconds are
those of training over those of "none". What was measured is kept in --results, a line a way, seed
and language, and is not measured again.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from report import report

import adapters_hub as ah
from adapters_hub.data.reading import read_data, select
from adapters_hub.metrics.tables import markdown

NONE = "none"
WAYS: dict[str, dict[str, object]] = {
    NONE: {},
    "codeswitch": {"augment": {"codeswitch": 0.5}},
    "codeswitch 0.8, subword": {"augment": {"codeswitch": 0.8, "subword": 0.1}},
    "codeswitch 0.8, consistency": {
        "augment": {"codeswitch": 0.8, "subword": 0.1},
        "regularise": {"consistency": "1"},
    },
    "codeswitch, l2": {"augment": {"codeswitch": 0.5}, "regularise": {"l2": "1e-2"}},
    "subword": {"augment": {"subword": 0.2}},
    "span": {"augment": {"span": 0.15}},
    "mixup": {"augment": {"mixup": 0.2}},
    "l2": {"regularise": {"l2": "1e-2"}},
    "kl": {"regularise": {"kl": "target:0.05"}},
    "rdrop": {"regularise": {"rdrop": "1"}, "dropout": 0.1},
}


def main() -> None:
    """Read the options, train and measure what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", required=True, help="labelled rows, in several languages")
    parser.add_argument("--parallel", help="folder of en.txt, yo.txt, …: what codeswitch learns of")
    parser.add_argument("--source", default="en")
    parser.add_argument("--test", nargs="+", help="other languages [all of the data]")
    parser.add_argument("--rows", type=int, help="test rows of a language [all]")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", default="transfer.jsonl")
    parser.add_argument("--json", metavar="PATH", help="write the table here")
    options = parser.parse_args()
    splits = read_data(options.data)
    chosen = {name: select(splits.get(name, []), [options.source], []) for name in ("train", "dev")}
    languages = options.test or sorted({row.language for row in splits["test"] if row.language})
    tests = {
        language: sorted(select(splits["test"], [language], []), key=lambda row: row.key or "")[
            : options.rows
        ]
        for language in dict.fromkeys([options.source, *languages])
    }
    file = Path(options.results)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [json.loads(line) for line in lines]
    measured = {(run["way"], run["seed"], run["language"]) for run in kept}
    with TemporaryDirectory() as folder:
        model = ah.load_backbone(options.backbone, library=Path(folder) / "library", device="cpu")
        for seed in range(options.seeds):
            for way in options.ways:
                missing = [name for name in tests if (way, seed, name) not in measured]
                if not missing:
                    continue
                settings = dict(WAYS[way])
                if "codeswitch" in settings.get("augment", {}):
                    settings["augment_data"] = options.parallel
                started = time.process_time()
                ah.train(
                    model, chosen, domain="learnt", over=("none",), seed=seed, replace=True,
                    steps=options.steps, batch_size=options.batch_size, threads=options.threads,
                    learning_rate=options.learning_rate, max_length=options.max_length,
                    eval_every=options.steps // 2, run_folder=f"{folder}/runs", **settings,
                )  # fmt: skip
                seconds = time.process_time() - started
                with open(file, "a", encoding="utf-8") as out:
                    for language in missing:
                        rows = tests[language]
                        scores = model.classify([row.text for row in rows], adapters="learnt")
                        gold = [str(row.label) for row in rows]
                        run = {
                            "way": way, "seed": seed, "language": language, "gold": gold,
                            "said": [max(score, key=score.get) for score in scores],
                            "nats": [
                                -float(np.log(max(score[label], 1e-12)))
                                for score, label in zip(scores, gold, strict=True)
                            ],
                            "seconds": seconds,
                        }  # fmt: skip
                        out.write(json.dumps(run) + "\n")
                        kept.append(run)
    title = (
        f"{options.backbone}, {options.steps} steps of {options.batch_size} rows in "
        f"{options.source}, rate {options.learning_rate:g}, {options.seeds} seeds"
    )
    report(title, _table(kept, options.source), {"runs": kept}, options.json)


def _table(runs: list[dict], source: str) -> str:
    by = {(run["way"], run["seed"], run["language"]): run for run in runs}
    ways = list(dict.fromkeys(run["way"] for run in runs))
    languages = [*dict.fromkeys(run["language"] for run in runs if run["language"] != source)]
    shown = []
    for way in ways:
        seeds = sorted({run["seed"] for run in runs if run["way"] == way})
        f1 = {
            language: statistics.mean(_f1(by[way, seed, language]) for seed in seeds)
            for language in (source, *languages)
        }
        nats = statistics.mean(
            np.mean(by[way, s, lang]["nats"]) for s in seeds for lang in languages
        )
        others = [f1[language] for language in languages]
        paired = [s for s in seeds if (NONE, s, source) in by] if way != NONE else []
        gains = _gains(by, way, paired, languages) if paired else ("", "")
        slower = [by[way, s, source]["seconds"] / by[NONE, s, source]["seconds"] for s in paired]
        shown.append(
            [
                way, str(len(seeds)), f"{f1[source]:.3f}", f"{statistics.mean(others):.3f}",
                f"{min(others):.3f}", gains[0], f"{nats:.3f}", gains[1],
                f"{statistics.median(slower):.2f}" if slower else "",
            ]
        )  # fmt: skip
    head = ["way", "seeds", source, "others", "worst", "- none", "nats", "- none", "CPU s, x"]
    return markdown(head, shown)


def _gains(by: dict, way: str, seeds: list[int], languages: list[str]) -> tuple[str, str]:
    """What a way gains over none in the mean of the languages: F1, and nats, with intervals."""
    source, draws = np.random.default_rng(0), []
    items = min(len(by[way, seeds[0], language]["gold"]) for language in languages)
    for draw in range(2001):
        first = draw == 0  # the measured one
        drawn = seeds if first else list(source.choice(seeds, len(seeds)))
        at = None if first else source.integers(0, items, items)
        pairs = [(by[way, s, lang], by[NONE, s, lang]) for s in drawn for lang in languages]
        f1 = np.mean([_f1(one, at) - _f1(none, at) for one, none in pairs])
        apart = [np.subtract(one["nats"], none["nats"]) for one, none in pairs]
        nats = np.mean([np.mean(nats if first else nats[at]) for nats in apart])
        draws.append((f1, nats))
    measured, low, high = draws[0], *np.percentile(draws[1:], [2.5, 97.5], axis=0)
    gains = (f"{m:+.3f} [{a:+.3f}, {b:+.3f}]" for m, a, b in zip(measured, low, high, strict=True))
    return tuple(gains)


def _f1(run: dict, at: np.ndarray | None = None) -> float:
    """Macro-F1 over the labels of the rows at these places."""
    gold, said = np.array(run["gold"]), np.array(run["said"])
    if at is not None:
        gold, said = gold[at], said[at]
    scores = []
    for label in np.unique(gold):
        hit = np.sum((gold == label) & (said == label))
        scores.append(2 * hit / (np.sum(gold == label) + np.sum(said == label)))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
