"""Two adapters side by side: by site, by depth, in all; a look before they are composed.

Knows adapters as factors at sites, and a model as something whose sites see inputs. What the
numbers say about the gain of a composition is in `correlation`.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters_hub.backbone.padding import padded
from adapters_hub.compose.core_space import Piece
from adapters_hub.compose.methods import locate
from adapters_hub.data.reading import read_data
from adapters_hub.errors import BackboneMismatchError, BlendError, DataError, SettingsError
from adapters_hub.interpretability.geometry import Measures, SitePair, compare_site, moved
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.blend import Blend
from adapters_hub.library.json_fields import Fields, as_count, as_number, as_text, dict_of
from adapters_hub.library.layers import layer_of
from adapters_hub.library.library import Library
from adapters_hub.metrics.tables import table
from adapters_hub.progress import over
from adapters_hub.runtime.core import Runtime, Weights
from adapters_hub.runtime.tensors import read_factors
from adapters_hub.text.tokenising import encode_texts

OUTSIDE = "no layer"
"""The depth of sites that are in no layer, such as an LM head."""

Deltas = dict[str, Piece]


@dataclass(frozen=True)
class Comparison:
    """`Measures` of two adapters: at each site, over each depth (layer) in order, over all sites.

    ``first`` and ``second`` are the terms as they were resolved, with their weights; ``texts``:
    how many the interference was measured on.
    """

    first: str
    second: str
    sites: dict[str, Measures]
    depths: dict[str, Measures]
    total: Measures
    texts: int = 0

    def to_json(self) -> dict[str, object]:
        """The report as plain JSON values."""
        return asdict(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json` to a file, complete or not at all; `SettingsError` where that fails."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written ({error.strerror or error})") from None
        return path

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Comparison":
        """The report that `to_json` gave; `DataError` for what is none."""
        try:
            fields = Fields(data)
            return cls(
                first=fields.need("first", as_text),
                second=fields.need("second", as_text),
                sites=fields.need("sites", dict_of(_measures)),
                depths=fields.need("depths", dict_of(_measures)),
                total=fields.need("total", _measures),
                texts=fields.get("texts", as_count) or 0,
            )
        except TypeError as error:
            raise DataError(
                f"no report of a comparison ({error}): give what `adapters-hub compare --json` "
                "wrote"
            ) from None


def _measures(value: object) -> Measures:
    fields = Fields(value)
    return Measures(
        energy_first=fields.need("energy_first", as_number),
        energy_second=fields.need("energy_second", as_number),
        log2_energy_ratio=fields.get("log2_energy_ratio", as_number),
        cosine=fields.get("cosine", as_number),
        overlap_left=fields.get("overlap_left", as_number),
        overlap_right=fields.get("overlap_right", as_number),
        sign_conflict=fields.get("sign_conflict", as_number),
        interference=fields.get("interference", as_number),
    )


def compare(
    source: Runtime | Library,
    first: Weights,
    second: Weights,
    texts: Sequence[str] | None = None,
    *,
    max_length: int = 256,
) -> Comparison:
    """Compare two adapters (blends of one term each); see `Measures` for what is measured.

    From a library the factors alone are read, and no backbone. ``texts``, a few sentences of the
    kind the blend is for, add the interference, and need a model; each is cut at ``max_length``
    tokens. It is of the second adapter on the first: swap them for the other. Raises
    `BackboneMismatchError` for adapters of two backbones, `BlendError` for a blend of several
    terms, `NotFoundError`, `AmbiguousTermError`, `DataError` for texts that are empty.
    """
    if isinstance(source, Library):
        if texts is not None:
            raise SettingsError("texts need a model to run: give load_backbone(…), not a library")
        names, deltas = _from_library(source, (one_term(first), one_term(second)))
    else:
        resolved = [source.resolve(one_term(blend)) for blend in (first, second)]
        names = [str(blend) for blend in resolved]
        deltas = [deltas_of(source, blend) for blend in resolved]
    pairs = _compare_sites(names, deltas)
    if texts is not None and isinstance(source, Runtime):
        norms = interference(source, resolved[0], deltas, texts, max_length)
        pairs = {site: replace(pair, moved=norms[site]) for site, pair in pairs.items()}
    groups: dict[str, list[SitePair]] = {}
    for site, pair in pairs.items():
        groups.setdefault(layer_of(site) or OUTSIDE, []).append(pair)
    return Comparison(
        first=names[0],
        second=names[1],
        sites={site: Measures.of([pair]) for site, pair in pairs.items()},
        depths={depth: Measures.of(group) for depth, group in groups.items()},
        total=Measures.of(pairs.values()),
        texts=len(texts or ()),
    )


def one_term(blend: Weights) -> Blend:
    """The blend, if it has just one term; `BlendError` otherwise."""
    single = Blend.of(blend)
    if len(single.weights) != 1:
        raise BlendError(f"{str(single)!r} has {len(single.weights)} terms: give one adapter here")
    return single


def deltas_of(model: Runtime, blend: Blend) -> Deltas:
    """What a resolved blend of one term adds at each site, the scaling folded into the weight."""
    ((name, weight),) = blend.weights
    adapter = model.resident(name)
    return {
        site: (weight * adapter.scaling[site], *factors)
        for site, factors in adapter.factors.items()
    }


def _from_library(library: Library, blends: Sequence[Blend]) -> tuple[list[str], list[Deltas]]:
    """Names and deltas of two blends of one term, by modules as files name them, made alike."""
    infos: list[AdapterInfo] = []
    for blend in blends:
        known = infos[0].fingerprint if infos else None
        infos.append(library.find(blend.terms[0], known))
    names, deltas = [], []
    for blend, info in zip(blends, infos, strict=True):
        weight = blend.weights[0][1]
        files = library.open(info)
        names.append(str(Blend(((info.name, weight),))))
        deltas.append(
            {
                module: (weight * files.spec.scaling(module, len(a)), a, b)
                for module, (a, b) in read_factors(files).items()
            }
        )
    return names, _alike(*deltas)


def _alike(first: Deltas, second: Deltas) -> list[Deltas]:
    """Two adapters' deltas by the same names: a class with a head names its body (``model.``)."""
    for one, two in ((first, second), (_body(first), second), (first, _body(second))):
        if {layer_of(site) for site in one} & {layer_of(site) for site in two} - {None}:
            return [one, two]
    return [first, second]


