"""Plans: who uses which adapters at which weight in one call, and by which products.

Knows slots and rows; does not know names, modules, files or tasks. The arithmetic is in `products`.

At a site with weight W the output ``y = W x`` of row i becomes ``y += Σ wᵢₖ·sₖ·Bₖ·Aₖ·x`` over the
adapters k of its blend. The adapters of a batch (its *atoms*) are taken in *parts*, each of them
two batched products over all of its atoms at once:

- grouped: atoms of one rank that as many rows use. Their rows are brought together, (S, k, in), and
  each atom meets just its own rows: the multiply-adds that are needed, each factor read once.
- masked: all atoms as one of rank R = Σ rₖ over all rows, ``((x A_allᵀ) ⊙ M) B_allᵀ`` with M (rows,
  R) holding the weights, zero where a row does not use an atom: nothing is moved, for few atoms.

Both agree to rounding; `_masked_pays` chooses by their cost. Sites with one input (q, k, v) share
the first product. Adapters that learn are masked, or a part each, of their own parameters.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from adapters_hub.errors import SettingsError
from adapters_hub.runtime.products import (
    COSTS,
    Amounts,
    Factors,
    FlatFactors,
    Live,
    Part,
    Sites,
    Stack,
    cost,
    on,
    stacked,
)


@dataclass(frozen=True, eq=False)
class Slot:
    """One resident adapter: its factors and its scaling at each site. Compared by identity.

    A ``pinned`` one is never evicted; a ``trained`` one keeps gradients, and is pinned.
    """

    factors: Factors
    scaling: Mapping[str, float]
    trained: bool = False
    pinned: bool = False

    @cached_property
    def bytes(self) -> int:
        """What its factors take."""
        if isinstance(self.factors, FlatFactors):
            return self.factors.flat.nbytes
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


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
    _parts: dict[Any, list[Part]] = field(default_factory=dict, repr=False)
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def sites(self) -> frozenset[str]:
        """Where any of the atoms acts."""
        return frozenset().union(*(atom.factors for atom in self.atoms))

    @property
    def rows(self) -> int | None:
        """The number of rows of the batch, or None where any will do."""
        return None if self.index is None else self.index.shape[0]

    def of(self, rows: Tensor) -> "Plan":
        """The plan of a batch of some of these rows, given by their places (k,)."""
        if self.index is None:
            return self
        return Plan(self.atoms, self.weights, self.index[rows], self.dropout, self._stacks)

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
        if key not in self._parts:
            if torch.is_inference_mode_enabled():  # what is kept must serve any later call
                with torch.inference_mode(False), torch.no_grad():
                    self._parts[key] = self._make_parts(sites, masked, x)
            else:
                with torch.no_grad():
                    self._parts[key] = self._make_parts(sites, masked, x)
        return self._parts[key]

    def shares(self, sites: Sites) -> bool:
        """Whether the plan's atoms are alike at all of these sites, so that one product does."""
        key = ("shares", sites)
        if key not in self._known:
            first = self._alike(sites[0])
            self._known[key] = not any(atom.trained for atom in self.atoms) and all(
                self._alike(site) == first for site in sites[1:]
            )
        return self._known[key]

    def _alike(self, site: str) -> list[Any]:
        return [
            (len(atom.factors[site][0]), atom.scaling[site]) if site in atom.factors else None
            for atom in self.atoms
        ]

    def _present(self, sites: Sites) -> list[int]:
        """The atoms that act at the sites, by place."""
        return [n for n, atom in enumerate(self.atoms) if sites[0] in atom.factors]

    def _make_parts(self, sites: Sites, masked: bool, x: Tensor) -> list[Part]:
        present = self._present(sites)
        frozen = [n for n in present if not self.atoms[n].trained]
        parts = []
        if masked and frozen:
            columns, scale = self._mask(tuple(frozen), self._scalings(frozen, sites[0]), sites[0])
            rank = sum(self._rank(n, sites[0]) for n in columns)
            stack = self._stack(sites, columns, x, apart=False)
            parts.append(Part(stack, sites, rank, None, *_with_unused(scale, x)))
        elif frozen:
            for members, rows in self._buckets(frozen, sites[0]):
                scale = self._scale(members, rows, sites[0])
                stack = self._stack(sites, members, x, apart=True)
                rank = self._rank(members[0], sites[0])
                where, back = _placed(rows, self._units(), x.device)
                parts.append(Part(stack, sites, rank, where, on(scale, x), back=back))
        learning = [n for n in present if self.atoms[n].trained]
        if self.index is not None:
            learning = [n for n in learning if len(self._users()[n])]
        return parts + self._learning(learning, sites[0], x) if learning else parts

    def _learning(self, members: Sequence[int], site: str, x: Tensor) -> list[Part]:
        """The parts of adapters that learn: one product masked by M, or one an adapter."""
        own = [self.atoms[n].factors[site] for n in members]
        if self._masked_pays((site,), x, learning=True):
            _, scale = self._mask(tuple(members), self._scalings(members, site), site)
            rank = sum(self._rank(n, site) for n in members)
            return [Part(Live(own, site), (site,), rank, None, *_with_unused(scale, x), True)]
        parts = []
        for n, factors in zip(members, own, strict=True):
            rows = self._users()[n]
            where, _ = _placed(rows, self._units(), x.device)
            scale = on(self._scale((n,), rows, site), x)
            rank = self._rank(n, site)
            parts.append(Part(Live([factors], site), (site,), rank, where, scale, trained=True))
        return parts

    # ── rows ─────────────────────────────────────────────────────────────────────────────────

    def _units(self) -> int:
        return 1 if self.index is None else self.index.numel()

    def _users(self) -> list[Tensor]:
        """For each atom the rows, or tokens, that use it."""
        if "users" not in self._known:
            assert self.index is not None
            used = self.weights[self.index.flatten()] != 0
            self._known["users"] = [used[:, n].nonzero()[:, 0] for n in range(len(self.atoms))]
        return self._known["users"]

    def _buckets(
        self, members: Sequence[int], site: str, apart: bool = False
    ) -> list[tuple[tuple[int, ...], Tensor]]:
        """Atoms of one rank that as many rows use, or each ``apart``, with these rows, atom after
        atom.
        """
        users = self._users()
        if apart:
            return [((n,), users[n]) for n in members if len(users[n])]
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for n in members:
            if len(users[n]):
                found[len(users[n]), self._rank(n, site)].append(n)
        # in order of their first row, so that a sorted batch need not be moved
        ordered = [sorted(own, key=lambda n: int(users[n][0])) for own in found.values()]
        return [(tuple(own), torch.cat([users[n] for n in own])) for own in ordered]

    def _scale(self, members: tuple[int, ...], rows: Tensor, site: str) -> float | Tensor:
        """Scaling × weight of each atom for each of its rows: a number, or (S, k, 1, 1); (k, 1, 1)
        where S is 1.
        """
        assert self.index is not None
        own = self.index.flatten()[rows].view(len(members), -1)
        scales = torch.stack(
            [self.weights[own[i], n] * self.atoms[n].scaling[site] for i, n in enumerate(members)]
        )
        scale = _number(scales[..., None, None])
        return scale[0] if isinstance(scale, Tensor) and len(members) == 1 else scale

    def _scalings(self, members: Sequence[int], site: str) -> tuple[float, ...]:
        return tuple(self.atoms[n].scaling[site] for n in members)

    def _mask(
        self, members: tuple[int, ...], scalings: tuple[float, ...], site: str
    ) -> tuple[tuple[int, ...], float | Tensor]:
        """M (rows, 1, R), or (1, 1, R) where all rows are alike, for the atoms in use."""
        ranks = tuple(self._rank(n, site) for n in members)
        key = ("mask", members, scalings, ranks)  # the same at most sites, so worked out once
        if key not in self._known:
            table = self.weights[:, list(members)] * torch.tensor(scalings)
            table = table.repeat_interleave(torch.tensor(ranks), dim=1)
            rows = table[:1] if self.index is None else table[self.index.flatten()]
            if (rows == rows[:1]).all():
                rows = rows[:1]
            self._known[key] = _number(rows[:, None])
        return members, self._known[key]

    # ── factors ──────────────────────────────────────────────────────────────────────────────

    def _stack(self, sites: Sites, members: Sequence[int], x: Tensor, apart: bool) -> Stack:
        """The atoms' factors: each for itself (S, …), or all as one of rank R (1, …)."""
        atoms = tuple(self.atoms[n] for n in members)
        key = (sites, atoms, apart or len(atoms) == 1, x.device, x.dtype)
        stack = self._stacks.get(key)
        if stack is None:
            stack = stacked([atom.factors for atom in atoms], sites, x, apart)
            self._stacks[key] = stack
        return stack

    # ── the rule ─────────────────────────────────────────────────────────────────────────────

    def amounts(self, sites: Sites, x: Tensor, learning: bool = False) -> tuple[Amounts, Amounts]:
        """What masked and grouped parts for x (positions, in) amount to, of adapters that are
        frozen, or of those that learn, which are never grouped with each other.

        For both: parts, multiply-adds, numbers read from factors. For grouped ones further: parts
        whose rows must be brought together, and numbers moved for that.
        """
        assert self.index is not None
        each = len(x) // self.index.numel()
        members = [n for n in self._present(sites) if self.atoms[n].trained == learning]
        out = sum(len(self.atoms[n].factors[s][1]) for n in members[:1] for s in sites)
        width = x.shape[-1] * len(sites) + out
        ranks = sum(self._rank(n, sites[0]) for n in members)
        grouped = [0.0] * 5
        for own, rows in self._buckets(members, sites[0], apart=learning):
            rank, positions = self._rank(own[0], sites[0]), len(rows) * each
            more = [1, positions * rank * width, len(own) * rank * width, 0, 0]
            if learning:  # gradients need the site's whole output a second time
                more[3:] = [1, positions * (x.shape[-1] + out) + len(x) * out]
            elif isinstance(_simplest(rows, self._units()), Tensor):
                more[3:] = [1, positions * (x.shape[-1] + out)]
            grouped = [total + one for total, one in zip(grouped, more, strict=True)]
        return (1, len(x) * ranks * width, ranks * width), grouped

    def _masked_pays(self, sites: Sites, x: Tensor, learning: bool = False) -> bool:
        """Whether one product masked by M costs less than a part for each kind of atom."""
        if self.index is None:
            return True
        key = ("masked", sites, len(x), learning)
        if key not in self._known:
            masked, grouped = self.amounts(sites, x, learning)
            self._known[key] = cost(COSTS.masked, masked) <= cost(COSTS.grouped, grouped)
        return self._known[key]

    def _rank(self, n: int, site: str) -> int:
        return len(self.atoms[n].factors[site][0])


def _simplest(rows: Tensor, units: int) -> slice | Tensor | None:
    """Rows as None if they are all, in order, as a slice if one follows the other."""
    first, count = int(rows[0]), len(rows)
    if not torch.equal(rows, torch.arange(first, first + count)):
        return rows
    return None if count == units else slice(first, first + count)


def _placed(
    rows: Tensor, units: int, device: torch.device
) -> tuple[slice | Tensor | None, Tensor | None]:
    """`_simplest` on a device, and the inverse of indices that are all rows in another order."""
    where = _simplest(rows, units)
    if not isinstance(where, Tensor):
        return where, None
    order = where.argsort()
    whole = len(order) == units and torch.equal(where[order], torch.arange(units))
    return where.to(device), order.to(device) if whole else None


def _number(scale: Tensor) -> float | Tensor:
    """A tensor of one value as that value."""
    value = scale.flatten()[0]
    return float(value) if bool((scale == value).all()) else scale


def _with_unused(scale: float | Tensor, x: Tensor) -> tuple[float | Tensor, Tensor | None]:
    """A part's ``scale`` and ``unused``."""
    scale = on(scale, x)
    return scale, scale == 0 if isinstance(scale, Tensor) and (scale == 0).any() else None
