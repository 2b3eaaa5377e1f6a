"""Making one adapter out of several: plain functions on the factors of one site, in one table.

A method takes a site's ``(weight, A, B)`` in the order of the blend, with scaling folded into the
weight (α/r, or α/√r for rsLoRA), A (r_i, in), B (out, r_i); an adapter that does not act there has
r_i = 0. It returns A (r, in) and B (out, r) in float32, of scaling 1. Its options are its keywords.
A term of a blend means its weighted delta wᵢ·Bᵢ·Aᵢ: that is what is trimmed, votes and is merged,
so a subtracted adapter votes for its opposite. Without ``rank`` the result has the rank of the sum,
or that of the layer if smaller. Knows tensors and the paths of sites; not files or models. Task
heads are never averaged.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

from adapters_hub.compose.core_space import (
    Piece,
    core_space,
    directions,
    energy_of,
    expand,
    orthogonal_sum,
    rank_that_keeps,
)
from adapters_hub.compose.entrywise import (
    Rule,
    disjoint_mean,
    drop,
    generator,
    merge_entries,
    thresholds,
    trim,
)
from adapters_hub.errors import SettingsError
from adapters_hub.progress import over

Factors = tuple[Tensor, Tensor]
Method = Callable[..., Factors]


@dataclass(frozen=True)
class Site:
    """Where a method is at work: the path, and for a layer of a stack its number, and of how many.

    An encoder and a decoder are two stacks; a pooler or an LM head is in none.
    """

    path: str = ""
    stack: str = ""
    layer: int | None = None
    layers: int = 0


# ── exact ────────────────────────────────────────────────────────────────────────────────────────


def concatenate(pieces: Sequence[Piece]) -> Factors:
    """Σ wᵢ·Bᵢ·Aᵢ exactly, as one adapter whose rank is the sum of the ranks.

    The weights go into B. PEFT calls this ``cat``.
    """
    return (
        torch.cat([a.float() for _, a, _ in pieces]),
        torch.cat([weight * b.float() for weight, _, b in pieces], dim=1),
    )


def subtract(pieces: Sequence[Piece], *, lam: float = 1.0) -> Factors:
    """Exactly task + λ·(target - source): "hotel + sw - en", λ on all terms but the first.

    AdaMergeX (arXiv:2402.18913), an analogy of task vectors (arXiv:2212.04089).
    """
    if len(pieces) < 2:
        raise SettingsError(
            "method='subtract' needs a task and what λ scales, such as 'hotel + sw - en'; "
            f"the blend has {len(pieces)} adapter"
        )
    rest = [(lam * weight, a, b) for weight, a, b in pieces[1:]]
    return concatenate([pieces[0], *rest])


def layer_swap(
    pieces: Sequence[Piece],
    *,
    bottom: int = 1,
    top: int = 1,
    transition: int = 0,
    site: Site,
) -> Factors:
    """Outermost layers from the language adapter, those between from the task's; exact.

    Layer swapping (arXiv:2410.01335) of a blend "task + language": the ``bottom`` lowest and
    ``top`` highest layers of each stack take the language adapter, and the ``transition`` layers
    next to either the mean of both. A site outside all stacks (LM head, pooler) takes the language
    adapter where that has one, else the task's. Counts layers of the backbone.
    """
    if len(pieces) != 2:
        raise SettingsError(
            "method='layer_swap' takes two adapters, the task's and then the language's, such as "
            f"'hotel + sw'; the blend has {len(pieces)}"
        )
    task, language = pieces
    if site.layer is None:
        return concatenate([language if len(language[1]) else task])
    below, above = bottom and bottom + transition, top and top + transition
    if below + above > site.layers:
        raise SettingsError(
            f"bottom={bottom}, top={top} and transition={transition} need {below + above} layers; "
            f"{site.stack} has {site.layers}"
        )
    if site.layer < bottom or site.layer >= site.layers - top:
        return concatenate([language])
    if site.layer < below or site.layer >= site.layers - above:
        return concatenate([(weight / 2, a, b) for weight, a, b in pieces])
    return concatenate([task])


# ── spectral: in the core space, by singular values ──────────────────────────────────────────────


def svd(
    pieces: Sequence[Piece], *, rank: int | None = None, energy: float | None = None
) -> Factors:
    """The sum cut to a rank by its singular values: no adapter of that rank is closer to it.

    Equal to PEFT's ``svd``, without its dense delta. At full rank it is the sum. ``energy`` is the
    share of ‖ΔW‖_F² that the rank of each site keeps at least; ``rank`` is then the most it may be.
    """
    space = core_space(pieces)
    a, b = expand(space, total(space.cores), rank if energy is None else None)
    if energy is None:
        return a, b
    kept = rank_that_keeps(energy, b)
    kept = kept if rank is None else min(kept, rank)
    return a[:kept], b[:, :kept]


def iso(pieces: Sequence[Piece], *, rank: int | None = None) -> Factors:
    """The sum with its singular values replaced by their mean (Iso-C).

    arXiv:2502.04959, where the mean is over all min(out, in) of a full-rank delta. A sum of
    LoRA deltas has few that are not zero: the mean is over those, after the cut to ``rank``, so
    the sum of the singular values stays and no direction is made up.
    """
    space = core_space(pieces)
    u, s, vh = directions(total(space.cores))
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    flat = s.sum() / max(1, len(s)) * u
    return space.right.lift(vh).float(), space.left.lift(flat.mT).mT.float()


def knots(pieces: Sequence[Piece], *, density: float = 0.2, rank: int | None = None) -> Factors:
    """TIES on the right singular vectors of the deltas side by side (KnOTS-TIES).

    arXiv:2410.19735: [w₁B₁A₁ … wₙBₙAₙ] = U·Σ·[V₁ᵀ … Vₙᵀ], the Vᵢᵀ (k, in) are merged by `ties`,
    and the result is U·Σ·Vᵀ. ``density`` is the share that each Vᵢᵀ keeps.
    """
    space = core_space(pieces)
    cores = [core for core in space.cores if core.any()] or space.cores[:1]  # 0 has no vote
    u, s, vh = directions(torch.cat(cores, dim=1))
    width = cores[0].shape[1]
    rows = [trim(space.right.lift(part), density) for part in vh.split(width, dim=1)]
    merged = disjoint_mean(torch.stack(rows))
    return svd([(1.0, merged, space.left.lift((u * s).mT).mT)], rank=rank)


# ── on the entries of the core ───────────────────────────────────────────────────────────────────


def core_ties(pieces: Sequence[Piece], *, density: float = 0.2, rank: int | None = None) -> Factors:
    """TIES on the cores of the deltas in their reference bases; not `ties` on the deltas.

    Core Space (arXiv:2509.17786) with TIES as the rule. ``density`` is the share that a core keeps.
    """
    space = core_space(pieces, reference=True)
    trimmed = [trim(core, density) for core in space.cores]
    return expand(space, disjoint_mean(torch.stack(trimmed)), rank)


def core(
    pieces: Sequence[Piece],
    *,
    inner: str = "tsv",
    density: float | None = None,
    seed: int = 0,
    rank: int | None = None,
    site: Site,
) -> Factors:
    """A rule that has no other name here, in the core space; ``inner`` says which.

    Core Space (arXiv:2509.17786). ``inner``: ``tsv`` makes the singular vectors of all cores
    orthogonal to each other before they are added up (TSV-M, arXiv:2412.00081); ``dare`` and
    ``magnitude_prune`` thin out the cores in the reference bases to ``density`` (0.5). A sum of
    cores is `svd`, isotropic `iso`, and TIES `core_ties`.
    """
    if inner == "tsv":
        if density is not None:
            raise SettingsError("inner='tsv' takes no density: it drops no entries")
        space = core_space(pieces)
        return expand(space, orthogonal_sum(space.cores), rank)
    space = core_space(pieces, reference=True)
    density = 0.5 if density is None else density
    if inner == "dare":
        kept = drop(torch.stack(space.cores), density, generator(seed, site.path))
    else:
        kept = torch.stack([trim(core, density) for core in space.cores])
    return expand(space, kept.sum(0), rank)


# ── on the entries of the true deltas, then cut ──────────────────────────────────────────────────


def ties(pieces: Sequence[Piece], *, density: float = 0.2, rank: int | None = None) -> Factors:
    """Trim each delta to its largest entries, elect a sign an entry, average those that agree.

    TIES (arXiv:2306.01708) on the true deltas, then cut to ``rank``. ``density`` is the share of
    entries that each keeps, by site as in PEFT and mergekit (in the paper, over the whole model).
    The mean is over the number of those that agree, as in PEFT; weights are in the deltas from the
    start, also when signs are elected, where PEFT's come after.
    """

    def rule_for(pieces: Sequence[Piece]) -> Rule:
        least = thresholds(pieces, density)
        return lambda deltas, row: disjoint_mean(deltas.where(deltas.abs() >= least, 0.0))

    return merge_entries(pieces, rule_for, rank)


def magnitude_prune(
    pieces: Sequence[Piece], *, density: float = 0.2, rank: int | None = None
) -> Factors:
    """Trim each delta to its largest entries and add up; PEFT's method of that name.

    The first step of `ties` on the true deltas, then task arithmetic (arXiv:2212.04089), then cut
    to ``rank``. ``density`` is the share of entries that each keeps, by site.
    """

    def rule_for(pieces: Sequence[Piece]) -> Rule:
        least = thresholds(pieces, density)
        return lambda deltas, row: deltas.where(deltas.abs() >= least, 0.0).sum(0)

    return merge_entries(pieces, rule_for, rank)


def dare(
    pieces: Sequence[Piece],
    *,
    density: float = 0.5,
    seed: int = 0,
    rank: int | None = None,
    site: Site,
) -> Factors:
    """Drop entries of each delta at random, rescale the rest by 1/density, add up.

    DARE (arXiv:2311.03099) on the true deltas, then cut to ``rank``, which takes away most of the
    noise that dropping brings. An entry is kept with probability ``density``, the paper's 1 - p;
    which ones depends on ``seed``, the site and the term's place in the blend.
    """

    def rule_for(pieces: Sequence[Piece]) -> Rule:
        return lambda deltas, row: drop(deltas, density, generator(seed, site.path, row)).sum(0)

    return merge_entries(pieces, rule_for, rank)


# ── inexact ──────────────────────────────────────────────────────────────────────────────────────


def linear(pieces: Sequence[Piece]) -> Factors:
    """PEFT's ``linear``, which mixes A and B apart; inexact, there to reproduce what it made.

    (Σ √|wᵢ|·Bᵢ)·(Σ ±√|wᵢ|·Aᵢ) has a cross term for each pair of adapters, so it is not the sum.
    Needs equal ranks.
    """
    acting = [piece for piece in pieces if len(piece[1])] or list(pieces[:1])
    ranks = sorted({len(a) for _, a, _ in acting})
    if len(ranks) > 1:
        raise SettingsError(
            f"method='linear' adds factors up, which need one rank, and there are {ranks}; "
            "method='sum' takes any, and is exact"
        )
    signed = [(math.copysign(math.sqrt(abs(weight)), weight), a) for weight, a, _ in acting]
    return (
        total([weight * a.float() for weight, a in signed]),
        total([math.sqrt(abs(weight)) * b.float() for weight, _, b in acting]),
    )


def total(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(0)


# ── the table ────────────────────────────────────────────────────────────────────────────────────

METHODS: dict[str, Method] = {
    "sum": concatenate,
    "svd": svd,
    "linear": linear,
    "ties": ties,
    "dare": dare,
    "magnitude_prune": magnitude_prune,
    "knots": knots,
    "core": core,
    "core_ties": core_ties,
    "iso": iso,
    "layer_swap": layer_swap,
    "subtract": subtract,
}

_AT_ONCE = ("svd",)  # methods that take the factors of many sites of one shape, stacked, …
_APART = ("energy",)  # … but not with these options, by which ranks differ
INNER = ("tsv", "dare", "magnitude_prune")
_NAMED = {"sum": "svd", "svd": "svd", "iso": "iso", "ties": "core_ties"}


def compose(
    pieces: Sequence[Piece], method: str = "sum", *, site: Site | None = None, **options: object
) -> Factors:
    """Apply a method by name to the pieces of one site.

    Raises `SettingsError` for an unknown method, an option it does not take or a value that cannot
    be, and says what can.
    """
    check_options(method, options)
    return _prepared(method, options)(pieces, site or Site())


def compose_sites(
    pieces: Mapping[str, Sequence[Piece]],
    method: str = "sum",
    *,
    sites: Iterable[str] = (),
    **options: object,
) -> dict[str, Factors]:
    """Apply a method at every site; those where nothing is left (rank 0) are left out.

    ``sites`` are all of the backbone, from which the layers are counted. Raises as `compose`.
    """
    check_options(method, options)
    apply, places = _prepared(method, options), locate([*pieces, *sites])
    made: dict[str, Factors] = {}
    at_once = method in _AT_ONCE and all(options.get(name) is None for name in _APART)
    groups = _alike(pieces) if at_once else [[site] for site in pieces]
    for group in over(groups, "composing", "groups of layers"):
        place, first = places[group[0]], pieces[group[0]]
        if len(group) == 1:
            made[group[0]] = apply(first, place)
            continue
        rows: list[Piece] = []
        for n, (weight, _, _) in enumerate(first):
            a = torch.stack([pieces[site][n][1] for site in group])
            b = torch.stack([pieces[site][n][2] for site in group])
            rows.append((weight, a, b))
        made |= zip(group, zip(*apply(rows, place), strict=True), strict=True)
    return {site: made[site] for site in pieces if len(made[site][0])}


def _alike(pieces: Mapping[str, Sequence[Piece]]) -> list[list[str]]:
    """Sites whose pieces have equal weights and shapes."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for site, at_site in pieces.items():
        key = tuple((weight, a.shape, b.shape, a.dtype, b.dtype) for weight, a, b in at_site)
        groups.setdefault(key, []).append(site)
    return [*groups.values()]


