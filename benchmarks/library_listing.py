"""Time to list, filter and search a library of many adapters.

    python benchmarks/library_listing.py
    python benchmarks/library_listing.py --adapters 1000 --rounds 9 --json library_listing.json

A temporary library is made of PEFT folders with tensors of one shape, 84 a file (two factors at
each of seven linear layers in six blocks), a header with all metadata the package stores, and
tiny tensors: listing reads headers, never tensors. The first 40 are each a language's adapter, the
others each for a language and a domain.

Columns:

- ``median (ms)`` and ``slowest (ms)`` over the rounds, by the clock outside what is measured.
- ``found``: the adapters that came back.
- ``µs each``: the median over the number of adapters in the library.

Rows: ``no index`` starts with the index deleted, reads every header, and writes the index. ``new
process`` is a fresh interpreter from start to exit, the package's import included. ``same
process`` is a call on one `Library` object, which remembers what it read; ``new object`` remembers
nothing. ``command line`` prints the whole table into a pipe that is read to its end. ``bare
interpreter`` is what all rows of new processes contain.

Fairness: the files are synced to disk before, and are in the disk cache for all rows: these are
times of a warm machine. A warm-up of every row is not counted, and one round runs all rows.
"""

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import report
from safetensors.numpy import save

from adapters_hub import AdapterInfo, Library
from adapters_hub.library.adapter_file import CONFIG_FILE, WEIGHTS_FILE, metadata
from adapters_hub.library.safetensors_file import read_header
from adapters_hub.metrics.tables import markdown

_LANGUAGES = "ar bg bn cs da de el en es et fa fi fr he hi hr hu id it ja ka ko lt lv nb nl pl pt"
TAGS = f"{_LANGUAGES} ro ru sk sl sr sv sw ta th tr uk zh".split()
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LAYERS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "starter",
    "r": 1,
    "lora_alpha": 2,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "target_modules": sorted(layer.rpartition(".")[2] for layer in LAYERS),
}


def build(root: Path, count: int) -> None:
    """Fill a library: the same bytes each time, under another name, language and domain."""
    ones = {"lora_A": np.ones((1, 8), np.float32), "lora_B": np.ones((8, 1), np.float32)}
    tensors = {
        f"base_model.model.model.layers.{block}.{layer}.{factor}.weight": array
        for block in range(6)
        for layer in LAYERS
        for factor, array in ones.items()
    }
    config = json.dumps(CONFIG, indent=2)
    for number in range(count):
        tag, domain = TAGS[number % len(TAGS)], f"domain{number // len(TAGS):04d}"
        language_only = number < len(TAGS)
        info = AdapterInfo(
            name=tag if language_only else f"{tag}-{domain}",
            language=tag,
            domain=None if language_only else domain,
            task="language-modeling",
            backbone="starter",
            fingerprint="ah1:" + "0" * 64,
            license="Apache-2.0",
            description="An adapter of the listing benchmark.",
            metrics={"bits": 1.25, "perplexity": 2.38},
            trained_with="accelerate launch recipes/lora_language.py --language " + tag,
            hash=f"sha256:{number:064x}",
        )
        folder = root / info.name
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata(info, CONFIG)))
        (folder / CONFIG_FILE).write_text(config)
    os.sync()


def python(code: str) -> list[str]:
    """The command of a fresh interpreter that runs a piece of code."""
    return [sys.executable, "-c", code]


def run(command: list[str]) -> int:
    """Run a command to its end; the number of lines it printed, or the one number."""
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(out) if out.strip().isdigit() else len(out.splitlines())


def measures(root: Path) -> dict[str, Callable[[], int]]:
    """What is measured: a name → a call that returns how many adapters it found."""
    library = Library(root)
    index = root / ".index.json"
    start = f"import adapters_hub as ah; library = ah.Library({str(root)!r}); "
    wide = python(start + "print(len(library.list()))")
    german = python(start + "print(len(library.list(language='de')))")
    closest = python(start + "print(len([library.resolve('de-AT').info]))")

    def afresh(call: Callable[[], int]) -> Callable[[], int]:
        return lambda: (index.unlink(missing_ok=True), call())[1]

    rows: dict[str, Callable[[], int]] = {
        "bare interpreter": lambda: run(python("print(0)")),
        "list, no index, same process": afresh(lambda: len(Library(root).list())),
        "list, new object": lambda: len(Library(root).list()),
        "list, no index, new process": afresh(lambda: run(wide)),
        "list, same process": lambda: len(library.list()),
        "list, new process": lambda: run(wide),
        "list(language='de'), same process": lambda: len(library.list(language="de")),
        "list(language='de'), new process": lambda: run(german),
        "resolve('de-AT'), same process": lambda: len([library.resolve("de-AT").info]),
        "resolve('de-AT'), new process": lambda: run(closest),
    }
    if importlib.util.find_spec("adapters_hub.cli"):
        command = [sys.executable, "-m", "adapters_hub.cli", "list", "--library", str(root)]
        rows |= {
            "list, command line": lambda: run(command) - 1,  # the first line is the header
            "list --language de, command line": lambda: run([*command, "--language", "de"]) - 1,
        }
    else:
        print("no command line in this version: its rows are left out", file=sys.stderr)
    return rows


def main() -> None:
    """Build, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to make the temporary library")
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # `resolve` logs the fallback it takes

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder) / "library"
        build(root, options.adapters)
        some = root / TAGS[0] / WEIGHTS_FILE
        tensors = len(read_header(some).tensors)
        rows = measures(root)
        found = {name: call() for name, call in rows.items()}
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, call in rows.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        index_bytes = (root / ".index.json").stat().st_size

    for name, number in found.items():
        if name.startswith("list,") and number != options.adapters:
            raise SystemExit(f"{name} found {number} of {options.adapters} adapters")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    shown = [
        [
            name,
            f"{medians[name] * 1000:,.1f}",
            f"{max(seconds[name]) * 1000:,.1f}",
            f"{found[name]:,}" if found[name] else "",
            f"{medians[name] * 1e6 / options.adapters:,.1f}",
        ]
        for name in rows
    ]
    title = (
        f"A library of {options.adapters:,} adapters ({tensors} tensors each, index "
        f"{index_bytes / 2**20:.1f} MiB), {options.rounds} rounds"
    )
    head = ["", "median (ms)", "slowest (ms)", "found", "µs each"]
    data = {"adapters": options.adapters, "found": found, "seconds": seconds}
    report(title, markdown(head, shown), data, options.json)


if __name__ == "__main__":
    main()
