"""A language without an adapter: a blend of those of near languages, weighted by how near they are.

Knows adapters' languages and the distances of languages; trains and measures nothing. The weights
follow TIPA (arXiv:2601.16629): a softmax over similarities of the languages, which add up to one.
In a blend the term ``proxy:nds`` stands for it. It is a choice: nothing takes a proxy by itself.
"""

import logging
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from adapters_hub.errors import LanguageError, NotFoundError, SettingsError
from adapters_hub.library import languages
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.commands import train_command
from adapters_hub.library.relatedness import distance as distance_of

log = logging.getLogger(__name__)

SOURCE = "family"
"""Where distances come from unless said otherwise: what ships."""

TEMPERATURE = 0.2
"""By how much distance a weight falls to 1/e of the nearest language's."""

MOST = 4
"""How many languages a proxy is made of at most."""

LEAST = 0.05
"""The weight below which a language is left out; the others take it over."""

_TERM = "proxy:"


@dataclass(frozen=True)
class Neighbour:
    """A language in a proxy: its adapter's name, its distance from the one wanted, its weight."""

    language: str
    adapter: str
    distance: float
    weight: float


@dataclass(frozen=True)
class Proxy:
    """What stands for the adapter of a language: ``blend``, of exact names, and why it is this."""

    language: str
    neighbours: tuple[Neighbour, ...]
    source: str

    @property
    def blend(self) -> Blend:
        """The neighbours' adapters, at weights that add up to one."""
        return Blend([(near.adapter, near.weight) for near in self.neighbours], exact=True)

    @property
    def reason(self) -> str:
        """Which languages, with which weight, and how far they are, in words."""
        if self.neighbours[0].distance == 0:
            return f"there is an adapter for {self.language}"
        parts = ", ".join(
            f"{near.weight:.2f} of {near.adapter} ({languages.name(near.language)}, "
            f"distance {near.distance:.2f})"
            for near in self.neighbours
        )
        return f"the languages nearest to {languages.name(self.language)} by {self.source}: {parts}"


def proxy(
    language: str,
    infos: Sequence[AdapterInfo],
    where: str,
    *,
    distance: str = SOURCE,
    temperature: float = TEMPERATURE,
    most: int = MOST,
    without: Collection[str] = (),
) -> Proxy:
    """The proxy of a language from the adapters for a language alone; see `Library.proxy`."""
    if not temperature > 0 or most < 1:
        raise SettingsError(
            f"temperature={temperature}, most={most}: give a number above 0, and one from 1 on"
        )
    wanted = languages.canonical(language)
    offered = _by_language(infos, {languages.canonical(tag) for tag in without})
    if wanted in offered:
        return Proxy(wanted, (Neighbour(wanted, offered[wanted].name, 0.0, 1.0),), distance)
    distances: list[tuple[float, str]] = []
    unknown = []
    for tag in offered:
        try:
            distances.append((distance_of(wanted, tag, distance), tag))
        except LanguageError as error:
            unknown.append(str(error))
    near = sorted(pair for pair in distances if pair[0] < 1)[:most]
    if not near:
        have = ", ".join(sorted(offered)) or "none"
        why = f" ({unknown[0]})" if unknown else ""
        raise NotFoundError(
            f"no proxy for {wanted} ({languages.name(wanted)}): by {distance}, none of the "
            f"languages with an adapter in {where} is related to it (have: {have}){why}. Train "
            f"one: {train_command('language', '--language', wanted, '--data', 'FILE')}"
        )
    raw = [math.exp((near[0][0] - far) / temperature) for far, _ in near]
    kept = [
        (pair, value) for pair, value in zip(near, raw, strict=True) if value / sum(raw) >= LEAST
    ]
    whole = sum(value for _, value in kept)
    return Proxy(
        wanted,
        tuple(Neighbour(tag, offered[tag].name, far, value / whole) for (far, tag), value in kept),
        distance,
    )


def offer(language: str, infos: Sequence[AdapterInfo], where: str) -> str:
    """What a message about a missing adapter says of its proxy; empty where there is none."""
    try:
        nearest = proxy(language, infos, where)
    except (NotFoundError, LanguageError):
        return ""
    return f" Or take proxy:{nearest.language}, {nearest.reason}"


def proxied(term: str) -> str | None:
    """The language of a term ``proxy:nds``; None for another term."""
    return term.removeprefix(_TERM).removesuffix("?") if term.startswith(_TERM) else None


def expand(blend: Blend, infos: Sequence[AdapterInfo], where: str) -> Blend:
    """A blend with what each ``proxy:`` stands for in its place; nothing for an optional one.

    What was taken is logged. Raises `NotFoundError` for a language with no related one.
    """
    blends: dict[str, Blend] = {}
    for term in blend.terms:
        if (language := proxied(term)) is None:
            continue
        try:
            taken = proxy(language, infos, where)
        except NotFoundError:
            if not term.endswith("?"):
                raise
            blends[term] = Blend()
            continue
        log.info("%s: %s", term, taken.reason)
        blends[term] = taken.blend
    return blend.expand(blends) if blends else blend


def _by_language(infos: Iterable[AdapterInfo], without: set[str]) -> dict[str, AdapterInfo]:
    """The adapter of each language alone; of several, the one that is named as it."""
    offered: dict[str, AdapterInfo] = {}
    for info in infos:
        if not info.language or info.domain or info.language in without:
            continue
        if info.language not in offered or info.name == info.language:
            offered[info.language] = info
    return offered
