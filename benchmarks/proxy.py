"""A language without an adapter: what stands for it, beside its own adapter, which is left out.

    python benchmarks/proxy.py --data FOLDER/topics
    python benchmarks/proxy.py --data FOLDER/topics --library LIBRARY --json proxy.json

Leave one language out: for each language that has an adapter in the library and test rows in the
data, the other languages' adapters stand in for it on its test rows, in bits per byte (lower is
better). ``bare`` is the backbone, ``en`` English's adapter, ``nearest SOURCE`` that of the language
at the least distance (of several, the mean), ``proxy SOURCE TEMPERATURE`` is `Library.proxy`,
``proxy, fitted`` its weights after `ah.fit` on ``--fit`` texts of train, started with a little of
every other adapter; ``arrow`` is `AdaptedModel.route` over all others; ``best other`` is the best
single one, by the test rows themselves; ``oracle`` is the language's adapter.

Each cell's bits by text go into ``--results``, a line each; a run that was stopped goes on there.
The share is (bare - x) / (bare - oracle) of sums over languages; intervals are 95% bootstraps
over texts, paired, the mean over languages. ``uriel`` needs urielplus, and is else left out.

``--routing`` measures instead how long ``auto`` takes for 256 short texts beside classifying them.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from report import report

import adapters_hub as ah
from adapters_hub.data.reading import read_data, select
from adapters_hub.errors import MissingExtraError, NotFoundError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.library.relatedness import SOURCES, distance
from adapters_hub.metrics.tables import markdown
from adapters_hub.model import AdaptedModel
from adapters_hub.tasks import make_task
from adapters_hub.text.identification import identify

TEMPERATURES = (0.05, 0.1, 0.2)
_DRAWS = 2000


class Left:
    """One language left out: its rows, and what is measured on them."""

    def __init__(self, model: AdaptedModel, tag: str, rows: dict, options: argparse.Namespace):
        self.model, self.tag, self.options = model, tag, options
        self.known: dict[str, list[list[float]]] = {}
        self.task = make_task("language-modeling", max_length=128)
        self.test = rows["test"][: options.limit]
        self.few = rows["train"][: options.fit]
        listed = model.library.list(fingerprint=model.backbone.fingerprint)
        self.names = {
            info.language: info.name for info in listed if info.language and not info.domain
        }
        self.others = [name for name in self.names if name != tag]

    def bits_of(self, blend: Blend) -> list[list[float]]:
        """Nats and bytes of each test text under one blend, which is measured once."""
        if str(blend) not in self.known:
            self.known[str(blend)] = self.bits([blend] * len(self.test))
        return self.known[str(blend)]

    def bits(self, blends: list[Blend]) -> list[list[float]]:
        """Nats and bytes of each test text, under a blend each."""
        texts = [row.text for row in self.test]
        number = {text: place for place, text in enumerate(texts)}
        examples = self.task.encode(self.test, self.model.backbone)
        records = collect_records(
            self.model, self.task, examples, lambda row: blends[number[row.text]]
        )
        sums = [[0.0, 0.0] for _ in texts]
        for example, record in zip(examples, records, strict=True):
            place = number[example.row.text]
            sums[place][0] += record["nats"]
            sums[place][1] += record["bytes"] or 0
        return sums

    def ways(self) -> Iterator[tuple[str, Callable[[], list[list[list[float]]]]]]:
        """Each way by name, and what measures it: runs of which the mean counts."""
        one = lambda blend: [self.bits_of(blend)]
        exact = lambda name: Blend([(self.names[name], 1.0)], exact=True)
        yield "bare", lambda: one(Blend())
        yield "oracle", lambda: one(exact(self.tag))
        if "en" in self.others:
            yield "en", lambda: one(exact("en"))
        for other in self.others:
            yield f"other {other}", lambda other=other: one(exact(other))
        for source in SOURCES:
            try:
                far = {other: distance(self.tag, other, source) for other in self.others}
            except MissingExtraError as error:
                print(error)
                continue
            nearest = [other for other in far if far[other] == min(far.values())]
            yield f"nearest {source}", lambda near=nearest: [self.bits_of(exact(o)) for o in near]
            for temperature in TEMPERATURES:
                yield (
                    f"proxy {source} {temperature}",
                    lambda s=source, t=temperature: one(self.proxy(s, t)),
                )
        yield "proxy, fitted", lambda: one(self.fitted())
        yield "arrow", lambda: [self.arrow()]

    def proxy(self, source: str, temperature: float) -> Blend:
        """The proxy by a source, bare where no language is related."""
        try:
            found = self.model.library.proxy(
                self.tag,
                distance=source,
                temperature=temperature,
                without=[self.tag],
                fingerprint=self.model.backbone.fingerprint,
            )
        except NotFoundError:
            return Blend()
        return found.blend

    def fitted(self) -> Blend:
        """Weights fitted on a few texts, from the proxy and a little of each other adapter."""
        start = self.proxy("family", 0.1)
        start = start + Blend([(self.names[name], 0.01) for name in self.others], exact=True)
        result = ah.fit(
            self.model, start, self.few, task=self.task, steps=40, batch_size=8, progress=False
        )
        return Blend(
            [(n, w) for n, w in result.weights.items() if isinstance(w, float)], exact=True
        )

    def arrow(self) -> list[list[float]]:
        """Arrow over all other adapters, a blend a text."""
        texts = [row.text for row in self.test]
        names = [f"name:{self.names[name]}" for name in self.others]
        return self.bits(self.model.route(texts, names, top=2))


def main() -> None:
    """Measure what is missing, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--library", help="default: the adapters that ship")
    parser.add_argument("--backbone", default="starter")
    parser.add_argument(
        "--language", nargs="+", help="those to leave out, one by one; default: all"
    )
    parser.add_argument("--limit", type=int, default=100, help="test texts of a language")
    parser.add_argument("--fit", type=int, default=16, help="texts that weights are fitted on")
    parser.add_argument("--results", default="proxy.jsonl")
    parser.add_argument("--routing", action="store_true")
    parser.add_argument("--json", metavar="PATH", help="write the table here")
    options = parser.parse_args()
    model = ah.load_backbone(options.backbone, library=options.library)
    data = read_data(options.data)
    if options.routing:
        routing(model, data, options)
        return
    path = Path(options.results)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = {(cell["language"], cell["way"]): cell for cell in map(json.loads, lines)}
    for tag in options.language or model.residents.languages():
        rows = {split: select(some, [tag]) for split, some in data.items()}
        if not rows.get("test"):
            print(f"{tag}: no test rows in {options.data}")
            continue
        left = Left(model, tag, rows, options)
        for way, measure in left.ways():
            if (tag, way) in kept:
                continue
            begin = time.perf_counter()
            cell = {"language": tag, "way": way, "runs": measure()}
            kept[tag, way] = cell
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(cell) + "\n")
            print(
                f"{tag}, {way}: {bits(cell):.3f} ({time.perf_counter() - begin:.0f} s)", flush=True
            )
    show(kept, options)


