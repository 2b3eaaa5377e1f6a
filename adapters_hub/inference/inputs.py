"""What a caller gives as texts → a list, or one clear error.

Knows the containers that texts come in; does not know tokenizers, models or tasks.
"""

from collections.abc import Iterable, Mapping, Set

import torch

from adapters_hub.data.pairs import is_text
from adapters_hub.errors import SettingsError

_SHOWN = 40  # characters of a wrong value in a message


def texts_of(given: str | Iterable[str], what: str = "texts") -> list[str]:
    """The texts of one text, or of a list, tuple, numpy array, pandas Series or iterator of texts.

    ``what`` names the argument in messages. Raises `SettingsError` for anything else, with the
    number of the first element that is no text.
    """
    rows = rows_of(given, what)
    return [check_text(row, f"{what}, text {number}") for number, row in enumerate(rows, 1)]


def rows_of(given: object, what: str) -> list[object]:
    """The elements, in their order, of what a caller gives; one text is a list of itself.

    Raises `SettingsError` for what has no elements, or none in an order.
    """
    if isinstance(given, str):
        return [given]
    unordered = isinstance(given, bytes | bytearray | Mapping | Set | torch.Tensor)
    one_dimension = getattr(given, "ndim", 1) == 1  # a data frame would give its columns' names
    if unordered or not one_dimension or not isinstance(given, Iterable):
        raise SettingsError(f"{what}: {described(given)}; {_advice(given)}")
    return list(given)


def check_text(text: object, where: str) -> str:
    """The text; raises `SettingsError` for what is none."""
    if not isinstance(text, str):
        raise SettingsError(f"{where}: {described(text)}; {_advice(text)}")
    if not is_text(text):
        raise SettingsError(
            f"{where}: it holds half a surrogate pair (a damaged character), which no tokenizer "
            "reads; decode its bytes anew, or take the character out"
        )
    return text


def each_row(given: str | Iterable[str], rows: int, what: str) -> list[str]:
    """A value (a text, such as a language) a row, from one for all rows or one each.

    Raises `SettingsError` for another number of them.
    """
    values = texts_of(given, what)
    if isinstance(given, str):
        return values * rows
    if len(values) != rows:
        raise SettingsError(f"{what}: {len(values)} for {rows} texts; give one, or one a text")
    return values


def described(value: object) -> str:
    """A value and its type, for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, not text"
    if value is None:
        return "None, not text"
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return f"{shown} ({type(value).__name__}), not text"


def _advice(value: object) -> str:
    """What to give in place of a value."""
    if isinstance(value, bytes | bytearray):
        return "decode it first: value.decode('utf-8')"
    if isinstance(value, torch.Tensor) or (isinstance(value, Mapping) and "input_ids" in value):
        return (
            "give the texts themselves, which are tokenised here; with token ids call "
            "model(input_ids=…, attention_mask=…, adapters=…)"
        )
    if getattr(value, "ndim", 1) == 2:
        return "give one column of it, such as table['text']"
    return "give a text (str), or a list of them"
