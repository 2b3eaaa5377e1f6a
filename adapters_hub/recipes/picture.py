"""Draws a table of results as a bar chart. Knows no model."""

from collections.abc import Mapping
from pathlib import Path

from adapters_hub.errors import MissingExtraError, SettingsError
from adapters_hub.extras import require
from adapters_hub.library.atomic import atomic_write

_COLOURS = ("#999999", "#E69F00", "#0072B2")  # Okabe and Ito's


def draw_table(
    path: Path,
    results: Mapping[str, Mapping[str, float]],
    title: str,
    notes: Mapping[str, str],
) -> str | None:
    """Draw column → language → value as bars, one group for each language, into a PNG.

    ``notes`` are set behind a language's name. Returns None, or why there is no picture: without
    matplotlib there is none. Raises `SettingsError` where the file cannot be written.
    """
    try:
        require("matplotlib", "plot", "a picture of this table")
    except MissingExtraError as error:
        return str(error)
    from matplotlib.figure import Figure

    columns = list(results)
    tags = [*dict.fromkeys(tag for column in columns for tag in results[column])]
    figure = Figure(figsize=(7.0, 1.4 + 0.16 * len(tags) * (len(columns) + 1)), dpi=150)
    axes = figure.subplots()
    high = 0.8 / len(columns)
    for number, column in enumerate(columns):
        places = [row + high * number for row, tag in enumerate(tags) if tag in results[column]]
        values = [results[column][tag] for tag in tags if tag in results[column]]
        drawn = axes.barh(places, values, high, label=column, color=_COLOURS[number % 3])
        axes.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    middle = high * (len(columns) - 1) / 2
    axes.set_yticks(
        [row + middle for row in range(len(tags))],
        [f"{tag}{notes.get(tag, '')}" for tag in tags],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.06), ncols=3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            figure.savefig(file, format="png", bbox_inches="tight")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror or error})") from None
    return None