def _prepared(
    method: str, options: Mapping[str, object]
) -> Callable[[Sequence[Piece], Site], Factors]:
    """A method with its options, for any site."""
    work = METHODS[method]
    placed = "site" in inspect.signature(work).parameters

    @torch.no_grad()
    def apply(pieces: Sequence[Piece], site: Site) -> Factors:
        return work(pieces, **options, **({"site": site} if placed else {}))

    return apply


def options_of(method: str) -> list[str]:
    """The options that a method takes; `SettingsError` lists the methods."""
    if method not in METHODS:
        raise SettingsError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "site"]


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Raise `SettingsError` for what `compose` would refuse whatever the pieces are."""
    taken = options_of(method)
    for name, value in options.items():
        if name not in taken:
            hint = {
                "rank": "; method='svd' cuts a sum to a rank",
                "energy": "; method='svd' cuts a sum to the ranks that keep a share of its energy",
            }.get(name, "")
            takes = ", ".join(taken) if taken else "no options"
            raise SettingsError(f"method={method!r} takes no {name}: it takes {takes}{hint}")
        if name == "inner" and str(value) in _NAMED:
            raise SettingsError(f"inner={value!r} is method={_NAMED[str(value)]!r}; use that")
        wanted, holds = _VALUES[name]
        if not (value is None and name in ("rank", "energy")) and not holds(value):
            raise SettingsError(f"{name}={value!r}: give {wanted}")


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_COUNT: tuple[str, Callable[[object], bool]] = (
    "a whole number of layers, 0 or more",
    lambda value: _whole(value) and value >= 0,
)
_SHARE: tuple[str, Callable[[object], bool]] = (
    "a share above 0, at most 1",
    lambda value: _finite(value) and 0 < value <= 1,
)
_VALUES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "rank": ("a whole number, 1 or more", lambda value: _whole(value) and value >= 1),
    "energy": _SHARE,
    "density": _SHARE,
    "seed": ("a whole number", _whole),
    "lam": ("a finite number", _finite),
    "inner": (f"one of {', '.join(INNER)}", lambda value: value in INNER),
    "bottom": _COUNT,
    "top": _COUNT,
    "transition": _COUNT,
}


def locate(paths: Iterable[str]) -> dict[str, Site]:
    """Each path's place: its layer is the first component that is a number."""
    places = {}
    for path in paths:
        stack, number = "", None
        parts = path.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                stack, number = ".".join(parts[:place]), int(part)
                break
        places[path] = Site(path, stack, number)
    layers: dict[str, int] = {}
    for site in places.values():
        if site.layer is not None:
            layers[site.stack] = max(layers.get(site.stack, 0), site.layer + 1)
    return {p: Site(p, s.stack, s.layer, layers.get(s.stack, 0)) for p, s in places.items()}


def describe_methods() -> str:
    """The methods, one a line: name, options, and the first line of what the docstring says."""
    lines = []
    for name, method in METHODS.items():
        summary = (inspect.getdoc(method) or "").splitlines()[0]
        lines.append(f"  {name:16} {summary} [{', '.join(options_of(name))}]".replace(" []", ""))
    return "\n".join(lines)


def describe_cut(pieces: Mapping[str, Sequence[Piece]], made: Mapping[str, Factors]) -> str:
    """What is left of the sums at all sites in words: ranks, and the share of ‖ΔW‖_F²."""
    whole = sum(energy_of((1.0, *concatenate(of_site))) for of_site in pieces.values())
    kept = sum(energy_of((1.0, *factors)) for factors in made.values())
    ranks = [len(a) for a, _ in made.values()]
    spread = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    return (
        f"rank {spread} (mean {sum(ranks) / len(ranks):.1f} over {len(ranks)} sites), "
        f"{kept / whole if whole else 1.0:.2%} of the energy"
    )


def delta(pieces: Sequence[Piece]) -> Tensor:
    """The dense Σ wᵢ·Bᵢ·Aᵢ (out, in), summed in float32, for merging into a weight."""
    a, b = concatenate(pieces)
    return b @ a
