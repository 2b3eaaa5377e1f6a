"""PEFT's ``target_parameters``: LoRA on parameters that are no linear layer's, by their names.

Knows how PEFT matches these names and how it names what it saves; does not know models, without
which nobody can say which parameters a module has and how many matrices one of them holds.

PEFT wraps the module that has such a parameter, and for a second parameter wraps the wrapper: the
last one's factors are under ``….experts``, those of the one before under ``….experts.base_layer``.
"""

from collections.abc import Collection, Iterable, Sequence

_WRAPPED = ".base_layer"


def is_targeted(path: str, targets: Collection[str]) -> bool:
    """Whether a parameter's path is one of the targets (a set), or ends with one."""
    parts = path.split(".")
    return any(".".join(parts[first:]) in targets for first in range(len(parts)))


def wrapped_modules(paths: Iterable[str], targets: Collection[str]) -> set[str]:
    """The paths in a file whose module may have one of the targets."""
    owners = {target.rpartition(".")[0] for target in targets}
    return {p for p in paths if "" in owners or is_targeted(unwrapped(p)[0], owners)}


def unwrapped(path: str) -> tuple[str, int]:
    """The module that a path in a file is of, and how many wrappers are around this one."""
    module = path
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module, (len(path) - len(module)) // len(_WRAPPED)


def wrapped(module: str, parameters: Sequence[str]) -> dict[str, str]:
    """Parameter → path in a file, of those wrapped of one module, in the order that it has them."""
    last = len(parameters) - 1
    return {name: module + _WRAPPED * (last - n) for n, name in enumerate(parameters)}
