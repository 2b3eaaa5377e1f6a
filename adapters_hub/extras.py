"""Packages that only some uses need: asked for here, so that a missing one is said in one way."""

from importlib import import_module
from types import ModuleType

from adapters_hub.errors import MissingExtraError


def require(module: str, extra: str, what: str) -> ModuleType:
    """A module of one of the package's extras; ``what`` needs it, for the message.

    Raises `MissingExtraError`, which is an `ImportError` too, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {package}: pip install 'adapters-hub[{extra}]'"
        ) from error
