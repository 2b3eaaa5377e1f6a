"""A blend a row in routers and experts: each runs once for every distinct blend of the call.

Knows their modules, plans and tokens; does not know names, files or tasks.

A router chooses by what its weight gives, and experts have an activation between two of theirs, so
no delta can be added to what comes out. But both take a token a row, and each token is of some row
of the batch. So the tokens of a blend's rows go to a copy of the module that has the deltas in its
parameters and shares all else, and the module itself gets those that no adapter acts on. That is
exact; PEFT does so too, for the one blend it takes. Its price is a sum W + ΔW for each distinct
blend in every forward, of those experts alone to which its tokens go.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters_hub.backbone.copies import with_parameters
from adapters_hub.backbone.moe import MoEModule
from adapters_hub.errors import BackboneError
from adapters_hub.runtime.plan import BlendAt, Plan
from adapters_hub.runtime.products import Slices, on

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with, in order and by name."""


class Called(NamedTuple):
    """The very module that is called, which is a copy where another bank acts on it too, and the
    hooks by which others act on it.
    """

    module: nn.Module
    others: set[int]


class Follower(Protocol):
    """What sees what a module gets and gives, and may put something else in the place of either."""

    def enter(self, module: MoEModule, called: nn.Module, given: Given) -> Given | None:
        """Before the module's forward; None changes nothing."""

    def leave(self, module: MoEModule, called: Called, output: Any) -> Any:
        """After it."""


def attach(module: MoEModule, follower: Callable[[], Follower | None]) -> list[RemovableHandle]:
    """Put hooks on a module, which ask each time who follows a plan, and do nothing for None."""

    def before(called: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Given | None:
        current = follower()
        return None if current is None else current.enter(module, called, (inputs, named))

    def after(called: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        current = follower()
        if current is None:
            return None
        others = hook_ids(called) - {handle.id for handle in handles}
        return current.leave(module, Called(called, others), output)

    handles = [
        module.module.register_forward_pre_hook(before, with_kwargs=True),
        # before others, such as those by which transformers records what a router gives
        module.module.register_forward_hook(after, prepend=True),
    ]
    return handles


def hook_ids(module: nn.Module) -> set[int]:
    """The ids of all hooks that `attach` put on a module, for whomever."""
    hooks = {**module._forward_hooks, **module._forward_pre_hooks}
    return {number for number, hook in hooks.items() if hook.__module__ == __name__}


def input_of(given: Given) -> Tensor:
    """The hidden states (tokens, in) among what a module is called with."""
    inputs, named = given
    x: Tensor = (*inputs, *named.values())[0]
    return x


@dataclass(frozen=True)
class SplitCall:
    """A call of a module, cut into the rows, or tokens, of each distinct blend.

    ``units``: how many there are; ``blends``: those with an effect; ``bare``: the others.
    """

    module: MoEModule
    given: Given
    units: int
    blends: Sequence[tuple[BlendAt, Tensor | None]]
    bare: Tensor

    @classmethod
    def of(cls, plan: Plan, module: MoEModule, given: Given) -> "SplitCall | None":
        """The call by a plan, None where that changes nothing."""
        x = input_of(given)
        units = plan.units(module.path, x)
        blends = plan.blends_at(module.path, module.sites, x.device)
        acting = [(blend, rows) for blend, rows in blends if blend]
        if not acting:
            return None
        none = torch.empty(0, dtype=torch.long, device=x.device)
        bare = next((rows for blend, rows in blends if rows is not None and not blend), none)
        return cls(module, given, units, acting, bare)

    def take(self, rows: Tensor | None) -> Given:
        """What the module would be called with for some of the rows; None: all of them."""
        inputs, named = self.given
        count = len(input_of(self.given))

        def some(value: Any) -> Any:
            if rows is None or not isinstance(value, Tensor) or value.shape[:1] != (count,):
                return value
            return value.unflatten(0, (self.units, count // self.units))[rows].flatten(0, 1)

        return tuple(map(some, inputs)), {name: some(value) for name, value in named.items()}

    def output(self, plan: Plan, called: Called, of_bare: Any) -> Any:
        """What the module gives for the whole call, from what it gave for the ``bare`` rows."""
        outputs, places = ([of_bare], [self.bare]) if len(self.bare) else ([], [])
        for blend, rows in self.blends:
            outputs.append(self._run(plan, called, blend, self.take(rows)))
            if rows is None or len(rows) == self.units:
                return outputs[0]
            places.append(rows)
        return self._joined(outputs, places, torch.cat(places).argsort())

    def _run(self, plan: Plan, called: Called, blend: BlendAt, given: Given) -> Any:
        """What a copy gives that has a blend's deltas in its parameters, and no expert too many."""
        inputs, named = given
        old = {name: w for name, w in called.module._parameters.items() if w is not None}
        if any(w.is_meta for w in old.values()):
            raise BackboneError(
                f"{self.module.path} is offloaded by the backbone's device_map, and adapters on "
                "routers and experts need their weights in memory; keep it on a device"
            )
        weights: dict[str, Tensor] = {**old}
        # another bank that acts on the copy counts on all experts
        narrowed = None if called.others else self.module.hit((*inputs, *named.values()))
        if narrowed is not None:
            index, hit, among = narrowed
            each = self.module.experts
            weights = {n: w[hit] if w.shape[:1] == (each,) else w for n, w in old.items()}
            inputs = tuple(among if value is index else value for value in inputs)
            named = {name: among if value is index else value for name, value in named.items()}
        for name, sites in self.module.parameters.items():
            slices = [(amount, plan.slices(sites, atom, old[name])) for atom, amount in blend]
            deltas = [(amount, of_atom) for amount, of_atom in slices if of_atom is not None]
            if narrowed is not None:
                deltas = [(amount, Slices(d.a[hit], d.b[hit])) for amount, d in deltas]
            weights[name] = add_deltas(self.module, weights[name], deltas)
        copy = with_parameters(called.module, weights, hooks=called.others)
        if narrowed is not None:
            vars(copy)["num_experts"] = len(hit)
        return copy(*inputs, **named)

    def _joined(self, outputs: Sequence[Any], places: Sequence[Tensor], back: Tensor) -> Any:
        if isinstance(outputs[0], tuple):
            return tuple(
                self._joined(of_all, places, back) for of_all in zip(*outputs, strict=True)
            )
        sizes = [len(rows) for rows in places]
        if any(len(out) % size for out, size in zip(outputs, sizes, strict=True)):
            raise BackboneError(
                f"{self.module.path} gives {[len(out) for out in outputs]} for {sizes} rows, so "
                "they cannot be told apart: use one blend for the whole batch"
            )
        parts = [o.unflatten(0, (n, len(o) // n)) for o, n in zip(outputs, sizes, strict=True)]
        return torch.cat(parts)[back].flatten(0, 1)


def add_deltas(module: MoEModule, weight: Tensor, deltas: Iterable[tuple[float, Slices]]) -> Tensor:
    """A parameter's values and Σ wᵢ·Bᵢ·Aᵢ of each slice, in their precision."""
    total = weight if weight.dim() == 3 else weight[None]
    for amount, slices in deltas:
        a, b = on(slices.a, weight), on(slices.b, weight)
        left, right = (a.mT, b.mT) if module.transposed else (b, a)
        total = torch.baddbmm(total, left, right, alpha=amount)
    return total.view_as(weight)
