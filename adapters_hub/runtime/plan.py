"""Plans: who uses which adapters at which weight in one call, and by which products.

Knows slots and rows; does not know names, modules, files or tasks. The arithmetic is in `products`.

At a site with weight W the output ``y = W x`` of row i becomes ``y += Σ wᵢₖ·sₖ·Bₖ·Aₖ·x`` over the
adapters k of its blend. The adapters of a batch (its *atoms*) are taken in *parts*, each of them
two batched products over all of its atoms at once:

- grouped: atoms of one rank that as many rows use. Their rows are brought together, (S, k, in), and
  each atom meets just the rows that use it: no multiply-add too many, each factor read once.
- masked: all atoms as one of rank R = Σ rₖ over all rows, ``((x A_allᵀ) ⊙ M) B_allᵀ`` with M (rows,
  R) holding the weights, zero where a row does not use an atom: nothing is moved, for few atoms.

Both agree to rounding; `_masked_pays` chooses by their cost. Sites with one input (q, k, v) share
the first product. Adapters that learn are masked, or a part each.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from adapters_hub.errors import SettingsError
from adapters_hub.runtime.products import (
    COSTS,
    Amounts,
    FlatFactors,
    Live,
    Part,
    SiteFactors,
    Sites,
    Slices,
    Stack,
    cost,
    on,
    stacked,
    stacked_slices,
)


@dataclass(frozen=True, eq=False)
class Slot:
    """One resident adapter: its factors and its scaling at each site. Compared by identity.

    A ``pinned`` one is never evicted; a ``trained`` one keeps gradients, and is pinned.
    """

    factors: SiteFactors
    scaling: Mapping[str, float]
    trained: bool = False
    pinned: bool = False

    @cached_property
    def bytes(self) -> int:
        """What its factors take."""
        if isinstance(self.factors, FlatFactors):
            return self.factors.flat.nbytes
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


Made = TypeVar("Made")
Bucket = tuple[tuple[int, ...], Tensor, bool]
"""Atoms, the rows that use them, atom after atom, and whether these lie scattered."""
BlendAt = tuple[tuple[int, float], ...]
"""The atoms that a blend has at some sites, by place, with their weights."""


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
    # all plans'
    _stacks: MutableMapping[Hashable, Stack | Slices] = field(
        default_factory=WeakValueDictionary, repr=False
    )
    # what was worked out once: the parts, whether masked ones pay, and what both are made of
    _parts: dict[tuple[Hashable, ...], list[Part]] = field(default_factory=dict, repr=False)
    _pays: dict[tuple[Hashable, ...], bool] = field(default_factory=dict, repr=False)
    _known: dict[tuple[Hashable, ...], object] = field(default_factory=dict, repr=False)

    @cached_property
    def sites(self) -> frozenset[str]:
        """Where any of the atoms acts."""
        return frozenset().union(*(atom.factors for atom in self.atoms))

    @property
    def rows(self) -> int | None:
        """The number of rows of the batch, or None where any will do."""
        return None if self.index is None else self.index.shape[0]

    def of(self, rows: Tensor | slice) -> "Plan":
        """The plan of a batch of some of these rows, given by their places (k,)."""
        if self.index is None:
            return self
        return Plan(self.atoms, self.weights, self.index[rows], self.dropout, self._stacks)

    def at(self, rows: Tensor, tokens: Tensor) -> "Plan":
        """The plan in which each position (n,), given by row and token, is a row of its own."""
        if self.index is None:
            return self
        index = self.index[rows] if self.index.dim() == 1 else self.index[rows, tokens]
        return Plan(self.atoms, self.weights, index, self.dropout, self._stacks)

    def units(self, site: str, x: Tensor) -> int:
        """The rows, or tokens, of the plan that x (…, in) divides into.

        The first dimension of x may be the rows, each repeated k times (beams), or rows × tokens.
        """
        if self.index is None:
            return 1
        units = self.index.numel()
        if self.index.dim() == 1 and x.shape[0] % units == 0:
            return units
        if self.index.dim() == 2 and x.numel() == units * x.shape[-1]:
            return units
        tokens = f" of {self.index.shape[1]} tokens" if self.index.dim() == 2 else ""
        raise SettingsError(
            f"{site} got an input of {' × '.join(map(str, x.shape))} for a plan of {self.rows} "
            f"rows{tokens}: `adapters` must have a blend a row (or a token) of just this batch"
        )

    def parts(self, sites: Sites, x: Tensor) -> list[Part]:
        """The parts of the delta at sites that share the input x (positions, in)."""
        masked = self._masked_pays(sites, x)
        key = (sites, masked, x.device, x.dtype)
        if key not in self._parts:  # asked at every site of every forward
            self._parts[key] = _in_no_mode(lambda: self._make_parts(sites, masked, x))
        return self._parts[key]

    def blends_at(
        self, place: str, sites: Collection[str], device: torch.device
    ) -> list[tuple[BlendAt, Tensor | None]]:
        """The distinct blends at the sites of a ``place``, and the rows, or tokens, of each.

        The rows are indices (k,) in ascending order, or None where one blend serves any.
        """

        def make() -> list[tuple[BlendAt, Tensor | None]]:
            acting = [
                n for n, atom in enumerate(self.atoms) if not atom.factors.keys().isdisjoint(sites)
            ]
            table, of_row = self.weights[:, acting], None
            if self.index is not None and acting:
                table, of_row = table[self.index.flatten()].unique(dim=0, return_inverse=True)
            blends = []
            for number, weights in enumerate(table.tolist()):
                rows = None if of_row is None else (of_row == number).nonzero()[:, 0].to(device)
                blend = tuple((n, w) for n, w in zip(acting, weights, strict=True) if w)
                blends.append((blend, rows))
            return blends

        return self._once(("blends", place, device), make)

    def shares(self, sites: Sites) -> bool:
        """Whether the plan's atoms are alike at all of these sites, so that one product does."""

        def alike() -> bool:
            first = self._at(sites[0])
            return all(self._at(site) == first for site in sites[1:])

        return not any(atom.trained for atom in self.atoms) and self._once(("shares", sites), alike)

    def _at(self, site: str) -> list[tuple[int, float] | None]:
        """Each atom's rank and scaling at a site, or None where it does not act."""
        return [
            (len(atom.factors[site][0]), atom.scaling[site]) if site in atom.factors else None
            for atom in self.atoms
        ]

    def _present(self, sites: Sites) -> list[int]:
        """The atoms that act at the sites, by place."""
        return [n for n, atom in enumerate(self.atoms) if sites[0] in atom.factors]

    def _make_parts(self, sites: Sites, masked: bool, x: Tensor) -> list[Part]:
        present = self._present(sites)
        frozen = tuple(n for n in present if not self.atoms[n].trained)
        parts = []
        if masked and frozen:
            rank = sum(self._ranks(frozen, sites[0]))
            stack = self._stack(sites, frozen, x, apart=False)
            parts.append(Part(stack, sites, rank, None, *self._mask(frozen, sites[0], x)))
        elif frozen:
            for members, rows, _ in self._buckets(frozen, sites[0]):
                scale = self._scale(members, rows, sites[0], x)
                stack = self._stack(sites, members, x, apart=True)
                rank = self._rank(members[0], sites[0])
                where, back = self._placed(members, rows, x.device)
                parts.append(Part(stack, sites, rank, where, scale, back=back))
        learning = tuple(n for n in present if self.atoms[n].trained)
        if self.index is not None:
            learning = tuple(n for n in learning if len(self._users()[n]))
        return parts + self._learning(learning, sites[0], x) if learning else parts

    def _learning(self, members: tuple[int, ...], site: str, x: Tensor) -> list[Part]:
        """The parts of adapters that learn: one product masked by M, or one an adapter."""
        pairs = [self.atoms[n].factors[site] for n in members]
        if self._masked_pays((site,), x, learning=True):
            rank = sum(self._ranks(members, site))
            mask = self._mask(members, site, x)
            return [Part(Live(pairs, site), (site,), rank, None, *mask, trained=True)]
        parts = []
        for n, pair in zip(members, pairs, strict=True):
            rows = self._users()[n]
            where, _ = self._placed((n,), rows, x.device)
            scale = self._scale((n,), rows, site, x)
            rank = self._rank(n, site)
            parts.append(Part(Live([pair], site), (site,), rank, where, scale, trained=True))
        return parts

    def _once(self, key: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        """What ``make`` gives, worked out once a plan; the first of ``key`` is its kind."""
        if key not in self._known:
            self._known[key] = _in_no_mode(make)
        return cast(Made, self._known[key])

    # ── rows ─────────────────────────────────────────────────────────────────────────────────

    def _units(self) -> int:
        return 1 if self.index is None else self.index.numel()

    def _users(self) -> list[Tensor]:
        """For each atom the rows, or tokens, that use it."""

        def make() -> list[Tensor]:
            assert self.index is not None
            used = self.weights[self.index.flatten()] != 0
            return [used[:, n].nonzero()[:, 0] for n in range(len(self.atoms))]

        return self._once(("users",), make)

    def _buckets(self, members: tuple[int, ...], site: str, apart: bool = False) -> list[Bucket]:
        """Atoms of one rank that as many rows use, or each ``apart``; the same at most sites."""
        ranks = self._ranks(members, site)

        def make() -> list[Bucket]:
            users = self._users()
            kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for n, rank in zip(members, ranks, strict=True):
                if len(users[n]):
                    kinds[(n,) if apart else (len(users[n]), rank)].append(n)
            buckets = []
            for kind in kinds.values():
                # in order of their first row, so that a sorted batch need not be moved
                ordered = tuple(sorted(kind, key=lambda n: int(users[n][0])))
                rows = torch.cat([users[n] for n in ordered])
                buckets.append((ordered, rows, isinstance(_simplest(rows, self._units()), Tensor)))
            return buckets

        return self._once(("buckets", members, ranks, apart), make)

    def _placed(
        self, members: tuple[int, ...], rows: Tensor, device: torch.device
    ) -> tuple[slice | Tensor | None, Tensor | None]:
        """`_simplest` of the members' rows on a device, and the inverse of indices that are all
        rows in another order.
        """

        def make() -> tuple[slice | Tensor | None, Tensor | None]:
            units = self._units()
            where = _simplest(rows, units)
            if not isinstance(where, Tensor):
                return where, None
            order = where.argsort()
            whole = len(order) == units and torch.equal(where[order], torch.arange(units))
            return where.to(device), order.to(device) if whole else None

        return self._once(("placed", members, device), make)

    def _scale(
        self, members: tuple[int, ...], rows: Tensor, site: str, x: Tensor
    ) -> float | Tensor:
        """Scaling × weight of each atom for each of its rows: a number, or (S, k, 1, 1); (k, 1, 1)
        where S is 1.
        """
        scalings = self._scalings(members, site)

        def make() -> float | Tensor:
            assert self.index is not None
            blends = self.index.flatten()[rows].view(len(members), -1)
            columns = [self.weights[blends[i], n] * scalings[i] for i, n in enumerate(members)]
            scale = _number(torch.stack(columns)[..., None, None])
            if isinstance(scale, float):
                return scale
            return on(scale[0] if len(members) == 1 else scale, x)

        return self._once(("scale", members, scalings, x.device, x.dtype), make)

    def _mask(
        self, members: tuple[int, ...], site: str, x: Tensor
    ) -> tuple[float | Tensor, Tensor | None]:
        """M (rows, 1, R), or (1, 1, R) where all rows are alike, and where it is zero, or None.

        The zeros are looked for before M goes to its device: asking there would wait for it.
        """
        ranks, scalings = self._ranks(members, site), self._scalings(members, site)

        def make() -> tuple[float | Tensor, Tensor | None]:
            table = self.weights[:, list(members)] * torch.tensor(scalings)
            table = table.repeat_interleave(torch.tensor(ranks), dim=1)
            rows = table[:1] if self.index is None else table[self.index.flatten()]
            if (rows == rows[:1]).all():
                rows = rows[:1]
            scale = _number(rows[:, None])
            if isinstance(scale, float):
                return scale, None
            scale = scale.to(x.dtype)
            unused = scale == 0
            return scale.to(x.device), unused.to(x.device) if unused.any() else None

        return self._once(("mask", members, scalings, ranks, x.device, x.dtype), make)

    # ── factors ──────────────────────────────────────────────────────────────────────────────

    def _stack(self, sites: Sites, members: Sequence[int], x: Tensor, apart: bool) -> Stack:
        """The atoms' factors: each for itself (S, …), or all as one of rank R (1, …)."""
        atoms = tuple(self.atoms[n] for n in members)
        key = (sites, atoms, apart or len(atoms) == 1, x.device, x.dtype)
        stack = self._stacks.get(key)
        if not isinstance(stack, Stack):
            stack = stacked([atom.factors for atom in atoms], sites, x, apart)
            self._stacks[key] = stack
        return stack

    def _rank(self, n: int, site: str) -> int:
        return len(self.atoms[n].factors[site][0])

    def _ranks(self, members: Sequence[int], site: str) -> tuple[int, ...]:
        return tuple(self._rank(n, site) for n in members)

    def _scalings(self, members: Sequence[int], site: str) -> tuple[float, ...]:
        return tuple(self.atoms[n].scaling[site] for n in members)

    def slices(self, sites: Sites, n: int, like: Tensor) -> Slices | None:
        """An atom's factors at the slices of a parameter ``like`` this one, None without any."""
        atom = self.atoms[n]
        if atom.factors.keys().isdisjoint(sites):
            return None

        def make() -> Slices:
            pairs = [atom.factors.get(site) for site in sites]
            scaled = [
                pair and (pair[0] * atom.scaling[site], pair[1])
                for site, pair in zip(sites, pairs, strict=True)
            ]
            made = stacked_slices(scaled)
            return Slices(on(made.a, like), on(made.b, like))

        def shared() -> Slices:
            slices = self._stacks.get(key)
            if not isinstance(slices, Slices):
                slices = self._stacks[key] = make()
            return slices

        key = ("slices", sites[0], atom, like.device, like.dtype)
        return make() if atom.trained else self._once(key, shared)

    # ── the rule ─────────────────────────────────────────────────────────────────────────────

    def amounts(self, sites: Sites, x: Tensor, learning: bool = False) -> tuple[Amounts, Amounts]:
        """What masked and grouped parts for x (positions, in) amount to, of adapters that are
        frozen, or of those that learn, which are never grouped with each other.

        For both: parts, multiply-adds, numbers read from factors. For grouped ones further: parts
        whose rows must be brought together, and numbers moved for that.
        """
        assert self.index is not None
        each = len(x) // self.index.numel()
        members = tuple(n for n in self._present(sites) if self.atoms[n].trained == learning)
        out = sum(len(self.atoms[n].factors[s][1]) for n in members[:1] for s in sites)
        width = x.shape[-1] * len(sites) + out
        ranks = sum(self._ranks(members, sites[0]))
        grouped = [0.0] * 5
        for of_bucket, rows, scattered in self._buckets(members, sites[0], apart=learning):
            rank, positions = self._rank(of_bucket[0], sites[0]), len(rows) * each
            more = [1, positions * rank * width, len(of_bucket) * rank * width, 0, 0]
            if learning:  # gradients need the site's whole output a second time
                more[3:] = [1, positions * (x.shape[-1] + out) + len(x) * out]
            elif scattered:
                more[3:] = [1, positions * (x.shape[-1] + out)]
            grouped = [total + one for total, one in zip(grouped, more, strict=True)]
        return (1, len(x) * ranks * width, ranks * width), grouped

    def _masked_pays(self, sites: Sites, x: Tensor, learning: bool = False) -> bool:
        """Whether one product masked by M costs less than a part for each kind of atom."""
        if self.index is None:
            return True
        key = (sites, len(x), learning)
        if key not in self._pays:
            masked, grouped = self.amounts(sites, x, learning)
            self._pays[key] = cost(COSTS.masked, masked) <= cost(COSTS.grouped, grouped)
        return self._pays[key]


def _in_no_mode(make: Callable[[], Made]) -> Made:
    """What ``make`` gives, without gradients and outside inference mode: it must serve any call."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return make()
    with torch.no_grad():
        return make()


def _simplest(rows: Tensor, units: int) -> slice | Tensor | None:
    """Rows as None if they are all, in order, as a slice if one follows the other."""
    first, count = int(rows[0]), len(rows)
    if not torch.equal(rows, torch.arange(first, first + count)):
        return rows
    return None if count == units else slice(first, first + count)


def _number(scale: Tensor) -> float | Tensor:
    """A tensor of one value as that value."""
    value = scale.flatten()[0]
    return float(value) if bool((scale == value).all()) else scale
