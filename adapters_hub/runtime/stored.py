"""How the factors of sites lie in PEFT's files, where experts of a layer share their tensors.

Knows PEFT's format and the order of a module's parameters; does not know files, or what runs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneMismatchError
from adapters_hub.library.adapter_file import AdapterFiles, check_scaling
from adapters_hub.library.target_parameters import is_targeted, unwrapped, wrapped
from adapters_hub.runtime.products import Place, SiteFactors, Sites, stacked_slices
from adapters_hub.runtime.tensors import DTYPES


@dataclass(frozen=True)
class Stored:
    """The factors that a file has under one ``path``: of a layer, or of all slices of a stack.

    ``target``: what the configuration calls it, which is a parameter's path if ``is_parameter``.
    """

    path: str
    target: str
    is_parameter: bool
    rank: int
    scaling: float
    a: Tensor
    b: Tensor


def stored(
    factors: SiteFactors,
    scaling: Mapping[str, float],
    stacks: Mapping[str, Mapping[str, Sites]],
    path: Callable[[str], str],
) -> Iterator[Stored]:
    """What a file has of these factors; ``path`` gives that of a site in the class it is for.

    Slices of one stack are filled up to one rank, and what differs in their scaling goes into B.
    """
    slices = {site for parameters in stacks.values() for at in parameters.values() for site in at}
    for site, (a, b) in factors.items():
        if site not in slices:
            yield Stored(path(site), path(site), False, len(a), scaling[site], a, b)
    for module, parameters in stacks.items():
        acting = {name: at for name, at in parameters.items() if not factors.keys().isdisjoint(at)}
        for name, key in wrapped(path(module), [*acting]).items():
            present = [site for site in acting[name] if site in factors]
            common = scaling[present[0]]
            if any(not math.isclose(scaling[site], common) for site in present):
                common = 1.0
            whole = stacked_slices(
                [
                    (factors[site][0], factors[site][1] * (scaling[site] / common))
                    if site in factors
                    else None
                    for site in acting[name]
                ]
            )
            a, b = whole.a.flatten(0, 1), whole.b.permute(1, 2, 0).flatten(1)
            yield Stored(key, f"{path(module)}.{name}", True, whole.a.shape[1], common, a, b)


@dataclass(frozen=True, eq=False)
class SiteMap:
    """How files of one layout lie on a backbone.

    ``keys``: site → those of A and B; ``places``: where its factors are in these two, or, where all
    of the file's tensors have one ``dtype``, among all items of the file. ``names``: what patterns
    for its scaling match, and its rank. ``prefix`` stands before the paths of the body's sites.
    """

    keys: dict[str, tuple[str, str]]
    places: dict[str, tuple[Place, Place]]
    names: dict[str, tuple[str, int]]
    dtype: torch.dtype | None
    prefix: str


def map_sites(files: AdapterFiles, backbone: Backbone) -> SiteMap:
    """The map, checked: every module is there and has the shape it is for.

    Raises `BackboneMismatchError` otherwise, `AdapterFileError` for a scaling that is no number.
    """
    dtypes = {DTYPES[entry.dtype] for entry in files.header.tensors.values()}
    site_map, prefix = SiteMap({}, {}, {}, dtypes.pop() if len(dtypes) == 1 else None, ""), ""
    for module, keys in files.modules.items():
        path, sites, name = _sites_of(files, module, backbone)
        a, b = (files.header.tensors[key] for key in keys)
        (fan_in, fan_out), (rank, rest) = backbone.shapes[sites[0]], divmod(a.shape[0], len(sites))
        if (a.shape[1], b.shape[0]) != (fan_in, fan_out) or rest:
            raise BackboneMismatchError(
                f"{files.info.name!r} is for a layer of {a.shape[1]} inputs and {b.shape[0]} "
                f"outputs at {path}; in {backbone.name} it has {fan_in} and {fan_out}"
            )
        starts = (0, 0)
        if site_map.dtype is not None:
            starts = a.start // site_map.dtype.itemsize, b.start // site_map.dtype.itemsize
        for n, site in enumerate(sites):
            site_map.keys[site], site_map.names[site] = keys, (name, rank)
            site_map.places[site] = (
                ((rank, fan_in), (fan_in, 1), starts[0] + n * rank * fan_in),
                ((fan_out, rank), (rank * len(sites), len(sites)), starts[1] + n),
            )
        if path not in backbone.head_sites:
            bare, _ = unwrapped(module)
            prefix = bare.removesuffix(path)
            if not bare.endswith(path) or prefix.count(".") > 1:  # another name of the layer
                prefix = backbone.prefix
    check_scaling(files.spec, dict(site_map.names.values()), files.weights)
    return replace(site_map, prefix=prefix)


def _sites_of(files: AdapterFiles, module: str, backbone: Backbone) -> tuple[str, Sites, str]:
    """Whose factors a file has under a module: a path of the backbone, its sites, and the name that
    patterns match.
    """
    bare, depth = unwrapped(module)
    path, targets = backbone.site_of(bare), files.target_parameters
    if path in backbone.moe:
        part = backbone.moe[path]
        names = [name for name, _ in part.module.named_parameters(recurse=False)]
        aimed = [name for name in names if is_targeted(f"{bare}.{name}", targets)]
        name = next((name for name, key in wrapped(bare, aimed).items() if key == module), None)
        if name in part.parameters:
            return path, part.parameters[name], f"{bare}.{name}"
        if name is not None:
            raise BackboneMismatchError(
                f"{files.info.name!r} adapts {bare}.{name}, which is no matrix; there adapters act "
                f"on {', '.join(part.parameters)}"
            )
        if not aimed and path in part.sites:  # a router that was targeted as a module
            return path, (path,), bare
    elif path is not None and not depth:
        name = f"{bare}.weight"
        return path, (path,), name if is_targeted(name, targets) else bare
    raise BackboneMismatchError(
        f"{files.info.name!r} adapts {module}, and {backbone.name} has no such linear layer or "
        f"expert (it has {examples(backbone.shapes)})"
    )


def examples(sites: Iterable[str]) -> str:
    """Some of the sites' last names, for messages."""
    names = sorted({site.rpartition(".")[2] for site in sites})
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
