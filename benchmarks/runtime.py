"""The runtime beside its limits and beside PEFT: mixed batches, swaps, loads, memory.

    python benchmarks/runtime.py
    python benchmarks/runtime.py --shape 0.6b --rounds 3 --json runtime.json
    python benchmarks/runtime.py --parts decode prefill --no-peft

A Qwen3-shaped model with random weights (``benchmarks/qwen.py``), float32, adapters of rank 16 on
all linear layers of the body. Each part runs what it compares in turn, in one process; ``ratio`` is
the median of the rounds' ratios to the bare backbone, measured in the same round.

Limits, where b is bytes and m multiply-adds, of one adapter (b_a, m_a a token) and of the backbone:

- decode, 16 rows of one token each over a cache of 32: 1 + n·b_a / b, for n adapters in the batch;
  b counts every weight a step reads (layers and output layer). At this batch a CPU's products are
  not bound by reading alone, so the limit is one of bytes, not of time.
- prefill, 16 rows of 128 tokens: 1 + m_a / m for a row with one adapter, 1 + 2·m_a / m with two,
  however many adapters the batch has; m counts the layers, without attention's own products and,
  since only the last position's logits are asked for, without the output layer.
- load: reading the file (numpy.fromfile) and copying its bytes once. ``use`` of an adapter that is
  on disk, its file in the disk cache, all checks done, 64 adapters resident.

Rows ``4 languages × 4 domains`` have two adapters a row, 8 in the batch; PEFT's ``adapter_names``
can have one. ``goal`` is what the figure should be within, or at least reach.
"""

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import qwen
import torch
import transformers
from composition import error as distance
from peft import PeftModel
from report import report
from transformers import DynamicCache

from adapters_hub import Library
from adapters_hub.compose.methods import compose_sites
from adapters_hub.inference.generate import run as generate
from adapters_hub.metrics.tables import markdown

ROWS, PROMPT, CACHED, SLACK = 16, 128, 32, 1.15
PARTS = ("decode", "prefill", "generate", "swap", "load", "svd", "bits")
Line = tuple[str, str, str, str]


