"""What a training step costs when several adapters learn in one batch, over one that learns alone.

    python benchmarks/together.py
    python benchmarks/together.py --adapters 4 --rows 32 --backbone my/model --threads 1

Forward, loss and backward of the language-model objective on the same rows; ways in turn, medians
of the rounds' ratios to one adapter in all rows. ``over`` says how many frozen adapters lie below,
spread over the rows. ``rule`` is what the package takes, ``apart`` a product for each adapter that
learns, ``masked`` one product for all of them.
"""

import argparse
import os
import statistics
import time
from unittest.mock import patch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import LoraConfig
from report import report

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.metrics.tables import markdown
from adapters_hub.runtime.plan import Plan
from adapters_hub.tasks import make_task

TEXT = "The room was quiet, and the staff were friendly and helpful when we came back late. " * 40
RULE = Plan._masked_pays


def apart(plan: Plan, *given: object, learning: bool = False) -> bool:
    """A product each for adapters that learn; frozen ones as the rule says."""
    return plan.index is None if learning else RULE(plan, *given)


def masked(plan: Plan, *given: object, learning: bool = False) -> bool:
    """One product for adapters that learn; frozen ones as the rule says."""
    return learning or RULE(plan, *given)


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--adapters", type=int, default=7)
    parser.add_argument("--rows", type=int, default=14)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = ah.load_backbone(options.backbone, device="cpu")
    task = make_task("language-modeling", max_length=options.tokens)
    lora = LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    learning = []
    for number in range(options.adapters):
        for name, trained in ((f"learns{number}", True), (f"frozen{number}", False)):
            adapter = task.new_adapter(ah.AdapterInfo(name=name), model.backbone, lora, number)
            kept = model.add(adapter.trainable() if trained else adapter, trained=trained)
            learning += kept.parameters() if trained else []
    examples = task.encode([Row(TEXT)] * options.rows, model.backbone)
    batch = task.collate([e for e in examples if e.target][: options.rows], model.backbone)

    def seconds(count: int, over: int) -> float:
        blends = [f"learns{row % count}" for row in range(options.rows)]
        if over:
            blends = [f"{blend} + frozen{row % over}" for row, blend in enumerate(blends)]
        resolved = [model.resolve(blend) for blend in blends]
        started = time.perf_counter()
        with model.bank.using(model.plan(resolved)):
            task.loss(model, batch, []).sum().backward()
        took = time.perf_counter() - started
        for tensor in learning:
            tensor.grad = None
        return took

    ways = {"rule": RULE, "apart": apart, "masked": masked}
    many = options.adapters
    cases = [(1, 0, "rule"), *((many, 0, way) for way in ways), (1, 1, "rule"), (1, many, "rule")]
    cases += [(many, many, way) for way in ways]
    found: dict[tuple[int, int, str], list[float]] = {case: [] for case in cases}
    for turn in range(options.rounds + 1):  # the first is not counted
        for count, over, way in cases:
            with patch.object(Plan, "_masked_pays", ways[way]):
                took = seconds(count, over)
            if turn:
                found[count, over, way].append(took)
    alone = found[cases[0]]
    shown = [
        [
            str(count), str(over), way, f"{1e3 * statistics.median(own):.0f}",
            f"{statistics.median(a / b for a, b in zip(own, alone, strict=True)):.2f}",
        ]
        for (count, over, way), own in found.items()
    ]  # fmt: skip
    title = (
        f"A training step of {options.rows} rows × {options.tokens} tokens, rank {options.rank}, "
        f"{options.rounds} rounds, {options.threads} threads"
    )
    head = ["adapters that learn", "over", "way", "ms", "x"]
    data = {" ".join(map(str, case)): own for case, own in found.items()}
    report(title, markdown(head, shown, names=3), {"seconds": data}, options.json)


if __name__ == "__main__":
    main()
