"""Products: the arithmetic that adds adapters' deltas at a site, and what it costs.

Knows factors and rows as tensors; does not know blends, adapters, modules or files. Who uses what,
and which products a call takes, is the plan's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SiteFactors = Mapping[str, tuple[Tensor, Tensor]]
Place = tuple[Sequence[int], Sequence[int], int]
Sites = tuple[str, ...]
Amounts = Sequence[float]


@dataclass(frozen=True)
class Costs:
    """What decides between masked and grouped parts: nanoseconds for each of `Plan.amounts`.

    Fitted on two CPU cores by ``benchmarks/strategies.py``.
    """

    masked: tuple[float, ...] = (98_000, 0.0195, 0.42)
    grouped: tuple[float, ...] = (61_000, 0.031, 0.2, 57_000, 0.57)
    whole: tuple[float, ...] = (50_000, 0.028, 0.11)  # as masked, for one blend in all rows


COSTS = Costs()


def cost(prices: Sequence[float], amounts: Amounts) -> float:
    """Nanoseconds, by `Costs`."""
    return sum(price * amount for price, amount in zip(prices, amounts, strict=True))


class FlatFactors(SiteFactors):
    """Factors as views of one flat tensor, each made when it is asked for: loading makes none.

    ``places``: site → shape, strides and first item of A and of B.
    """

    def __init__(self, flat: Tensor, places: Mapping[str, tuple[Place, Place]]) -> None:
        self.flat, self.places = flat, places
        self._made: dict[str, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, site: str) -> tuple[Tensor, Tensor]:
        if site not in self._made:
            a, b = self.places[site]
            self._made[site] = self.flat.as_strided(*a), self.flat.as_strided(*b)
        return self._made[site]

    def __contains__(self, site: object) -> bool:
        return site in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def shapes(factors: SiteFactors) -> Iterator[tuple[str, Sequence[int], Sequence[int]]]:
    """Each site with the shapes of its A and B."""
    if isinstance(factors, FlatFactors):
        return ((site, a[0], b[0]) for site, (a, b) in factors.places.items())
    return ((site, a.shape, b.shape) for site, (a, b) in factors.items())


@dataclass(frozen=True, eq=False)
class Stack:
    """Factors of S atoms at sites that share an input: ``a`` (S, sites · r, in), site after site;
    ``b`` (S, r, out) for each site. Without the first dimension where S is 1. ``bytes`` are those
    it takes beside the factors, of which it may be just another view.
    """

    a: Tensor
    b: Mapping[str, Tensor]
    bytes: int


def stacked(factors: Sequence[SiteFactors], sites: Sites, x: Tensor, apart: bool) -> Stack:
    """Factors of several adapters on the device and in the precision of x: each for itself
    (S, …), or, if not ``apart``, all as one of rank R.
    """
    a = [[of_adapter[site][0] for site in sites] for of_adapter in factors]
    b = {site: [of_adapter[site][1].t() for of_adapter in factors] for site in sites}
    if len(factors) == 1:
        all_a = a[0][0] if len(sites) == 1 else torch.cat(a[0])
        all_b = {site: of_site[0] for site, of_site in b.items()}
    elif apart:
        all_a = torch.stack([torch.cat(of_adapter) for of_adapter in a])
        all_b = {site: torch.stack(of_site) for site, of_site in b.items()}
    else:
        all_a = torch.cat([of_adapter[i] for i in range(len(sites)) for of_adapter in a])
        all_b = {site: torch.cat(of_site) for site, of_site in b.items()}
    all_a, all_b = on(all_a, x), {site: on(t, x) for site, t in all_b.items()}
    views = {t.data_ptr() for of_adapter in factors for site in sites for t in of_adapter[site]}
    copies = [t.nbytes for t in (all_a, *all_b.values()) if t.data_ptr() not in views]
    return Stack(all_a, all_b, sum(copies))


@dataclass(frozen=True, eq=False)
class Slices:
    """One adapter's factors for all slices of a parameter: ``a`` (slices, r, in), with the scaling
    in it, and ``b`` (slices, out, r).
    """

    a: Tensor
    b: Tensor

    @property
    def bytes(self) -> int:
        """Those it takes."""
        return self.a.nbytes + self.b.nbytes


def stacked_slices(factors: Sequence[tuple[Tensor, Tensor] | None]) -> Slices:
    """Factors of slices, None where there are none, filled up with zeros to one rank."""
    some = [pair for pair in factors if pair is not None]
    rank = max(len(a) for a, _ in some)
    none = some[0][0].new_zeros(0, some[0][0].shape[1]), some[0][1].new_zeros(len(some[0][1]), 0)
    pairs = [none if pair is None else pair for pair in factors]
    if any(len(a) < rank for a, _ in pairs):
        pairs = [
            (functional.pad(a, (0, 0, 0, rank - len(a))), functional.pad(b, (0, rank - len(a))))
            for a, b in pairs
        ]
    return Slices(torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs]))


@dataclass(frozen=True, eq=False)
class Live:
    """A `Stack` of adapters that learn, all as one of rank R at a site: put together whenever it is
    used, so that gradients reach each one's parameters.
    """

    factors: Sequence[tuple[Tensor, Tensor]]
    site: str

    @property
    def a(self) -> Tensor:
        """(R, in)."""
        return torch.cat([a for a, _ in self.factors]) if self.factors[1:] else self.factors[0][0]

    @property
    def b(self) -> Mapping[str, Tensor]:
        """The site's (R, out)."""
        pieces = [b.t() for _, b in self.factors]
        return {self.site: torch.cat(pieces) if pieces[1:] else pieces[0]}


