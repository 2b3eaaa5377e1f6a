"""What a matrix says, from its cells' files alone: tables, heat maps, composition gains.

Knows the files that `adapters_hub.evaluation.matrix` writes; no model, no torch.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters_hub.errors import DataError
from adapters_hub.evaluation.cell_file import FORMAT_VERSION, CellFile, Cells, Interval
from adapters_hub.metrics.bootstrap import Correlation, correlate
from adapters_hub.metrics.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Gain = Literal["gain", "composition_gain"]
_COLOURS = "PuOr_r"  # orange above zero, purple below: told apart by every kind of colour vision


def read_cells(folder: str | Path) -> Cells:
    """The cells of a results folder, by domain, the source language first; `DataError` for none."""
    files = [file for file in sorted(Path(folder).glob("*.json")) if file.name != "settings.json"]
    cells = []
    for file in files:
        try:
            cell: CellFile = json.loads(file.read_text(encoding="utf-8"))
            version = cell["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not a cell of a matrix ({error!r})") from None
        if version != FORMAT_VERSION:
            raise DataError(f"{file}: format {version}, this release reads {FORMAT_VERSION}")
        cells.append(cell)
    if not cells:
        raise DataError(f"{folder}: no cell of a matrix in it")
    order = lambda c: (c["domain"] or "", c["language"] != c["source"], c["language"])
    return sorted(cells, key=order)


def tables(cells: Cells) -> str:
    """Markdown: every cell with its columns, then what each method of composition is worth."""
    first = cells[0]
    better = "higher" if first["higher_is_better"] else "lower"
    names = list(dict.fromkeys(name for cell in cells for name in cell["columns"]))
    head = ["domain", "language", "test rows", *names]
    rows = []
    for cell in cells:
        source = " (source)" if cell["language"] == cell["source"] else ""
        scores = [
            f"{cell['columns'][name]['mean']:.3f}" if name in cell["columns"] else ""
            for name in names
        ]
        test = str(cell["rows"]["test"])
        rows.append([cell["domain"] or "-", cell["language"] + source, test, *scores])
    seeds = len(first["seeds"])
    parts = [
        f"{first['metric']} ({better} is better), mean of {seeds} "
        f"seed{'s' if seeds != 1 else ''}, task trained in {first['source']}:",
        markdown(head, rows, names=2),
    ]
    if methods := methods_of(cells):
        parts += [
            "Each method over the cells in other languages than the source (positive: it helps):",
            markdown(_SUMMARY, [summary(cells, method) for method in methods]),
            _EXPLAINED,
        ]
        if known := correlations(cells, methods[0]):
            parts += [
                f"Does what can be seen before composing go with the composition gain ({methods[0]}"
                ", other languages than the source)? Spearman's rank correlation over cells, "
                "bootstrap interval; cells share adapters, so it is too narrow:",
                markdown(
                    ("of language and task adapter", "cells", "rho", "95% from", "to"),
                    [_correlated(name, correlation) for name, correlation in known.items()],
                ),
            ]
    return "\n\n".join(parts)


_SUMMARY = (
    "method", "cells", "gain over bare", "task alone over bare", "composition gain", "helps",
    "hurts", "recovery", "over wrong language", "over random", "forgetting", "worst cell",
)  # fmt: skip
_EXPLAINED = (
    "gain: composed - bare. composition gain: composed - the better single adapter, chosen on dev. "
    "helps, hurts: cells in which its 95% interval, over rows and seeds, is above or below 0. "
    "recovery: sum of gains over sum of the in-cell adapter's gains. forgetting: what the sum with "
    "another language costs on rows of the source language. worst cell: lowest composition gain."
)


def methods_of(cells: Cells) -> list[str]:
    """The methods that cells were composed by."""
    return list(dict.fromkeys(name for cell in cells for name in cell["composed"]))


def summary(cells: Cells, method: str) -> list[str]:
    """One row of the methods' table, over the cells in languages that are not the source."""
    others = _elsewhere(cells, method)
    if not others:
        return [method, "0", *[""] * (len(_SUMMARY) - 2)]
    entries = [cell["composed"][method] for cell in others]
    gains = [entry["composition_gain"] for entry in entries]
    worst = min(range(len(others)), key=lambda i: gains[i]["mean"])
    return [
        method,
        str(len(others)),
        _mean(entry["gain"] for entry in entries),
        _mean(cell["transfer"] for cell in others),
        _mean(gains),
        f"{sum(entry['helps'] for entry in entries)}/{len(others)}",
        f"{sum(entry['hurts'] for entry in entries)}/{len(others)}",
        _recovery(others, method),
        _mean(entry["over wrong language"] for entry in entries if "over wrong language" in entry),
        _mean(entry["over random"] for entry in entries if "over random" in entry),
        _mean(entry["forgetting"] for entry in entries if "forgetting" in entry),
        f"{others[worst]['domain'] or '-'} {others[worst]['language']} {_interval(gains[worst])}",
    ]


def correlations(cells: Cells, method: str) -> dict[str, Correlation]:
    """Predictor → its rank correlation with a method's composition gain, over the cells that are
    not the source; those with fewer than 3 cells are left out.
    """
    measured = [cell for cell in _elsewhere(cells, method) if "predictors" in cell]
    gains = [cell["composed"][method]["composition_gain"]["mean"] for cell in measured]
    return correlate([cell["predictors"] for cell in measured], gains)


