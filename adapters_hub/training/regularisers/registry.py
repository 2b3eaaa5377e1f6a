"""The methods by name: the modules in ``methods``, each imported when it is asked for.

Knows no method by name, and brings in no torch until a class is asked for.
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from adapters_hub.training.regularisers import methods

if TYPE_CHECKING:
    from adapters_hub.training.regularisers.base import Regulariser


@cache
def method_names() -> tuple[str, ...]:
    """The names of all methods, in the order of the alphabet."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(methods.__path__)))


def method_class(name: str) -> "type[Regulariser]":
    """The class of a method's name."""
    method: type[Regulariser] = import_module(f"{methods.__name__}.{name}").METHOD
    return method
