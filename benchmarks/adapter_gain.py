"""What each adapter of a library brings on text it never saw, beside what it should not bring.

    python benchmarks/adapter_gain.py --data BUILD/lm --kind language
    python benchmarks/adapter_gain.py --data BUILD/lm --kind domain

``--data`` is anything that `adapters_hub.data` reads; its test rows count. A row of the table is
one adapter on the rows of its language (or domain, in the languages it was trained over), in bits
per byte, lower is better:

- ``bare``: the backbone. A domain adapter's rows have their language's adapter below, here too.
- ``own``: with the adapter. ``gain``: 1 - own / bare.
- ``best other``: the lowest of all other adapters of the kind, and which it is.
- ``random``: an adapter of random factors whose delta has the same norm at every site.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from report import report

import adapters_hub as ah
from adapters_hub.data.reading import read_data, select
from adapters_hub.data.rows import Row
from adapters_hub.evaluation.controls import random_like
from adapters_hub.inference.records import collect_records
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks import make_task

Measure = Callable[[ah.Blend], float]


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--kind", choices=("language", "domain"), default="language")
    parser.add_argument("--library", help="default: the adapters that ship")
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--limit", type=int, default=500, help="test texts of an adapter")
    parser.add_argument("--others", type=int, default=100, help="texts to choose `best other` on")
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    model = ah.load_backbone(options.backbone, library=options.library)
    task = make_task("language-modeling", max_length=128)
    rows = read_data(options.data)["test"]
    infos = [
        info
        for info in model.library.list()
        if info.task == task.name and bool(info.domain) == (options.kind == "domain")
    ]
    below = {info.language: info.name for info in model.library.list() if not info.domain}

    def blend_over(blend: ah.Blend, over: bool, row: Row) -> ah.Blend:
        return (ah.Blend.of({below[row.language]: 1.0}) if over else ah.Blend()) + blend

    results = {}
    for number, info in enumerate(infos):
        own = select(rows, [info.language] if info.language else None,
                     [info.domain] if info.domain else None)  # fmt: skip
        if info.domain:
            own = [row for row in own if below.get(row.language) in info.over]
        examples = task.encode(own[:: max(1, len(own) // options.limit)], model.backbone)
        if not examples:
            print(f"{info.name}: no test rows in {options.data}")
            continue

        over = bool(info.domain)

        def measure(blend: ah.Blend, examples: list = examples, over: bool = over) -> float:
            blend_of = partial(blend_over, blend, over)
            return task.metrics(collect_records(model, task, examples, blend_of))["bits"]

        few = examples[:: max(1, len(examples) // options.others)]
        others = {
            other.name: measure(ah.Blend.of({other.name: 1.0}), few)
            for other in infos
            if other != info
        }
        best = min(others, key=others.__getitem__) if others else info.name
        random = model.add(random_like(model.resident(info.name), number, f"{info.name}.random"))
        results[info.name] = {
            "texts": len({id(example.row) for example in examples}),
            "bare": measure(ah.Blend()),
            "own": measure(ah.Blend.of({info.name: 1.0})),
            "best other": measure(ah.Blend.of({best: 1.0})),
            "other": best,
            "random": measure(ah.Blend.of({random.name: 1.0})),
        }
    shown = [
        [
            name,
            str(r["texts"]),
            *(f"{r[key]:.3f}" for key in ("bare", "own")),
            f"{1 - r['own'] / r['bare']:.1%}",
            f"{r['best other']:.3f} ({r['other']})",
            f"{r['random']:.3f}",
        ]
        for name, r in results.items()
    ]
    head = ["", "texts", "bare", "own", "gain", "best other", "random"]
    title = f"What {options.kind} adapters bring, bits per byte on held-out text"
    report(title, markdown(head, shown), {"results": results}, options.json)


if __name__ == "__main__":
    main()
