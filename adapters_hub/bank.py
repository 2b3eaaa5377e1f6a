"""The bank: all adapters resident beside one backbone, and the one forward that adds their deltas.

Knows linear layers, factors and rows; does not know names, files, heads or tasks.

A call follows one *plan*: which rows (or tokens) use which adapters at which weight. At a site with
weight W the output ``y = W x`` becomes

    y += ((x A_allᵀ) ⊙ M) B_allᵀ

where A_all (R, in) and B_all (out, R) stack the factors of the distinct adapters of the batch (its
atoms), R is the sum of their ranks, and M (rows, R) holds scaling × weight, zero where a row does
not use an atom. Two products, however many adapters; where rows per atom are many it is cheaper to
take each atom's rows alone, and the plan does so. Bare rows cost nothing but the product with zero.

The current plan is a context variable: threads have their own, and a call that fails leaves none.
Plans of the same atoms share their stacked factors, which live as long as one of the plans.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters_hub.backbone import site_shape
from adapters_hub.errors import BackboneError

Factors = Mapping[str, tuple[Tensor, Tensor]]

SLICE_OVERHEAD = 400_000
"""Multiply-adds that cost as much as taking one atom's rows apart (index, product, add back): the
price that decides between one masked product and a slice an atom. Measured on two CPU cores."""

_MAX_PLANS = 8


@dataclass(frozen=True, eq=False)
class Slot:
    """One resident adapter: its factors and its scaling at each site. Compared by identity.

    A ``pinned`` one is never evicted; a ``trained`` one keeps gradients, and is pinned.
    """

    factors: Factors
    scaling: Mapping[str, float]
    trained: bool = False
    pinned: bool = False


@dataclass(frozen=True, eq=False)
class Stack:
    """The factors of some atoms at one site: ``a`` (R, in), ``b`` (out, R)."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Part:
    """A piece of a site's delta: stacked factors, and who uses them at which scale.

    ``scale`` None, or (R,) for all rows alike, or (n, 1, R) a row, or (n, tokens, R) a token;
    ``rows`` None for the whole batch, else n row indices.
    """

    stack: Stack
    scale: Tensor | None
    rows: Tensor | None
    trained: bool

    def add(self, x: Tensor, y: Tensor, dropout: float) -> Tensor:
        """Y (rows, tokens, out) with this part's delta for x (rows, tokens, in) added."""
        a, b = self.stack.a.to(x.dtype), self.stack.b.to(x.dtype)
        own = x if self.rows is None else x.index_select(0, self.rows)
        if dropout and self.trained:
            own = functional.dropout(own, dropout)
        hidden = functional.linear(own, a)
        if self.scale is not None:
            hidden = hidden * self.scale.to(hidden.dtype)
        if self.rows is not None:
            return y.index_add(0, self.rows, functional.linear(hidden, b).to(y.dtype))
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), hidden.reshape(-1, hidden.shape[-1]), b.t())
        return flat.view(y.shape)


