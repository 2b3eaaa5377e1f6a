"""Packages that only some uses need: asked for here, so that a missing one is said in one way.

And what such packages say is said once.
"""

import logging
from importlib import import_module
from types import ModuleType

from adapters_hub.errors import MissingExtraError


class Once(logging.Filter):
    """Lets a record through once, however often a library says the same."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new."""
        said = (record.name, record.getMessage())
        new = said not in self._said
        self._said.add(said)
        return new


def say_once(package: str) -> None:
    """Have the loggers of a package, as far as it is imported, say each thing once."""
    for name in [*logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        ours = any(isinstance(one, Once) for one in logger.filters)
        if name.partition(".")[0] == package and not ours:
            logger.addFilter(Once())


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