class Bench:
    """The models, the adapters in memory, and a folder for files."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.plain = qwen.plain_model(options.shape)
        self.bare = qwen.twin(self.plain)
        self.model = qwen.adapted(self.plain, folder / "library", memory=16 << 30)
        self.adapters = [qwen.add(self.model, f"a{n}", options.rank, n) for n in range(16)]
        self.peft: Any = None
        if options.peft:
            self.peft = qwen.as_peft(qwen.twin(self.bare), self.adapters, options.rank)
        layers = sum(p.numel() for p in self.plain.model.layers.parameters())
        self.own = sum(a.numel() + b.numel() for a, b in self.adapters[0].factors.values())
        self.read, self.layers = layers + self.plain.lm_head.weight.numel(), layers
        self.data: dict[str, Any] = {}

    def ids(self, tokens: int) -> torch.Tensor:
        """Random token ids (rows, tokens)."""
        random = torch.Generator().manual_seed(0)
        return torch.randint(0, self.plain.config.vocab_size, (ROWS, tokens), generator=random)

    def ours(self, blends: list[str], inputs: Mapping[str, Any]) -> Callable[[], Any]:
        """A forward of ours, its plan made before, as in a batch that is served for long."""
        plan = self.model.plan(self.model.blends(ROWS, blends))

        def forward() -> Any:
            with self.model.bank.using(plan):
                return self.plain(**inputs)

        return forward

    def compare(
        self, part: str, ways: dict[str, Callable[[], Any]], rounds: int, after: Callable[[], Any]
    ) -> dict[str, list[float]]:
        """Seconds of each way in each round, all ways of a round one after the other."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                took = time.perf_counter() - start
                after()
                if number:
                    times[name].append(took)
        self.data[part] = times
        return times

    def forwards(self, part: str) -> list[Line]:
        """The decode or the prefill part."""
        cache = DynamicCache(config=self.plain.config)
        if part == "decode":
            self.bare(input_ids=self.ids(CACHED), past_key_values=cache, logits_to_keep=1)
            inputs = {"input_ids": self.ids(1), "past_key_values": cache}
        else:
            inputs = {"input_ids": self.ids(PROMPT), "use_cache": False}
        inputs["logits_to_keep"] = 1
        singles = {n: [f"a{row % n}" for row in range(ROWS)] for n in (1, 4, 8, 16)}
        pairs = [f"a{row // 4} + a{4 + row % 4}" for row in range(ROWS)]
        ways: dict[str, Callable[[], Any]] = {"bare": partial(self.bare, **inputs)}
        ways |= {f"{n}": self.ours(own, inputs) for n, own in singles.items()}
        ways["pairs"] = self.ours(pairs, inputs)
        if self.peft is not None:
            for n in (1, 4, 16):
                ways[f"PEFT {n}"] = partial(self.peft, adapter_names=singles[n], **inputs)
        rounds = self.options.rounds * (5 if part == "decode" else 1)
        after = partial(cache.crop, -1) if part == "decode" else lambda: None
        times = self.compare(part, ways, rounds, after)
        lines = []
        for n in (1, 4, 16):
            limit = 1 + n * self.own / self.read if part == "decode" else 1 + self.own / self.layers
            got = ratio(times[f"{n}"], times["bare"])
            lines.append(line(f"{part}, {n} adapters", got, SLACK * limit, limit))
        got = ratio(times["pairs"], times["8"])
        goal = 1.05
        if part == "prefill":  # twice the work is needed
            goal = SLACK * (1 + 2 * self.own / self.layers) / (1 + self.own / self.layers)
        lines.append(line(f"{part}, 4 languages × 4 domains over 8 adapters singly", got, goal))
        if self.peft is not None:
            for n in (1, 4, 16):
                got = ratio(times[f"PEFT {n}"], times[f"{n}"])
                least = 3.0 if (part, n) == ("decode", 16) else 1.0
                lines.append(line(f"{part}, PEFT's time over ours, {n} adapters", got, -least))
        return lines

    def decode(self) -> list[Line]:
        """One token a row."""
        return self.forwards("decode")

    def prefill(self) -> list[Line]:
        """A whole prompt."""
        return self.forwards("prefill")

    def generate(self) -> list[Line]:
        """64 tokens for 16 prompts of 32."""
        ids = self.ids(CACHED)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 64}
        inputs["do_sample"] = False
        mixed = self.model.blends(ROWS, [f"a{row % 4}" for row in range(ROWS)])
        one = self.model.blends(ROWS, "a0")
        ways: dict[str, Callable[[], Any]] = {
            "bare": partial(self.bare.generate, **inputs),
            "mixed": partial(generate, self.model, mixed, inputs),
            "one": partial(generate, self.model, one, inputs),
        }
        times = self.compare("generate", ways, max(2, self.options.rounds), lambda: None)
        merged = "not merged" if self.model.bank.view is None else "merged by the rule"
        self.model.bank.drop_view()
        return [
            line(
                "generate 64 tokens, 16 rows, 4 adapters",
                ratio(times["mixed"], times["bare"]),
                1.25,
            ),
            line(f"the same, one adapter, {merged}", ratio(times["one"], times["bare"]), 1.25),
        ]

    def swap(self) -> list[Line]:
        """Activating a resident blend beside few and many others, and the call after it."""
        lines = []
        inputs = {"input_ids": self.ids(1)[:1], "use_cache": False}
        for count in (2, 1000):
            model = qwen.adapted(qwen.twin(self.bare), self.folder / "none", memory=1 << 40)
            for n in range(count):  # sixteen adapters' numbers serve for a thousand
                own = self.adapters[n % 16]
                model.add(replace(own, info=replace(own.info, name=f"b{n}")))
            took: dict[str, list[float]] = {"use": [], "first": [], "later": []}
            for number in range(40):
                first, second = number % count, (number + 1) % count
                start = time.perf_counter()
                model.use(f"{1 + number % 20 / 20}*b{first} + 0.5*b{second}")
                took["use"].append(time.perf_counter() - start)
                for call in ("first", "later"):
                    start = time.perf_counter()
                    model(**inputs)
                    took[call].append(time.perf_counter() - start)
            self.data[f"swap {count}"] = took
            use = statistics.median(took["use"][5:]) * 1e3
            more = statistics.median(
                a - b for a, b in zip(took["first"][5:], took["later"][5:], strict=True)
            )
            lines.append(line(f"activate a blend, {count} resident (ms)", use, 0.2))
            what = f"what the first call after it takes more, {count} resident (ms)"
            lines.append((what, f"{more * 1e3:.1f}", "", ""))
        if self.peft is not None:
            took["peft"] = []
            for number in range(6):
                start = time.perf_counter()
                self.peft.set_adapter(f"a{number % 2}")
                took["peft"].append(time.perf_counter() - start)
            got = statistics.median(took["peft"]) * 1e3
            lines.append(("PEFT's set_adapter, 16 resident (ms)", f"{got:.1f}", "", ""))
        return lines

    def load(self) -> list[Line]:
        """From a file into use."""
        root = self.folder / "loads"
        library = Library(root / "library")
        count = 8
        for n in range(count):
            folder = qwen.save(self.adapters[n], root / f"source{n}")
            library.add(folder, name=f"c{n}")
        model = qwen.adapted(qwen.twin(self.bare), root / "library", memory=1 << 40)
        for n in range(64):
            own = self.adapters[n % 16]
            model.bank.put(f"b{n}", own.factors, own.scaling, pinned=True)
        file = root / "library" / "c0" / "adapter_model.safetensors"
        took: dict[str, list[float]] = {"read": [], "ours": [], "peft": []}
        model.use("c0")
        for number in range(5 * count):
            name = f"c{number % count}"
            model.drop(name)
            start = time.perf_counter()
            np.fromfile(file.parent.parent / name / file.name, np.uint8).copy()
            took["read"].append(time.perf_counter() - start)
            start = time.perf_counter()
            model.use(name)
            took["ours"].append(time.perf_counter() - start)
        self.data["load"] = took
        ours = statistics.median(took["ours"][count:]) * 1e3
        got = ratio(took["ours"][count:], took["read"][count:])
        lines = [
            line("load from disk over reading and copying", got, 2.0),
            (f"the same (ms), a file of {file.stat().st_size / 1e6:.1f} MB", f"{ours:.1f}", "", ""),
        ]
        if self.options.peft:
            peft = PeftModel.from_pretrained(qwen.twin(self.bare), str(root / "source0"))
            for n in range(1, 4):
                start = time.perf_counter()
                peft.load_adapter(str(root / f"source{n}"), f"p{n}")
                took["peft"].append(time.perf_counter() - start)
            theirs = statistics.median(took["peft"]) * 1e3
            lines.append(("PEFT's load_adapter (ms)", f"{theirs:,.0f}", "", ""))
        return lines

    def svd(self) -> list[Line]:
        """Two adapters into one of rank 16 by truncated SVD."""
        rank = self.options.rank
        blend = self.model.resolve("a0 + 0.5*a1")
        pieces = self.model.pieces(blend)
        took: dict[str, list[float]] = {"ours": [], "peft": []}
        for _ in range(5):
            start = time.perf_counter()
            found = compose_sites(pieces, "svd", rank=rank)
            took["ours"].append(time.perf_counter() - start)
        self.data["svd"] = took
        some = list(pieces)[:: max(1, len(pieces) // 12)]
        worst = max(distance(pieces[site], *found[site]) for site in some)
        ours = statistics.median(took["ours"])
        lines = [
            line("svd: distance to the best of its rank", worst, 1e-5, digits="e"),
            (f"svd over {len(pieces)} layers (ms)", f"{ours * 1e3:.0f}", "", ""),
        ]
        if self.options.peft:
            start = time.perf_counter()
            self.peft.add_weighted_adapter(
                ["a0", "a1"], [1.0, 0.5], "both", combination_type="svd", svd_rank=rank
            )
            took["peft"].append(time.perf_counter() - start)
            self.peft.delete_adapter("both")
            lines.append(line("svd, PEFT's time over ours", took["peft"][0] / ours, -100))
        return lines

    def bits(self) -> list[Line]:
        """An 8-bit backbone: what it weighs, and whether a mixed batch is 8-bit base + delta."""
        from adapters_hub.model import load_backbone

        folder = self.folder / "checkpoint"
        self.plain.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        model = load_backbone(str(folder), library=self.folder / "none", bits=8)
        weights = [*model.backbone.model.parameters(), *model.backbone.model.buffers()]
        size = sum({t.data_ptr(): t.nbytes for t in weights}.values())
        whole = sum(p.nbytes for p in self.plain.parameters())
        for n in range(4):
            qwen.add(model, f"a{n}", self.options.rank, n)
        inputs = {"input_ids": self.ids(8)[:4], "use_cache": False}
        with torch.no_grad():
            mixed = model(**inputs, adapters=[f"a{n}" for n in range(4)]).logits
            alone = [
                model(**{**inputs, "input_ids": inputs["input_ids"][n : n + 1]}, adapters=f"a{n}")
                for n in range(4)
            ]
            bare = model(**inputs).logits
        apart = max(float((mixed[n] - own.logits[0]).abs().max()) for n, own in enumerate(alone))
        apart /= float((mixed - bare).abs().max())
        return [
            line("8-bit backbone, bytes of the weights over float32", size / whole, 0.35),
            line(
                "8-bit, mixed rows from rows alone, over the adapters' effect",
                apart,
                1e-3,
                digits="e",
            ),
        ]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")), pad_token="a"
    )


def ratio(first: list[float], second: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def line(what: str, got: float, goal: float, limit: float | None = None, digits: str = "f") -> Line:
    """A row: what, figure, limit, goal and whether it is met; a negative goal is a least value."""
    shown = f"{got:.1e}" if digits == "e" else f"{got:.3f}"
    bound = f"{abs(goal):.0e}" if digits == "e" else f"{abs(goal):.3g}"
    met = got >= -goal if goal < 0 else got <= goal
    sign = "≥" if goal < 0 else "≤"
    return what, shown, f"{limit:.3f}" if limit else "", f"{sign} {bound} {'yes' if met else 'NO'}"


@torch.no_grad()
def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    qwen.size_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-peft", dest="peft", action="store_false")
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.parts:
            lines += getattr(bench, part)()
            gc.collect()
    title = f"Runtime, Qwen3 shape {options.shape}, rank {options.rank}, {options.threads} threads"
    shown = markdown(["", "figure", "limit", "goal, met?"], lines)
    used = {key: value for key, value in vars(options).items() if key != "json"}
    report(title, shown, {"options": used, "lines": lines, "times": bench.data}, options.json)


if __name__ == "__main__":
    main()
