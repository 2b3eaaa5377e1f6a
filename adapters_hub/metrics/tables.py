"""Markdown tables that read well as plain text too."""

from collections.abc import Iterable, Mapping, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table: the first ``names`` columns to the left, the others, numbers, right."""
    lines = [list(head), *(list(row) for row in rows)]
    wide = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    ruled = ["-" * w if i < names else "-" * (w - 1) + ":" for i, w in enumerate(wide)]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(w) if i < names else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, wide, strict=True))
        )
        + " |"
        for line in (lines[0], ruled, *lines[1:])
    )


def table(
    results: Mapping[str, Mapping[str, float | None]], corner: str, notes: Mapping[str, str]
) -> str:
    """A Markdown table of `compare`'s results; ``notes`` are set behind a language's name."""
    columns = list(results)
    languages = list(dict.fromkeys(name for column in columns for name in results[column]))
    head = [corner, *columns]
    rows = [
        [f"{name}{notes.get(name, '')}", *(_cell(results[column].get(name)) for column in columns)]
        for name in languages
    ]
    return markdown(head, rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
