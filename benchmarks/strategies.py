"""What the two ways to add deltas cost, and how well the rule that chooses between them chooses.

    python benchmarks/strategies.py
    python benchmarks/strategies.py --configurations 400 --json strategies.json

Draws configurations of one site (widths, rows, tokens, adapters, ranks, rows in order or shuffled,
adapters used evenly or not), times the masked and the grouped parts of each on the same input, one
after the other, and fits ``runtime.products.Costs`` to a half of them: non-negative least squares
of relative errors. Then, on the other half:

- ``right``: how often a rule takes the faster way.
- ``loss``: the time of what it takes over the time of the faster way, in all, and at worst.

Rules: always masked, always grouped, the prices in the package, the prices fitted just now. Also
fits ``adapters_hub.runtime.merged.MERGE_COST``, the time to merge a weight.

Without gradients, float32. The backbone's own product is not part of any time.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from report import report
from scipy.optimize import nnls
from torch import nn

from adapters_hub.metrics.tables import markdown
from adapters_hub.runtime.bank import Bank, Run
from adapters_hub.runtime.merged import MERGE_COST, merged_weight
from adapters_hub.runtime.products import COSTS, cost

WIDTHS = (256, 512, 1024, 2048)


def draw(random_: random.Random) -> dict[str, Any]:
    """One configuration, small enough to time."""
    while True:
        fan_in, fan_out = random_.choice(WIDTHS), random_.choice(WIDTHS)
        rows, tokens = random_.choice((4, 8, 16, 32, 64)), random_.choice((1, 1, 1, 4, 32, 128))
        adapters = random_.choice([n for n in (2, 3, 4, 8, 16, 32) if n <= rows])
        rank = random_.choice((4, 8, 16, 32))
        if rows * tokens * adapters * rank * (fan_in + fan_out) < 3e9:
            break
    uneven = random_.random() < 0.4
    uses = [n % adapters for n in range(rows)]
    if uneven:
        uses = [random_.randrange(adapters) for _ in range(rows)]
    order = random_.choice(("sorted", "shuffled"))
    random_.shuffle(uses) if order == "shuffled" else uses.sort()
    found = {"in": fan_in, "out": fan_out, "rows": rows, "tokens": tokens, "uses": uses}
    return found | {"adapters": adapters, "rank": rank, "order": order}


def measure(drawn: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Amounts and median seconds of both ways."""
    layer = nn.Linear(drawn["in"], drawn["out"])
    bank = Bank({"site": layer})
    for n in range(drawn["adapters"]):
        a, b = torch.randn(drawn["rank"], drawn["in"]), torch.randn(drawn["out"], drawn["rank"])
        bank.put(f"a{n}", {"site": (a, b)}, {"site": 1.0})
    plan = bank.plan([{f"a{n}": 1.0} for n in range(drawn["adapters"])], drawn["uses"])
    assert plan is not None
    x = torch.randn(drawn["rows"], drawn["tokens"], drawn["in"])
    masked, grouped = plan.amounts(("site",), x.view(-1, drawn["in"]))
    times: dict[bool, list[float]] = {True: [], False: []}
    y = torch.zeros(drawn["rows"], drawn["tokens"], drawn["out"])
    for turn in range(repeats + 1):
        for way in times:
            plan._masked_pays = lambda *_, way=way: way  # type: ignore[method-assign]
            run = Run(plan, {})
            start = time.perf_counter()
            run.add("site", x, y)
            if turn:
                times[way].append(time.perf_counter() - start)
    whole = bank.plan([{"a0": 1.0}])
    assert whole is not None
    alone = []
    for turn in range(repeats + 1):
        run = Run(whole, {})
        start = time.perf_counter()
        run.add("site", x, y)
        if turn:
            alone.append(time.perf_counter() - start)
    read = drawn["rank"] * (drawn["in"] + drawn["out"])
    return {
        **drawn,
        "whole": [1.0, float(drawn["rows"] * drawn["tokens"] * read), float(read)],
        "masked": [float(n) for n in masked],
        "grouped": [float(n) for n in grouped],
        "seconds": [statistics.median(own) for own in (times[True], times[False], alone)],
    }


def fit(found: Sequence[dict[str, Any]], way: str) -> list[float]:
    """Prices in nanoseconds for the amounts of one way."""
    place = ("masked", "grouped", "whole").index(way)
    seconds = np.array([own["seconds"][place] for own in found]) * 1e9
    amounts = np.array([own[way] for own in found])
    return nnls(amounts / seconds[:, None], np.ones(len(found)))[0].tolist()


def judge(found: Sequence[dict[str, Any]], masked: Any, grouped: Any) -> list[str]:
    """A rule's row: how often right, its loss in all and at worst; prices, or who wins always."""
    losses, right, taken, best = [], 0, 0.0, 0.0
    for own in found:
        first, second, _ = own["seconds"]
        if isinstance(masked, bool):
            took = first if masked else second
        else:
            took = first
            if cost(masked, own["masked"]) > cost(grouped, own["grouped"]):
                took = second
        right += took == min(first, second)
        taken, best = taken + took, best + min(first, second)
        losses.append(took / min(first, second))
    return [f"{right / len(found):.0%}", f"{taken / best:.3f}", f"{max(losses):.2f}"]


def merge_price(repeats: int) -> float:
    """Nanoseconds a weight, the median over widths."""
    prices = []
    for fan_in in WIDTHS:
        for fan_out in WIDTHS:
            layer = nn.Linear(fan_in, fan_out)
            pieces = [(1.0, torch.randn(16, fan_in), torch.randn(fan_out, 16))]
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                merged_weight(layer, pieces)
                times.append(time.perf_counter() - start)
            prices.append(statistics.median(times) * 1e9 / (fan_in * fan_out))
    return statistics.median(prices)


@torch.no_grad()
def main() -> None:
    """Read the options, measure, fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configurations", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random_ = random.Random(options.seed)
    found = [measure(draw(random_), options.repeats) for _ in range(options.configurations)]
    known, unseen = found[::2], found[1::2]
    masked, grouped = fit(known, "masked"), fit(known, "grouped")
    merge = merge_price(options.repeats)
    shown = [
        ["always masked", *judge(unseen, True, None)],
        ["always grouped", *judge(unseen, False, None)],
        ["the package's prices", *judge(unseen, COSTS.masked, COSTS.grouped)],
        ["fitted just now", *judge(unseen, masked, grouped)],
    ]
    title = f"The rule on {len(unseen)} configurations it was not fitted to"
    whole = fit(found, "whole")
    prices = {"masked": masked, "grouped": grouped, "whole": whole, "merge": merge}
    package = {"masked": COSTS.masked, "grouped": COSTS.grouped, "whole": COSTS.whole}
    data = {"prices": prices, "package": package | {"merge": MERGE_COST}, "found": found}
    report(title, markdown(["", "right", "loss", "at worst"], shown), data, options.json)
    for name, own in prices.items():
        values = own if isinstance(own, list) else [own]
        print(f"{name}: {', '.join(f'{value:.4g}' for value in values)}")


if __name__ == "__main__":
    main()
