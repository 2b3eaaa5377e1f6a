"""Mixtures of experts: their routers and experts, whose parameters adapters act on.

Knows how transformers builds them; does not know adapters. Neither is a linear layer: a router
keeps its matrix to itself and gives scores, and the experts of a layer keep theirs in stacks,
(experts, out, in) or, ``transposed``, (experts, in, out).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

_LAYERS = ("torch.", "bitsandbytes.", "transformers.pytorch_utils")
"""Where layers are written whose output is no more than their product."""


@dataclass(frozen=True, eq=False)
class MoEModule:
    """A router, or all experts of a layer, which are called with a token a row.

    ``parameters`` maps each parameter, in the order in which the module has them, to its sites: a
    router's weight is the one site of the module's path, a stack has a site for each expert.
    """

    path: str
    module: nn.Module
    parameters: dict[str, tuple[str, ...]]
    transposed: bool = False

    @cached_property
    def sites(self) -> frozenset[str]:
        """All of its sites."""
        return frozenset(site for sites in self.parameters.values() for site in sites)

    @property
    def experts(self) -> int:
        """How many there are; 1 of a router."""
        return len(next(iter(self.parameters.values())))

    def matrices(self) -> dict[str, Tensor]:
        """Site → its matrix, as it lies in the parameter."""
        stacks = ((self.module.get_parameter(p), sites) for p, sites in self.parameters.items())
        return {
            site: weight[n] if weight.dim() == 3 else weight
            for weight, sites in stacks
            for n, site in enumerate(sites)
        }

    def hit(self, call: Iterable[object]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of what the module is called with: the indices of experts (tokens, k), those experts that
        are hit (n,), in order, and the indices among them; None where all are, and of a router.
        """
        if self.experts == 1 or self.module._is_expert_parallel:  # whose index may be of none here
            return None
        tensors = (value for value in call if isinstance(value, Tensor))
        index = next((t for t in tensors if not t.is_floating_point()), None)
        if index is None or not len(index):
            return None
        hit, among = index.unique(return_inverse=True)
        return None if len(hit) == self.experts else (index, hit, among)

    def shape(self, parameter: str) -> tuple[int, int]:
        """(in, out) features of each site of a parameter."""
        *_, rows, columns = self.module.get_parameter(parameter).shape
        return (rows, columns) if self.transposed else (columns, rows)


def find_moe(model: nn.Module, prefix: str) -> dict[str, MoEModule]:
    """Every router, and the experts of every layer, by their paths below ``prefix``.

    Experts are known by what transformers' ``use_experts_implementation`` notes on them, and their
    router as the module beside them that has a weight for each.
    """
    modules = dict(model.named_modules())
    return {
        part.path: part
        for path, module in modules.items()
        if hasattr(module, "is_transposed")
        for part in _parts(modules[path.rpartition(".")[0]], module, path.removeprefix(prefix))
    }


def _parts(block: nn.Module, experts: nn.Module, path: str) -> Iterator[MoEModule]:
    stacks = [
        name
        for name, weight in experts.named_parameters(recurse=False)
        if weight.dim() == 3 and weight.is_floating_point()
    ]
    if not stacks:
        return
    count = len(experts.get_parameter(stacks[0]))
    for name, module in block.named_children():
        weight = module._parameters.get("weight")
        layer = type(module).forward.__module__.startswith(_LAYERS)
        if weight is not None and weight.shape[:-1] == (count,) and not layer:
            beside = f"{path.rpartition('.')[0]}.{name}"
            yield MoEModule(beside, module, {"weight": (beside,)})
    sites = {name: tuple(f"{path}.{n}.{name}" for n in range(count)) for name in stacks}
    yield MoEModule(path, experts, sites, bool(experts.is_transposed))