def bits(cell: dict) -> float:
    """Bits per byte of a cell: the mean of its runs."""
    sums = [np.array(run).sum(0) for run in cell["runs"]]
    return float(np.mean([nats / octets / np.log(2) for nats, octets in sums]))


def show(kept: dict, options: argparse.Namespace) -> None:
    """Bits per byte by language, the share of the oracle's gain, the gain over the nearest."""
    languages = sorted({language for language, _ in kept})
    for language in languages:  # the best single one, chosen by the test rows
        others = {w: c for (t, w), c in kept.items() if t == language and w.startswith("other ")}
        best = min(others, key=lambda way: bits(others[way]))
        kept[language, "best other"] = others[best]
    ways = [w for w in dict.fromkeys(way for _, way in kept) if not w.startswith("other ")]
    ways = [way for way in ways if way != "en"] + ["en"]
    rng, drawn = np.random.default_rng(0), {}
    draws = {}  # the same texts in all ways
    for language in languages:
        size = len(kept[language, "bare"]["runs"][0])
        draws[language] = rng.multinomial(size, np.full(size, 1 / size), size=_DRAWS).astype(float)
    for way in ways:
        having = [tag for tag in languages if (tag, way) in kept]
        by_language = []
        for tag in having:
            runs = [draws[tag] @ np.array(run) for run in kept[tag, way]["runs"]]
            by_language.append(np.mean([r[:, 0] / r[:, 1] / np.log(2) for r in runs], axis=0))
        drawn[way] = dict(zip(having, by_language, strict=True))
    table, results = [], {}
    for way in ways:
        having = [*drawn[way]]
        own = {tag: bits(kept[tag, way]) for tag in having}
        of = lambda name, tags=having: sum(bits(kept[tag, name]) for tag in tags)
        share = (of("bare") - of(way)) / (of("bare") - of("oracle"))
        gains = np.mean([drawn["nearest family"][tag] - drawn[way][tag] for tag in having], axis=0)
        gain = (of("nearest family") - of(way)) / len(having)
        low, high = np.quantile(gains, (0.025, 0.975))
        results[way] = {"bits": own, "share": share, "gain": [gain, float(low), float(high)]}
        table.append(
            [
                way,
                *(f"{own[tag]:.3f}" if tag in own else "" for tag in languages),
                f"{statistics.fmean(own.values()):.3f}",
                f"{share:.0%}",
                f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]",
            ]
        )
    head = ["", *languages, "mean", "share", "bits saved over the nearest"]
    title = "A language left out: bits per byte on its texts by what stands for its adapter"
    report(title, markdown(head, table), {"results": results}, options.json)


def routing(model: AdaptedModel, data: dict, options: argparse.Namespace) -> None:
    """The time to find the languages of 256 short texts over that of embedding them.

    Classifying is an encoder's pass and a small head; embedding is it without the head. Where the
    backbone has no language adapters, the texts are in any language of the data, all rows bare.
    """
    there = model.residents.languages() or sorted({row.language for row in data["test"]})
    rows = [row for row in data["test"] if row.language in there]
    rows = rows[:: max(1, len(rows) // 256)][:256]
    texts = [row.text[:60] for row in rows]
    found = identify(texts, there)
    adapters = [one.language if model.residents.languages() else None for one in found]
    model.embed(texts, adapters)
    times: dict[str, list[float]] = {"auto": [], "encoding": []}
    for _ in range(7):
        for name, work in (
            ("auto", lambda: identify(texts, there)),
            ("encoding", lambda: model.embed(texts, adapters)),
        ):
            begin = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begin)
    auto, whole = (statistics.median(times[name]) for name in ("auto", "encoding"))
    share = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    right = sum(one.language == row.language for one, row in zip(found, rows, strict=True))
    undecided = sum(one.language is None for one in found)
    of_texts = (f"{count / len(texts):.3f}" for count in (right, undecided))
    costs = f"{auto * 1e3:.1f}", f"{whole * 1e3:.0f}", f"{share:.1%}"
    table = [[options.backbone, str(len(there)), *costs, *of_texts]]
    head = ["backbone", "languages", "auto, ms", "encoding, ms", "share", "right", "undecided"]
    title = f"What it costs to find the languages of {len(texts)} texts of up to 60 characters"
    report(title, markdown(head, table), {"seconds": times}, options.json)


if __name__ == "__main__":
    main()
