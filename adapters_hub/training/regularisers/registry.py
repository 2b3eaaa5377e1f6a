"""The names of methods: those of the modules in ``methods``. Brings in no torch."""

import pkgutil
from functools import cache

from adapters_hub.training.regularisers import methods


@cache
def method_names() -> tuple[str, ...]:
    """The names of all methods, in the order of the alphabet."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(methods.__path__)))
