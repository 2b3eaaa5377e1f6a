"""The bank: all adapters resident beside one backbone, and the hooks that add their deltas.

Knows linear layers and slots; does not know names' meaning, files, heads or tasks. The arithmetic
is the plan's.

A forward hook at every site adds what the current plan says, and costs nothing where there is none.
The current plan is a context variable: one a thread, and a call that fails leaves none.
Plans of the same atoms share their stacked factors, which live as long as one of the plans. Plans
of training are kept like others: batches hardly ever repeat, but their frozen adapters do, and so
are stacked once; what learns is read anew in every forward.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from adapters_hub.backbone.backbone import ContextPair, site_shapes
from adapters_hub.backbone.moe import MoEModule
from adapters_hub.errors import BackboneError
from adapters_hub.runtime.compiled import CompiledSlots
from adapters_hub.runtime.moe import Called, Given, SplitCall, attach, hook_ids, input_of
from adapters_hub.runtime.plan import Plan, Slot
from adapters_hub.runtime.products import (
    FlatFactors,
    Part,
    SiteFactors,
    Sites,
    Slices,
    Stack,
    shapes,
)

_MAX_PLANS = 8
MEMORY = 2 << 30
"""Bytes for resident adapters and what is made of them, unless said otherwise."""


@dataclass(frozen=True)
class MergedView:
    """A model with a blend in its weights, the ``bytes`` it does not share, and what it is of."""

    model: nn.Module
    bytes: int
    key: tuple[object, ...]


class Bank:
    """Slots for adapters beside a backbone's sites, and the plan that the sites follow.

    ``put`` makes an adapter resident, ``drop`` frees it; both are a dictionary's work and touch no
    module. ``memory`` bytes hold the adapters, what plans stacked of them, and the merged view.
    Where they do not, the least recently used go: plans with their stacks, the view, then slots,
    except pinned ones; ``evicted`` is told their names. What a call needs stays in any case.
    """

    def __init__(
        self,
        sites: Mapping[str, nn.Module],
        memory: int = MEMORY,
        evicted: Callable[[str], object] | None = None,
        moe: Mapping[str, MoEModule] | None = None,
    ) -> None:
        self.sites = sites
        self.moe = moe or {}
        self._shapes = site_shapes(sites, self.moe)
        self.memory = memory
        self.evicted = evicted
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._held: Counter[int] = Counter()  # slots that share their factors count once
        self._bytes = 0
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._view: MergedView | None = None
        self._stacks: WeakValueDictionary[Hashable, Stack | Slices] = WeakValueDictionary()
        self._groups: dict[str, Sites] = {}  # the sites that get their input together
        self._mixed: set[str] = set()  # those whose input does not tell rows apart
        self.bypassed: frozenset[str] = frozenset()  # those that act without being called
        self.compiled_slots: CompiledSlots | None = None
        self._lock = threading.RLock()
        self._run: ContextVar[Run | _Watch | None] = ContextVar("adapters_hub_plan", default=None)
        self._hooks = [
            module.register_forward_hook(self._hook(site), with_kwargs=True)
            for site, module in sites.items()
        ]
        for module in self.moe.values():
            self._hooks += attach(module, self._follower)

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """What the resident adapters take."""
        return self._bytes

    @property
    def learning(self) -> list[str]:
        """The resident adapters that are being trained."""
        return [name for name, slot in self._slots.items() if slot.trained]

    @property
    def bytes_beside(self) -> int:
        """What plans stacked of the adapters, and the merged view."""
        view = self._view
        return self._stacked() + (0 if view is None else view.bytes)

    def _stacked(self) -> int:
        # a list first: another thread's forward may be stacking
        stacks = [ref() for ref in list(self._stacks.valuerefs())]
        return sum(stack.bytes for stack in stacks if stack is not None)

    def put(
        self,
        name: str,
        factors: SiteFactors,
        scaling: Mapping[str, float],
        *,
        trained: bool = False,
        pinned: bool = False,
        keep: Collection[str] = (),
    ) -> Slot:
        """Make an adapter resident under a name; an old one of that name is replaced.

        ``factors``: site → A (r, in), B (out, r). ``keep`` names slots that must not go to make
        room, even if there are then more than ``memory`` bytes. Raises `BackboneError` for a wrong
        site or shape.
        """
        for site, a, b in shapes(factors):
            shape = self._shapes.get(site)
            if shape is None:
                raise BackboneError(f"{name!r} adapts {site}, which is no site of this backbone")
            if site in self.bypassed:
                raise BackboneError(
                    f"{name!r} adapts {site}, whose weight the backbone uses without calling the "
                    "layer, so nothing can be added beside it; train without it (exclude_modules), "
                    "or merge the adapter with PEFT and take the result as a backbone"
                )
            if (a[1], b[0]) != shape or a[0] != b[1]:
                raise BackboneError(
                    f"{name!r} at {site}: A {tuple(a)} and B {tuple(b)} do not fit a "
                    f"layer of {shape[0]} inputs and {shape[1]} outputs"
                )
        kept = factors if isinstance(factors, FlatFactors) else dict(factors)
        slot = Slot(kept, dict(scaling), trained, pinned or trained)
        with self._lock:
            self.drop(name)
            self._slots[name] = slot
            self._count(slot, 1)
            self._make_room({name, *keep})
        return slot

    def _make_room(self, keep: Set[str], needed: int = 0) -> None:
        """Let go of what there is no room for, beside ``needed`` bytes more.

        Stacks go before adapters: they are made again in less time than a file is read.
        """
        self._drop_plans(needed)
        if self._over(needed):
            self.drop_view()
        spare = [n for n, slot in self._slots.items() if not slot.pinned and n not in keep]
        for name in spare:
            if not self._over(needed):
                return
            self.drop(name)
            if self.evicted is not None:
                self.evicted(name)

    def _over(self, needed: int = 0) -> bool:
        return self._bytes + self.bytes_beside + needed > self.memory

    def _drop_plans(self, needed: int = 0) -> None:
        while self._plans and self._stacked() and self._over(needed):
            self._plans.popitem(last=False)

    @property
    def view(self) -> MergedView | None:
        """The merged view that is kept."""
        return self._view

    def keep_view(self, view: MergedView) -> None:
        """Keep a merged view, the only one, until its memory is needed."""
        with self._lock:
            self._view = view
            self._drop_plans()

    def drop_view(self) -> None:
        """Let the merged view go: it may hold what has left, or its memory is needed."""
        self._view = None

    def drop(self, name: str) -> None:
        """Forget an adapter, if it is resident. Calls under way keep what they use."""
        with self._lock:
            old = self._slots.pop(name, None)
            if old is not None:
                self.drop_view()
                self._count(old, -1)
                stale = [key for key, plan in self._plans.items() if old in plan.atoms]
                for key in stale:
                    del self._plans[key]

    def _count(self, slot: Slot, change: int) -> None:
        before = self._held[id(slot.factors)]
        self._held[id(slot.factors)] += change
        if not before or not before + change:
            self._bytes += change * slot.bytes
        if not before + change:
            del self._held[id(slot.factors)]

    def names(self) -> list[str]:
        """The resident adapters, least recently used first."""
        return list(self._slots)

    def plan(
        self,
        blends: Sequence[Mapping[str, float]],
        index: Tensor | Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> Plan | None:
        """The plan for a call.

        ``blends``: the distinct blends, each name → weight. ``index``: which of them each row
        (rows,) or each token (rows, tokens) uses; None with one blend for a batch of any size.
        Returns None where no adapter is used at all. Raises `KeyError` for a name not resident.
        Adapters that it does not use may go, to make room for what it will stack.
        """
        if index is None and len(blends) != 1:
            raise ValueError("several blends need an index of rows")
        with torch.inference_mode(False):
            rows = None if index is None else torch.as_tensor(index, dtype=torch.long)
        key = (
            tuple(tuple(blend.items()) for blend in blends),
            None if rows is None else (tuple(rows.shape), rows.numpy().tobytes()),
            dropout,
        )
        with self._lock:
            # in one order, so that plans of the same atoms share their stacks
            names = sorted({name for blend in blends for name in blend})
            for name in names:
                self._slots.move_to_end(name)
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
            if not names:
                return None
            with torch.inference_mode(False):
                weights = torch.tensor([[blend.get(n, 0.0) for n in names] for blend in blends])
            atoms = tuple(self._slots[name] for name in names)
            plan = Plan(atoms, weights, rows, dropout, self._stacks)
            if rows is not None and (mixed := self._mixed & plan.sites):
                raise BackboneError(
                    f"{min(mixed)} of this backbone does not see its rows one by one (as far as a "
                    "probe tells), so a batch must have one blend for all rows"
                )
            frozen = [atom.bytes for atom in atoms if not atom.trained]
            if all(kept.atoms != atoms for kept in self._plans.values()):  # else it shares stacks
                self._make_room({*names}, sum(frozen) if len(frozen) > 1 else 0)
            self._plans[key] = plan
            if len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
            return plan

    @contextmanager
    def using(self, plan: Plan | None) -> Iterator[None]:
        """Follow a plan in every forward of this thread inside the block; None is bare."""
        token = self.follow(plan)
        try:
            yield
        finally:
            self.leave(token)

    def follow(self, plan: Plan | None) -> "Followed":
        """Follow a plan until `leave` gets what this returns; for what cannot be a block."""
        compiled = self.compiled_slots
        if compiled is not None:
            compiled.enter(plan)
        return self._run.set(None if plan is None else Run(plan, self._groups)), compiled

    def leave(self, followed: "Followed") -> None:
        """Follow again what was followed before."""
        token, compiled = followed
        self._run.reset(token)
        if compiled is not None:
            compiled.leave(self.current())

    def reserve_compiled_slots(
        self, slots: int, rank: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Let compiled forwards see adapters in `CompiledSlots`; others go on as they did."""
        layers = {site: self._shapes[site] for site in self.sites}
        self.compiled_slots = CompiledSlots(layers, slots, rank, device, dtype)

    @contextmanager
    def watching(self, rows: int, tokens: int) -> Iterator[None]:
        """Learn from a forward of so many rows and tokens inside the block what the sites see.

        Which of them get their input together, and whether its first dimension is the rows, or
        rows × tokens. Where it is something else, as in models that put tokens first, a plan of
        several blends is refused: their rows would be mistaken. Nothing is learnt from a forward
        that fails.
        """
        watch = _Watch((rows, rows * tokens))
        token = self._run.set(watch)
        try:
            yield
        finally:
            self._run.reset(token)
        self._groups, self._mixed = watch.groups, watch.mixed

    def called(self) -> Collection[str]:
        """The sites whose layers were called in the forward that was watched."""
        return self._groups.keys()

    def distrust(self) -> None:
        """Refuse several blends in a batch everywhere, since nothing is known of the inputs."""
        self._mixed = set(self._shapes)

    def current(self) -> Plan | None:
        """The plan this thread follows now."""
        run = self._run.get()
        return None if run is None else run.plan

    def checkpoint_contexts(self) -> ContextPair:
        """For gradient checkpointing: the second forward follows the plan of the first.

        The backward that runs it may run in another thread, which follows no plan. Give it
        as ``gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": …}``.
        """
        return _Following(self), _Following(self)

    @property
    def alone(self) -> bool:
        """Whether no other bank acts at the sites."""
        return len(self.hook_ids()) == len(self._hooks)

    def detach(self) -> None:
        """Take the hooks off the backbone, which is then as if there had never been a bank."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def hook_ids(self) -> set[int]:
        """The ids under which the sites hold the hooks of banks, and so do copies of the sites.

        Other banks' too: a model that the user brought may have several, each for its calls alone.
        """
        of_layers = {
            number
            for module in self.sites.values()
            for number, hook in module._forward_hooks.items()
            if hook.__module__ == __name__
        }
        return of_layers.union(*(hook_ids(module.module) for module in self.moe.values()))

    def _follower(self) -> "Run | _Watch | None":
        """Who sees the calls of routers and experts; a compiled model has no adapters there."""
        if torch.compiler.is_compiling() and self.compiled_slots is not None:
            return None
        return self._run.get()

    def _hook(self, site: str) -> Callable[..., Tensor | None]:
        current = self._run.get

        def add_delta(
            module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> Tensor | None:
            if torch.compiler.is_compiling() and self.compiled_slots is not None:
                return self.compiled_slots.add(site, (*inputs, *named.values())[0], output)
            run = current()
            return None if run is None else run.add(site, (*inputs, *named.values())[0], output)

        return add_delta


Hidden = list[Sequence[Tensor]]
"""What each part's first product gave for each site."""
Shared = tuple[Tensor, Sites, int, list[Part], Hidden, int]


