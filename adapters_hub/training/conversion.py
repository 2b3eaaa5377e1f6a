"""Values of settings as flags and YAML give them, turned into the types that a dataclass says.

Knows types and how YAML 1.1 and command lines write values; knows no setting by name.
"""

import argparse
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from adapters_hub.errors import SettingsError


def add_flag(
    group: argparse._ArgumentGroup, names: list[str], hint: object, help: str, default: object
) -> None:
    """A flag for a setting, called by any of ``names``, of which the first is the setting's."""
    flags = ["--" + name.replace("_", "-") for name in names]
    help = f"{help} [{shown(default)}]".replace("%", "%%")
    add = partial(group.add_argument, *flags, dest=names[0], default=argparse.SUPPRESS, help=help)
    if _without_none(hint) is bool:
        add(action=argparse.BooleanOptionalAction)
    elif get_origin(hint) is dict:
        add(nargs="*", metavar=f"NAME={_of_mapping(names[0], hint)}")
    elif get_origin(hint) is tuple:
        add(nargs="*")
    elif allowed := choices(hint):
        add(choices=allowed)
    else:
        add(type=plain_type(hint))


def converted(
    name: str,
    value: object,
    hint: object,
    where: str,
    is_whole: Callable[[str], bool] = lambda text: False,
) -> object:
    """A value from YAML or flags, as the dataclass wants it; ``where`` is for messages.

    Texts of a tuple are split at commas, but for those of which ``is_whole`` is true.
    """
    if value is False and (get_origin(hint) is tuple or choices(hint)):
        value = "no"  # what YAML 1.1 makes of an unquoted no
    if get_origin(hint) is tuple:
        texts = ["no" if item is False else str(item) for item in _items(value)]
        parts = [[text] if is_whole(text) else text.split(",") for text in texts]
        return tuple(part.strip() for some in parts for part in some if part.strip())
    if get_origin(hint) is dict:
        pairs = named_values(name, value, where, _of_mapping(name, hint))
        if get_args(hint)[1] is not float:
            return pairs
        return {key: _number(f"{name} {key}", text, where) for key, text in pairs.items()}
    kind = plain_type(hint)
    if value is None and is_optional(hint):
        return None
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-3 as text
    fits = isinstance(value, bool) == (kind is bool) and (
        isinstance(value, kind) or (kind is float and isinstance(value, int))
    )
    if not fits and not choices(hint):
        raise SettingsError(f"{where}: {name}={value!r} should be of type {kind.__name__}")
    return float(value) if kind is float and isinstance(value, int) else value


def named_values(name: str, value: object, where: str, kind: str) -> dict[str, str]:
    """A setting that is a mapping: one of YAML, or ``NAME=VALUE`` any number of times.

    ``kind``: what a value is, for messages.
    """
    if isinstance(value, Mapping):
        return {str(k): str(v) for k, v in value.items()}
    pairs = [str(item).partition("=") for item in _items(value)]
    if any(not text for _, _, text in pairs):
        raise SettingsError(f"{where}: {name}: write NAME={kind}")
    return {key: text for key, _, text in pairs}


def read_yaml(path: str) -> dict[str, object]:
    """A YAML file's mapping, its keys with underscores; `SettingsError` for any other file."""
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path}: not YAML ({error})") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"{path}: a YAML mapping of settings is expected")
    return {str(key).replace("-", "_"): value for key, value in (loaded or {}).items()}


def is_optional(hint: object) -> bool:
    """Whether a type allows None."""
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def plain_type(hint: object) -> type:
    """The class of a type's values other than None."""
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return str
    assert isinstance(hint, type)
    return hint


def choices(hint: object) -> tuple[str, ...]:
    """The values that a type lists; none where it lists none."""
    hint = _without_none(hint)
    return get_args(hint) if get_origin(hint) is Literal else ()


def shown(value: object) -> str:
    """A value on one line, for tables and help."""
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value)


def _of_mapping(name: str, hint: object) -> str:
    """What the values of a mapping are, for help and messages."""
    if get_args(hint)[1] is float:
        return "NUMBER"
    return "COLUMN" if name == "columns" else "VALUE"


def _number(name: str, text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{where}: {name}={text}: {text!r} is no number") from None


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _without_none(hint: object) -> object:
    if not is_optional(hint):
        return hint
    return next(part for part in get_args(hint) if part is not type(None))
