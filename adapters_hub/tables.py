"""Markdown tables that read well as plain text too."""

from collections.abc import Iterable, Sequence


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