class Run:
    """A plan being followed by one thread, and what the sites that share an input share.

    ``groups`` says which sites do, if the bank has watched; what is remembered is used only for the
    very same tensor, unchanged, so nothing depends on it but time.
    """

    def __init__(self, plan: Plan, groups: Mapping[str, Sites]) -> None:
        self.plan = plan
        self._groups = groups
        self._shared: Shared | None = None  # one value, so that threads cannot tear it
        self._split: dict[int, SplitCall | None] = {}  # of each router or experts being called

    def add(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """The site's output y (…, out) for its input x (…, in), with the plan's deltas added."""
        group = self._groups.get(site, (site,))
        if x.device != y.device:  # accelerate's hook brought x to where the layer's weight is
            group, x = (site,), x.to(y.device)
        if len(group) > 1:
            shared = self._shared
            if shared and shared[0] is x and shared[1] is group and shared[2] == x._version:
                if site == group[-1]:
                    self._shared = None
                parts, hidden, units = shared[3:]
                return _add(site, group, parts, hidden, units, y)
            if not self.plan.shares(group):
                group = (site,)
        if site not in self.plan.sites:
            return y
        units = self.plan.units(site, x)
        flat = x.reshape(-1, x.shape[-1])
        parts = self.plan.parts(group, flat)
        hidden = [part.first(flat, units, self.plan.dropout) for part in parts]
        if len(group) > 1 and not x.is_inference():  # which has no version to tell a change by
            self._shared = (x, group, x._version, parts, hidden, units)
        return _add(site, group, parts, hidden, units, y)

    def enter(self, module: MoEModule, called: nn.Module, given: Given) -> Given | None:
        """What a router or experts see of a call: the rows that no adapter acts on."""
        call = self._split[id(called)] = SplitCall.of(self.plan, module, given)
        return None if call is None else call.take(call.bare)

    def leave(self, module: MoEModule, called: Called, output: Any) -> Any:
        """What they give for the whole of it."""
        call = self._split.pop(id(called.module), None)
        return None if call is None else call.output(self.plan, called, output)


class _Watch:
    """Stands where a `Run` does, and notes the sites called one after the other on one tensor, and
    those whose input begins with another dimension than the rows.
    """

    plan = None

    def __init__(self, first: tuple[int, ...]) -> None:
        self.groups: dict[str, Sites] = {}
        self.mixed: set[str] = set()
        self._first = first
        self._x: Tensor | None = None
        self._sites: Sites = ()

    def add(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        if self._x is not x or site in self._sites:
            self._x, self._sites = x, ()
        self._sites = (*self._sites, site)
        self.groups |= dict.fromkeys(self._sites, self._sites)
        if x.shape[0] not in self._first:
            self.mixed.add(site)
        return y

    def enter(self, module: MoEModule, called: nn.Module, given: Given) -> None:
        self.groups |= {site: (site,) for site in module.sites}
        if input_of(given).shape[0] not in self._first:
            self.mixed |= module.sites

    def leave(self, module: MoEModule, called: Called, output: Any) -> None:
        pass


def _add(
    site: str, group: Sites, parts: list[Part], hidden: Hidden, units: int, y: Tensor
) -> Tensor:
    place = group.index(site)
    out = y.reshape(-1, y.shape[-1])
    for part, of_sites in zip(parts, hidden, strict=True):
        out = part.second(of_sites[place], site, out, units)
    return out.view(y.shape)


Followed = tuple[Token[Run | _Watch | None], CompiledSlots | None]


class _Following:
    """A context that follows the plan of the moment it was made in; can be entered repeatedly."""

    def __init__(self, bank: Bank) -> None:
        self._bank, self._plan = bank, bank.current()
        self._tokens: list[Followed] = []

    def __enter__(self) -> None:
        self._tokens.append(self._bank.follow(self._plan))

    def __exit__(self, *failure: object) -> None:
        self._bank.leave(self._tokens.pop())