@dataclass
class Plan:
    """Who uses what in one call.

    ``atoms`` are the distinct adapters; ``weights`` (blends, atoms) their weights in each distinct
    blend; ``index`` says which blend each row (rows,) or token (rows, tokens) uses, and is None
    where one blend serves every row of a batch of any size.
    """

    atoms: tuple[Slot, ...]
    weights: Tensor
    index: Tensor | None = None
    dropout: float = 0.0
    _stacks: Any = field(default_factory=WeakValueDictionary, repr=False)  # all plans'
    _parts: dict[Any, list[Part]] = field(default_factory=dict)
    _scales: dict[Any, Any] = field(default_factory=dict)
    _uses: list[int] | None = None

    @property
    def rows(self) -> int | None:
        """The number of rows of the batch, or None where any will do."""
        return None if self.index is None else self.index.shape[0]

    def add_delta(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """The site's output y (…, out) for its input x (…, in), with the plan's deltas added.

        The first dimension of x may be the rows, each repeated k times (beams), or rows × tokens.
        """
        present = [atom for atom in self.atoms if site in atom.factors]
        if not present:
            return y
        rows = self.rows
        if rows is None:
            x3, y3 = x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
        elif x.shape[0] % rows:
            raise BackboneError(
                f"{site} got a batch of {x.shape[0]} for a plan of {rows} rows: give `adapters` "
                "one blend a row"
            )
        else:
            x3, y3 = x.reshape(rows, -1, x.shape[-1]), y.reshape(rows, -1, y.shape[-1])
        for part in self._parts_at(site, present, x3):
            y3 = part.add(x3, y3, self.dropout)
        return y3.view(y.shape)

    def _parts_at(self, site: str, present: list[Slot], x: Tensor) -> list[Part]:
        sliced = self._slices_pay(site, present, x)
        key = (site, sliced, x.device, x.dtype)
        if key in self._parts:
            return self._parts[key]
        frozen = [atom for atom in present if not atom.trained]
        groups = [[atom] for atom in frozen] if sliced else ([frozen] if frozen else [])
        groups += [[atom] for atom in present if atom.trained]
        # What is kept must serve any later call, so it is not made as an inference tensor.
        with torch.inference_mode(False), torch.no_grad():
            parts = [part for group in groups if (part := self._part(site, group, x, sliced))]
        self._parts[key] = parts
        return parts

    def _part(self, site: str, group: list[Slot], x: Tensor, sliced: bool) -> Part | None:
        trained = group[0].trained
        who = tuple((self.atoms.index(atom), len(atom.factors[site][0])) for atom in group)
        scaling = tuple(atom.scaling[site] for atom in group)
        key = (who, scaling, sliced, x.device)  # the same at most sites, so worked out once
        if key not in self._scales:
            scale, rows = self._scale(who, scaling, apart=sliced or trained)
            self._scales[key] = tuple(None if t is None else t.to(x.device) for t in (scale, rows))
        scale, rows = self._scales[key]
        if rows is not None and not len(rows):
            return None
        return Part(self._stack(site, group, x), scale, rows, trained)

    def _stack(self, site: str, group: list[Slot], x: Tensor) -> Stack:
        """The atoms' factors side by side; those of a trained atom are its own parameters."""
        if group[0].trained:
            return Stack(*group[0].factors[site])
        key = (site, tuple(group), x.device, x.dtype)
        stack = self._stacks.get(key)
        if stack is None:
            a, b = zip(*(atom.factors[site] for atom in group), strict=True)
            all_a, all_b = (a[0], b[0]) if len(group) == 1 else (torch.cat(a), torch.cat(b, dim=1))
            stack = Stack(all_a.to(x.device, x.dtype), all_b.to(x.device, x.dtype))
            self._stacks[key] = stack
        return stack

    def _scale(
        self, who: tuple[tuple[int, int], ...], scaling: tuple[float, ...], apart: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The simplest form of M, and the rows it is for, given (atom, rank) pairs.

        ``apart`` asks for only the rows that use the atoms, where not all do.
        """
        columns, ranks = zip(*who, strict=True)
        table = self.weights[:, list(columns)] * torch.tensor(scaling)
        table = table.repeat_interleave(torch.tensor(ranks), dim=1)
        if self.index is None:
            scale, rows = table[0], None
        else:
            scale = table[self.index] if self.index.dim() == 2 else table[self.index][:, None]
            used = scale.flatten(1).any(dim=1)
            rows = used.nonzero()[:, 0] if (apart or not used.any()) and not used.all() else None
            scale = scale if rows is None else scale[rows]
            if len(scale) and (scale == scale[:1, :1]).all():
                scale = scale[0, 0]
        return (None if (scale == 1).all() else scale), rows

    def _slices_pay(self, site: str, present: list[Slot], x: Tensor) -> bool:
        """Whether a slice an atom costs less than one product masked by M."""
        if self.index is None or self.index.dim() == 2 or len(present) < 2:
            return False
        if self._uses is None:
            self._uses = (self.weights[self.index] != 0).sum(0).tolist()
        unused = sum(
            (len(self.index) - self._uses[self.atoms.index(atom)]) * len(atom.factors[site][0])
            for atom in present
        )
        width = x.shape[-1] + len(present[0].factors[site][1])
        return unused * x.shape[1] * width > SLICE_OVERHEAD * len(present)


class Bank:
    """Slots for adapters beside a backbone's sites, and the plan that the sites follow.

    ``put`` makes an adapter resident, ``drop`` frees it; both are a dictionary's work and touch no
    module. Over ``capacity`` the least recently used slots go, except pinned ones.
    """

    def __init__(self, sites: Mapping[str, nn.Module], capacity: int = 256) -> None:
        self.sites = sites
        self.capacity = capacity
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._stacks: WeakValueDictionary[Any, Stack] = WeakValueDictionary()
        self._lock = threading.RLock()
        self._plan: ContextVar[Plan | None] = ContextVar("adapters_hub_plan", default=None)
        self._hooks = [
            module.register_forward_hook(self._hook(site)) for site, module in sites.items()
        ]

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def put(
        self,
        name: str,
        factors: Factors,
        scaling: Mapping[str, float],
        *,
        trained: bool = False,
        pinned: bool = False,
        keep: Collection[str] = (),
    ) -> Slot:
        """Make an adapter resident under a name; an old one of that name is replaced.

        ``factors``: site → A (r, in), B (out, r). ``keep`` names slots that must not go to make
        room, even if there are then more than ``capacity``. Raises `BackboneError` for a wrong site
        or shape.
        """
        for site, (a, b) in factors.items():
            if site not in self.sites:
                raise BackboneError(f"{name!r} adapts {site}, which is no site of this backbone")
            shape = site_shape(self.sites[site])
            if (a.shape[1], b.shape[0]) != shape or a.shape[0] != b.shape[1]:
                raise BackboneError(
                    f"{name!r} at {site}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit a "
                    f"layer of {shape[0]} inputs and {shape[1]} outputs"
                )
        slot = Slot(dict(factors), dict(scaling), trained, pinned or trained)
        with self._lock:
            self.drop(name)
            self._slots[name] = slot
            kept = {name, *keep}
            spare = [n for n, s in self._slots.items() if not s.pinned and n not in kept]
            for oldest in spare[: max(0, len(self._slots) - self.capacity)]:
                self.drop(oldest)
        return slot

    def drop(self, name: str) -> None:
        """Forget an adapter, if it is resident. Calls under way keep what they use."""
        with self._lock:
            old = self._slots.pop(name, None)
            if old is not None:
                stale = [key for key, plan in self._plans.items() if old in plan.atoms]
                for key in stale:
                    del self._plans[key]

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
        """
        if index is None and len(blends) != 1:
            raise ValueError("several blends need an index of rows")
        with torch.inference_mode(False):
            rows = None if index is None else torch.as_tensor(index, dtype=torch.long)
        key = (
            tuple(tuple(blend.items()) for blend in blends),
            None if rows is None else (tuple(rows.shape), tuple(rows.flatten().tolist())),
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
            if any(atom.trained for atom in atoms):
                return plan  # batches in training hardly ever repeat
            self._plans[key] = plan
            if len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
            return plan

    @contextmanager
    def using(self, plan: Plan | None) -> Iterator[None]:
        """Follow a plan in every forward of this thread inside the block; None is bare."""
        token = self._plan.set(plan)
        try:
            yield
        finally:
            self._plan.reset(token)

    def current(self) -> Plan | None:
        """The plan this thread follows now."""
        return self._plan.get()

    def checkpoint_contexts(self) -> tuple[Any, Any]:
        """For gradient checkpointing: the second forward follows the plan of the first.

        The backward that runs it may run in another thread, which has no plan of its own. Give it
        as ``gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": …}``.
        """
        return _Following(self), _Following(self)

    def detach(self) -> None:
        """Take the hooks off the backbone, which is then as if there had never been a bank."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def hook_ids(self) -> set[int]:
        """The ids under which the sites hold the bank's hooks, and so do copies of the sites."""
        return {hook.id for hook in self._hooks}

    def _hook(self, site: str) -> Any:
        def add_delta(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            plan = self._plan.get()
            return output if plan is None else plan.add_delta(site, inputs[0], output)

        return add_delta


class _Following:
    """A context that follows the plan of the moment it was made in; can be entered repeatedly."""

    def __init__(self, bank: Bank) -> None:
        self._variable, self._followed = bank._plan, bank._plan.get()
        self._tokens: list[Token[Plan | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(self._variable.set(self._followed))

    def __exit__(self, *failure: object) -> None:
        self._variable.reset(self._tokens.pop())