def _body(deltas: Deltas) -> Deltas:
    """By paths below the body, as far as they are in a layer."""
    return {s if layer_of(s) is None else s.partition(".")[2]: p for s, p in deltas.items()}


def _compare_sites(names: Sequence[str], deltas: Sequence[Deltas]) -> dict[str, SitePair]:
    first, second = deltas
    pairs = {}
    for site in in_depth(first.keys() | second.keys()):
        both = first.get(site), second.get(site)
        if both[0] and both[1]:
            shapes = [(a.shape[1], b.shape[0]) for _, a, b in (both[0], both[1])]
            if shapes[0] != shapes[1]:
                raise BackboneMismatchError(
                    f"{names[0]!r} and {names[1]!r} are for different backbones: at {site} one has "
                    f"{shapes[0][0]} inputs and {shapes[0][1]} outputs, the other {shapes[1][0]} "
                    f"and {shapes[1][1]}"
                )
        pairs[site] = compare_site(*both, seed=site)
    return pairs


def in_depth(sites: Iterable[str]) -> list[str]:
    """Sites by stack (an encoder before its decoder), layer and name; those in no layer last."""
    places = locate(sites)

    def place(site: str) -> tuple[bool, bool, str, int, str]:
        where = places[site]
        return where.layer is None, "decoder" in where.stack, where.stack, where.layer or 0, site

    return sorted(places, key=place)


@torch.no_grad()
def interference(
    model: Runtime,
    first: Blend,
    deltas: Sequence[Deltas],
    texts: Sequence[str],
    max_length: int = 256,
) -> dict[str, tuple[float, float]]:
    """For each site Σ‖ΔW₁·h₁‖² and Σ‖ΔW₂·h₁‖² over all tokens, h₁ the inputs under ``first``.

    Texts go one by one, so that no input is padding. An encoder-decoder gets each text on both
    sides.
    """
    backbone = model.backbone
    sums: dict[str, list[float]] = {site: [0.0, 0.0] for added in deltas for site in added}

    def watch(
        site: str, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> None:
        x = (*inputs, *named.values())[0]
        for number, added in enumerate(deltas):
            sums[site][number] += moved(added.get(site), x)

    if routed := sums.keys() - backbone.sites.keys():
        raise SettingsError(
            f"interference needs what each site gets, and {min(routed)} is in a router or experts, "
            "which do not show it: compare without texts"
        )
    encoded = encode_texts(texts, backbone, max_length)
    if not encoded or not all(encoded):
        empty = f"text {encoded.index([]) + 1} has no tokens" if encoded else "there are no texts"
        raise DataError(f"nothing to measure interference on: {empty}")
    hooks = [
        backbone.sites[site].register_forward_pre_hook(partial(watch, site), with_kwargs=True)
        for site in sums
    ]
    try:
        for ids in over(encoded, "interference", "texts"):
            batch = padded([ids], backbone)
            if backbone.kind == "encoder-decoder":
                batch["decoder_input_ids"] = batch["input_ids"]
            model(adapters=first, languages=None, **batch, **backbone.lm_options)
    finally:
        for hook in hooks:
            hook.remove()
    return {site: (one, two) for site, (one, two) in sums.items()}


def read_texts(path: str | os.PathLike[str], columns: Mapping[str, str] | None = None) -> list[str]:
    """The texts of a data file or folder, such as a text file with one a line; see `read_data`."""
    splits = read_data(Path(path), dict(columns or {}))
    return [row.text.strip() for rows in splits.values() for row in rows]


def describe(report: Comparison) -> str:
    """The report by depth and in all, as a Markdown table."""
    heads = {
        "energy_first": f"‖ΔW₁‖ {report.first}",
        "energy_second": f"‖ΔW₂‖ {report.second}",
        "log2_energy_ratio": "log2 ratio",
        "cosine": "cosine",
        "overlap_left": "overlap left",
        "overlap_right": "overlap right",
        "sign_conflict": "opposite signs",
        "interference": "interference",
    }
    assert list(heads) == [field.name for field in fields(Measures)]
    rows = {**report.depths, "all": report.total}
    columns: dict[str, dict[str, float | None]] = {
        head: {place: getattr(measures, name) for place, measures in rows.items()}
        for name, head in heads.items()
        if name != "interference" or report.texts
    }
    return table(columns, "layer", {})
