"""What the benchmarks share: a title, a JSON file, and the facts a number depends on."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("adapters-hub", "torch", "transformers", "peft", "accelerate")


def facts() -> dict[str, Any]:
    """Interpreter, processor and package versions."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source"
    return {**found, "cores": os.cpu_count()}


def report(title: str, shown: str, data: dict[str, Any], path: str | None) -> None:
    """Print a table under its title and the facts; write the data as JSON if there is a path."""
    known = facts()
    print(f"\n{title}\n\n{shown}\n\n{', '.join(f'{k} {v}' for k, v in known.items())}")
    if path:
        text = json.dumps({"title": title, "facts": known, **data}, indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
