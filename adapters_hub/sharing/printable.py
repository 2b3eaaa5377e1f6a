"""Text of strangers' files in a line of output."""


def printable(text: str, most: int | None = None) -> str:
    """The text, escaped where a terminal would act on it or cannot show it, cut to ``most``."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"