@dataclass(frozen=True)
class Part:
    """A piece of the delta: S atoms of rank r, k rows each.

    ``rows`` None for the whole batch in its order, a slice of it, or S · k indices, and ``back``
    their inverse where they are the whole batch. ``scale`` a number, or a tensor that broadcasts to
    (S, k, tokens, r), and ``unused`` its zeros.
    """

    stack: Stack | Live
    sites: Sites
    rank: int
    rows: slice | Tensor | None
    scale: float | Tensor
    unused: Tensor | None = None
    trained: bool = False
    back: Tensor | None = None

    def first(self, x: Tensor, units: int, dropout: float = 0.0) -> Sequence[Tensor]:
        """Hidden (S, k · tokens, r) for each site from x (units · tokens, in), and scaled, where
        ``scale`` is a tensor.
        """
        a, taken = self.stack.a, x
        if isinstance(self.rows, slice):
            taken = x.view(units, -1, x.shape[-1])[self.rows].view(-1, x.shape[-1])
        elif self.rows is not None:
            taken = x.view(units, -1, x.shape[-1]).index_select(0, self.rows).view(-1, x.shape[-1])
        if dropout and self.trained:
            taken = functional.dropout(taken, dropout)
        a = on(a, x)
        if a.dim() == 2:
            hidden = functional.linear(taken, a)
        else:
            hidden = torch.bmm(taken.view(len(a), -1, x.shape[-1]), a.transpose(1, 2))
        if not isinstance(self.scale, float):
            shape = (*hidden.shape[:-2], -1, len(x) // units, len(self.sites), self.rank)
            scaled = hidden.view(shape) * self.scale[..., None, :]
            if self.unused is not None:  # else what overflows for others' rows would be NaN here
                scaled = scaled.masked_fill(self.unused[..., None, :], 0.0)
            hidden = scaled.view(hidden.shape)
        return hidden.split(self.rank, -1) if len(self.sites) > 1 else (hidden,)

    def second(self, hidden: Tensor, site: str, y: Tensor, units: int) -> Tensor:
        """Y (units · tokens, out) with the part's delta added; in place without gradients."""
        b = self.stack.b[site].to(hidden.device)  # one that learns may be elsewhere
        alpha = self.scale if isinstance(self.scale, float) else 1.0
        in_place = not torch.is_grad_enabled() and hidden.dtype == b.dtype == y.dtype
        if in_place and not isinstance(self.rows, Tensor):
            added_to = y
            if self.rows is not None:
                added_to = y.view(units, -1, y.shape[-1])[self.rows].view(-1, y.shape[-1])
            if b.dim() == 2:
                added_to.addmm_(hidden, b, alpha=alpha)
            else:
                added_to.view(len(b), -1, y.shape[-1]).baddbmm_(hidden, b, alpha=alpha)
            return y
        b = b.to(hidden.dtype)
        if self.rows is None and b.dim() == 2 and hidden.dtype == y.dtype:
            return torch.addmm(y, hidden, b, alpha=alpha)
        delta = (torch.mm(hidden, b) if b.dim() == 2 else torch.bmm(hidden, b)).to(y.dtype)
        if self.rows is None:
            return y.add(delta.view(y.shape), alpha=alpha)
        rows = self.rows
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=y.device)
        if self.back is not None and in_place and len(y) == units:  # twice as fast for one token
            return y.add_(delta.view(y.shape).index_select(0, self.back), alpha=alpha)
        wide = y.view(units, -1, y.shape[-1])
        add = wide.index_add_ if in_place else wide.index_add
        return add(0, rows, delta.view(len(rows), *wide.shape[1:]), alpha=alpha).view(y.shape)


def on(tensor: Tensor, x: Tensor) -> Tensor:
    """A tensor on the device and in the precision of x."""
    return tensor.to(x.device, x.dtype)
