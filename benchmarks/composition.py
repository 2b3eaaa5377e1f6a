"""Time to compose two adapters by rank-16 methods, beside PEFT's ``add_weighted_adapter``.

    python benchmarks/composition.py
    python benchmarks/composition.py --methods svd ties --rounds 1 --json composition.json

Two adapters of rank 16 with random factors on 84 layers: 48 of 512 × 512, 24 of 2048 × 512 and 12
of 512 × 2048 (out × in). Columns, medians over the rounds:

- ``ours (ms)``, ``PEFT (ms)``: all 84 layers, weights 1 and 0.5, cut to rank 16.
- ``PEFT / ours``: the median of the rounds' ratios.
- ``error``, ``PEFT's``: the largest of the layers' distances to the dense float64 result, relative
  to it; only for ``svd``, which has just one.

Fairness: both take the same factors, float32, in one process; each round times both, ours several
times around PEFT's. PEFT's time includes making the new adapter's modules, which it cannot do
without and which is well under 1% of it.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from report import report
from torch import Tensor, nn

from adapters_hub.compose.core_space import Piece
from adapters_hub.compose.methods import compose_sites
from adapters_hub.metrics.tables import markdown

SHAPES = [(512, 512)] * 48 + [(2048, 512)] * 24 + [(512, 2048)] * 12
RANK = 16
WEIGHTS = {"one": 1.0, "two": 0.5}
PEFT_NAMES = {
    "svd": "svd",
    "ties": "ties_svd",
    "magnitude_prune": "magnitude_prune_svd",
    "dare": "dare_linear_svd",
}


class Layers(nn.Module):
    """A backbone that is nothing but the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for o, i in SHAPES)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def error(pieces: list[Piece], a: Tensor, b: Tensor) -> float:
    """The distance of B·A to the best approximation of the dense sum, relative to it."""
    whole = sum(weight * b.double() @ a.double() for weight, a, b in pieces)
    u, s, vh = torch.linalg.svd(torch.as_tensor(whole), full_matrices=False)
    best = u[:, :RANK] * s[:RANK] @ vh[:RANK]
    return float((b.double() @ a.double() - best).norm() / best.norm())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=PEFT_NAMES, default=["svd"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="peft")

    torch.manual_seed(0)
    names = [f"layers.{n}" for n in range(len(SHAPES))]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
    peft: Any = get_peft_model(Layers(), config, adapter_name="one")
    peft.add_adapter("two", config)
    layers = dict(zip(names, peft.base_model.model.layers, strict=True))
    pieces: dict[str, list[Piece]] = {name: [] for name in names}
    for name, layer in layers.items():
        for adapter, weight in WEIGHTS.items():
            b = layer.lora_B[adapter].weight
            nn.init.normal_(b, std=0.02)
            pieces[name].append((weight, layer.lora_A[adapter].weight.detach(), b.detach()))

    rows, data = [], {}
    for method in options.methods:
        more = {} if method == "svd" else {"density": 0.2}
        ours: list[float] = []
        theirs: list[float] = []
        compose_sites(pieces, method, rank=RANK, **more)
        for number in range(options.rounds):
            mine = lambda m=method, k=more: compose_sites(pieces, m, rank=RANK, **k)
            around = [timed(mine) for _ in range(3)]
            made = f"{method}-{number}"
            kind = {"combination_type": PEFT_NAMES[method], "svd_rank": RANK, **more}
            work = lambda made=made, kind=kind: peft.add_weighted_adapter(
                list(WEIGHTS), list(WEIGHTS.values()), made, **kind
            )
            theirs.append(timed(work))
            around += [timed(mine) for _ in range(3)]
            ours.append(statistics.median(around))
        errors = ["", ""]
        if method == "svd":
            found = compose_sites(pieces, method, rank=RANK)
            own = [error(pieces[name], *found[name]) for name in names]
            last = {n: (x.lora_A[made].weight, x.lora_B[made].weight) for n, x in layers.items()}
            errors = [f"{max(own):.1e}", f"{max(error(pieces[n], *last[n]) for n in names):.1e}"]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        shown = [f"{statistics.median(times) * 1000:,.0f}" for times in (ours, theirs)]
        rows.append([f"`{method}`", *shown, f"{ratio:,.0f}", *errors])
        data[method] = {"ours_s": ours, "peft_s": theirs, "errors": errors}
    title = f"Composing two adapters, {torch.get_num_threads()} threads, {options.rounds} rounds"
    head = ["", "ours (ms)", "PEFT (ms)", "PEFT / ours", "error", "PEFT's"]
    report(title, markdown(head, rows), {"rounds": options.rounds, "methods": data}, options.json)


if __name__ == "__main__":
    main()
