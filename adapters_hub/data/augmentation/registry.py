"""Methods of augmentation by name: the modules of this package that have a ``METHOD``.

Knows no method by name.
"""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from adapters_hub.data import augmentation
from adapters_hub.data.augmentation.method import Method
from adapters_hub.errors import SettingsError


@cache
def methods() -> MappingProxyType[str, type[Method]]:
    """A method's name → its class, in the order in which they are applied."""
    known: list[type[Method]] = []
    for module in pkgutil.iter_modules(augmentation.__path__):
        method = getattr(import_module(f"{augmentation.__name__}.{module.name}"), "METHOD", None)
        if method is not None:
            known.append(method)
    return MappingProxyType({kind.name: kind for kind in sorted(known, key=lambda m: m.order)})


def methods_of(given: Mapping[str, float]) -> tuple[Method, ...]:
    """The methods of a setting ``augment``, with their numbers, in the order of application.

    Raises `SettingsError` for a name that no method has, or a number that cannot be.
    """
    if unknown := sorted(given.keys() - methods().keys()):
        raise SettingsError(
            f"augment {unknown[0]}: no such method; there are {', '.join(sorted(methods()))}"
        )
    for name, amount in given.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise SettingsError(f"augment {name}={amount!r}: give a number")
    return tuple(kind(given[name]) for name, kind in methods().items() if name in given)
