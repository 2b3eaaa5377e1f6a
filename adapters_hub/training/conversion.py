"""Values of settings as flags and YAML give them, turned into the types that a dataclass says.

Knows types and how YAML 1.1 and command lines write values; knows no setting by name.
"""

import argparse
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin

from adapters_hub.errors import SettingsError


class Arguments(Protocol):
    """An `argparse` parser, or a group of one."""

    def add_argument(self, *name_or_flags: str, **options: Any) -> argparse.Action:
        """As of `argparse.ArgumentParser`."""


def add_flag(arguments: Arguments, names: list[str], hint: Any, help: str, default: object) -> None:
    """A flag for a setting, called by any of ``names``, of which the first is the setting's."""
    flags = ["--" + name.replace("_", "-") for name in names]
    options: dict[str, Any] = {"dest": names[0], "default": argparse.SUPPRESS}
    options["help"] = f"{help} [{shown(default)}]".replace("%", "%%")
    if hint is bool:
        arguments.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
        return
    if get_origin(hint) in (tuple, dict):
        options["nargs"] = "*"
    elif allowed := choices(hint):
        options["choices"] = allowed
    else:
        options["type"] = plain_type(hint)
    metavar = "NAME=COLUMN" if get_origin(hint) is dict else None
    arguments.add_argument(*flags, metavar=metavar, **options)


def converted(
    name: str,
    value: Any,
    hint: Any,
    where: str,
    is_whole: Callable[[str], bool] = lambda text: False,
) -> Any:
    """A value from YAML or flags, as the dataclass wants it; ``where`` is for messages.

    Texts of a tuple are split at commas, but for those of which ``is_whole`` is true.
    """
    if value is False and (get_origin(hint) is tuple or choices(hint)):
        value = "no"  # what YAML 1.1 makes of an unquoted no
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [] if value is None else [value]
        texts = ["no" if item is False else str(item) for item in items]
        parts = [[text] if is_whole(text) else text.split(",") for text in texts]
        return tuple(part.strip() for some in parts for part in some if part.strip())
    if get_origin(hint) is dict:
        if isinstance(value, Mapping):
            return {str(k): str(v) for k, v in value.items()}
        items = value if isinstance(value, list) else [] if value is None else [value]
        pairs = [str(item).partition("=") for item in items]
        if any(not column for _, _, column in pairs):
            raise SettingsError(f"{where}: {name}: write NAME=COLUMN")
        return {key: column for key, _, column in pairs}
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
    return kind(value) if kind is float else value


def read_yaml(path: str) -> dict[str, Any]:
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


def plain_type(hint: Any) -> type:
    """The class of a type's values other than None."""
    hint = _without_none(hint)
    return str if get_origin(hint) is Literal else hint


def choices(hint: Any) -> tuple[str, ...]:
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


def _without_none(hint: Any) -> Any:
    if not is_optional(hint):
        return hint
    return next(part for part in get_args(hint) if part is not type(None))