def draw(cells: Cells, folder: str | Path) -> list[Path]:
    """Heat maps and the plot of composition gains as PNG and SVG; the files written.

    Raises `DataError` without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("plots need matplotlib: pip install 'adapters-hub[plot]'") from None
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    pictures: list[tuple[str, Callable[[Figure], None]]] = []
    for method in methods_of(cells):
        pictures += [
            (f"{what}.{method}", partial(_heat_map, cells=cells, method=method, what=what))
            for what in _WORDS
        ]
        pictures.append((f"cells.{method}", partial(_intervals, cells=cells, method=method)))
    with matplotlib.rc_context({"svg.hashsalt": "matrix", "font.size": 9, "svg.fonttype": "none"}):
        for name, make in pictures:
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            make(figure)
            for suffix in ("png", "svg"):
                path = Path(folder) / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else {}
                figure.savefig(path, dpi=150, metadata=metadata)
                written.append(path)
    return written


def _heat_map(figure: "Figure", cells: Cells, method: str, what: _Gain) -> None:
    """Languages by domains; a number in bold is one whose interval excludes 0."""
    import numpy as np

    shown = [cell for cell in cells if method in cell["composed"]]
    domains = list(dict.fromkeys(cell["domain"] or "-" for cell in shown))
    tags = list(dict.fromkeys(cell["language"] for cell in shown))
    values = np.full((len(tags), len(domains)), np.nan)
    axes = figure.subplots()
    for cell in shown:
        at = tags.index(cell["language"]), domains.index(cell["domain"] or "-")
        values[at] = cell["composed"][method][what]["mean"]
    limit = float(np.nanmax(np.abs(values))) or 1.0
    image = axes.imshow(values, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for cell in shown:
        entry = cell["composed"][method][what]
        row, column = tags.index(cell["language"]), domains.index(cell["domain"] or "-")
        axes.text(
            column,
            row,
            f"{entry['mean']:+.3f}",
            ha="center",
            va="center",
            weight="bold" if entry["low"] > 0 or entry["high"] < 0 else "normal",
            color="white" if abs(entry["mean"]) > 0.75 * limit else "black",
        )
    axes.set_xticks(range(len(domains)), domains)
    sources = {cell["source"] for cell in shown}
    axes.set_yticks(range(len(tags)), [f"{t} (source)" if t in sources else t for t in tags])
    axes.set_xlabel("domain")
    axes.set_ylabel("language")
    axes.set_title(f"{_WORDS[what]}, {method}\n(bold: 95% interval excludes 0)")
    figure.colorbar(image, ax=axes, label=f"{cells[0]['metric']}, positive: it helps")
    figure.set_size_inches(max(4.8, 2.6 + 1.1 * len(domains)), 1.7 + 0.34 * len(tags))


_WORDS: dict[_Gain, str] = {
    "gain": "Gain over bare",
    "composition_gain": "Gain over the better single adapter",
}


def _intervals(figure: "Figure", cells: Cells, method: str) -> None:
    """Every cell's composition gain with its interval, the largest on top."""
    shown = [cell for cell in cells if method in cell["composed"]]
    shown.sort(key=lambda cell: cell["composed"][method]["composition_gain"]["mean"])
    axes = figure.subplots()
    for place, cell in enumerate(shown):
        entry = cell["composed"][method]["composition_gain"]
        kind = 1 if entry["low"] > 0 else -1 if entry["high"] < 0 else 0
        axes.plot([entry["low"], entry["high"]], [place, place], color=_SIGNS[kind][0], lw=1.5)
        axes.plot(entry["mean"], place, _SIGNS[kind][1], color=_SIGNS[kind][0], ms=5)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(shown)), [f"{c['domain'] or '-'} {c['language']}" for c in shown])
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.set_xlabel(f"composed - better single adapter, {cells[0]['metric']} (positive: it helps)")
    axes.set_title(f"Does composing help? {method}, 95% intervals over rows and seeds")
    for kind, words in ((1, "helps"), (0, "not told apart"), (-1, "hurts")):
        axes.plot([], [], _SIGNS[kind][1], color=_SIGNS[kind][0], label=words)
    axes.legend(loc="lower right", frameon=False)
    figure.set_size_inches(6.4, 1.4 + 0.22 * len(shown))


_SIGNS = {1: ("#0072B2", "^"), 0: ("#666666", "o"), -1: ("#D55E00", "v")}  # Okabe and Ito's


def _elsewhere(cells: Cells, method: str) -> Cells:
    """The cells of a method in other languages than the source."""
    return [c for c in cells if method in c["composed"] and c["language"] != c["source"]]


def _correlated(name: str, correlation: Correlation) -> list[str]:
    return [
        name.replace("_", " "),
        str(correlation.n),
        *map(_signed, (correlation.rho, correlation.low, correlation.high)),
    ]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _mean(estimates: Iterable[Interval]) -> str:
    means = [estimate["mean"] for estimate in estimates]
    return f"{sum(means) / len(means):+.3f}" if means else ""


def _recovery(cells: Cells, method: str) -> str:
    """(Σ composed - bare) / (Σ oracle - bare): the ratio of each cell would explode near zero."""
    measured = [cell for cell in cells if "oracle" in cell["columns"]]
    gain = sum(cell["composed"][method]["gain"]["mean"] for cell in measured)
    possible = sum(
        (cell["columns"]["oracle"]["mean"] - cell["columns"]["bare"]["mean"])
        * (1 if cell["higher_is_better"] else -1)
        for cell in measured
    )
    return f"{gain / possible:.0%}" if possible > 0 else ""


def _interval(estimate: Interval) -> str:
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"
