"""A report as a figure: the profile of a comparison by depth.

Knows reports and matplotlib, which is imported when a figure is made.
"""

import os
from pathlib import Path

from adapters_hub.errors import SettingsError
from adapters_hub.interpretability.comparison import OUTSIDE, Comparison
from adapters_hub.library.atomic import atomic_write

FORMATS = (".png", ".svg")
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, apart in grey too
_LEAST = {"direction": 0.1, "signs": 0.05}  # half of an axis: less would blow up what is nothing


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise `SettingsError` if no figure can be written there: its format, or no matplotlib."""
    if Path(path).suffix.lower() not in FORMATS:
        raise SettingsError(f"{path}: a plot's name ends with {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError("a plot needs matplotlib: pip install 'adapters-hub[plot]'") from None


def plot(report: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the depth profile as PNG or SVG, complete or not at all; returns the path.

    Panels: energies, cosine, overlaps above random, and share of opposite signs, with the
    interference beside it where it was measured. Sites in no layer stand last. Raises
    `SettingsError` for another format, without matplotlib, or where it cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator

    panels: list[tuple[str, str, dict[str, str], float]] = [
        ("energy", "‖ΔW‖ (Frobenius norm)",
         {"energy_first": report.first, "energy_second": report.second}, 0.0),
        ("direction", "cosine of the deltas", {"cosine": ""}, 0.0),
        ("shared subspace", "overlap above random",
         {"overlap_left": "left (outputs)", "overlap_right": "right (inputs)"}, 0.0),
        ("signs", "share of opposite signs", {"sign_conflict": ""}, 0.5),
    ]  # fmt: skip
    if report.texts:
        label = f"‖ΔW₂·h₁‖ / ‖ΔW₁·h₁‖, {report.texts} texts"
        panels.append(("interference", label, {"interference": ""}, 1.0))
    depths = list(report.depths)
    figure = Figure(figsize=(7.0, 2.1 * len(panels) + 0.6), layout="constrained")
    figure.suptitle(f"{report.first} (first) and {report.second} (second) by depth", fontsize=11)
    for axes, (title, label, lines, level) in zip(
        figure.subplots(len(panels), 1, sharex=True), panels, strict=True
    ):
        styles = zip(lines.items(), ((_BLUE, "o", "-"), (_ORANGE, "s", "--")), strict=False)
        for (field, name), (colour, marker, style) in styles:
            values = [getattr(report.depths[depth], field) for depth in depths]
            heights = [float("nan") if value is None else value for value in values]
            axes.plot(heights, marker=marker, linestyle=style, color=colour, label=name or None)
        axes.axhline(level, color="0.6", linewidth=0.8, zorder=0)
        if title in _LEAST:
            known = [
                v for f in lines for d in depths if (v := getattr(report.depths[d], f)) is not None
            ]
            spread = 1.15 * max([_LEAST[title], *(abs(value - level) for value in known)])
            axes.set_ylim(level - spread, level + spread)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
    step = max(1, len(depths) // 24)
    axes.xaxis.set_major_locator(FixedLocator([*range(0, len(depths), step)]))
    axes.set_xticklabels([_short(depth, depths) for depth in depths[::step]])
    axes.set_xlabel("layer")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix.lower()[1:], dpi=150)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def _short(depth: str, depths: list[str]) -> str:
    """A layer's number, with its stack where there are several."""
    stack, _, number = depth.rpartition(".")
    stacks = {other.rpartition(".")[0] for other in depths if other != OUTSIDE}
    return number if len(stacks) == 1 or depth == OUTSIDE else f"{stack}.{number}"
