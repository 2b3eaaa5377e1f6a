"""Which adapter a term of a blend, or a language, means. Works on a list; reads no files."""

import difflib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapters_hub.errors import (
    AmbiguousTermError,
    BackboneMismatchError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.library import languages, proxies
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.commands import train_command
from adapters_hub.library.fingerprint import belongs

log = logging.getLogger(__name__)
_SHOWN = 20


@dataclass(frozen=True)
class Resolution:
    """The adapter for a language, and how far its language is from the one asked."""

    info: AdapterInfo
    wanted: str  # canonical tag
    distance: int  # CLDR's; 0 is exact
    reason: str


def resolve(
    language: str, infos: Sequence[AdapterInfo], max_distance: int, where: str
) -> Resolution:
    """The language adapter nearest to a language; see `Library.resolve`."""
    closest = _closest(language, infos, max_distance, where)
    if closest is None:
        plain = [info for info in infos if info.language and not info.domain]
        raise NotFoundError(missing(f"lang:{language}", plain, where))
    return closest


def _closest(
    language: str, infos: Sequence[AdapterInfo], max_distance: int, where: str
) -> Resolution | None:
    wanted = languages.canonical(language)
    plain = [info for info in infos if info.language and not info.domain]
    match = languages.closest(wanted, {i.language for i in plain if i.language}, max_distance)
    if match is None:
        return None
    tag, distance = match
    fitting = [info for info in plain if info.language == tag]
    if len(fitting) > 1:
        named_so = [info for info in fitting if info.name == tag]
        if not named_so:
            raise AmbiguousTermError(_ambiguous(wanted, [], {"language": fitting}, where))
        fitting = named_so
    if distance == 0:
        same = "" if tag == wanted else f", which is the same as {tag} to CLDR"
        return Resolution(fitting[0], wanted, 0, f"there is an adapter for {wanted}{same}")
    reason = (
        f"no adapter for {wanted} ({languages.name(wanted)}); the closest is {tag} "
        f"({languages.name(tag)}), at CLDR distance {distance} (limit {max_distance})"
    )
    log.warning(reason)
    return Resolution(fitting[0], wanted, distance, reason)


def find(
    term: str, everything: Sequence[AdapterInfo], fingerprint: str | None, where: str
) -> AdapterInfo:
    """The one adapter a blend's term means; see `Library.find`.

    An exact name wins, unless the same word is also the language or domain of other adapters.
    """
    if proxies.proxied(term) is not None:
        raise SettingsError(
            f"{term!r} stands for several adapters, and one is wanted here; "
            f"Library.proxy({proxies.proxied(term)!r}) says which"
        )
    infos = [i for i in everything if fingerprint is None or belongs(i.fingerprint, fingerprint)]
    kind, _, value = term.rpartition(":")
    readings: dict[str, list[AdapterInfo]] = {}
    if kind in ("", "lang") and languages.is_language(value):
        tag = languages.canonical(value)
        readings["language"] = _named(_for_language(tag, infos), tag, kind)
    if kind in ("", "domain"):
        readings["domain"] = _named(_for_domain(value, infos), value, kind)
    named = [info for info in infos if kind in ("", "name") and info.name == value]
    if named and all(not group or named[0] in group for group in readings.values()):
        return named[0]
    meant = {info.name: info for group in (named, *readings.values()) for info in group}
    if len(meant) == 1:
        return next(iter(meant.values()))
    if meant:
        raise AmbiguousTermError(_ambiguous(term, named, readings, where))
    values = {value, languages.canonical(value)} if "language" in readings else {value}
    for other in everything:
        if other not in infos and values & {other.name, other.language, other.domain}:
            raise BackboneMismatchError(
                f"{term!r} is {other.name!r} in {where}, which belongs to another backbone:\n"
                f"  adapter:  {other.fingerprint} ({other.backbone})\n"
                f"  backbone: {fingerprint}"
            )
    if "language" in readings:
        near = _closest(value, infos, languages.MAX_DISTANCE, where)
        if near is not None:
            return near.info
    raise NotFoundError(missing(term, infos, where, len(everything) - len(infos)))


def missing(term: str, infos: Iterable[AdapterInfo], where: str, others: int = 0) -> str:
    """The message of a `NotFoundError`: what there is, what is close, how to train one.

    ``others`` is how many adapters there are for other backbones.
    """
    infos = [*infos]
    names = sorted(info.name for info in infos)
    kind, _, value = term.rpartition(":")
    near = difflib.get_close_matches(value, names, n=3)
    instead = ""
    have = ", ".join(names[:_SHOWN]) + (f", … {len(names)} in all" if len(names) > _SHOWN else "")
    if others:
        have = f"{have or 'none'} for this backbone, {others} for others"
    if kind == "lang" or (not kind and languages.is_language(value)):
        tag = languages.canonical(value)
        value += "" if tag == value else f" ({tag})"
        train = train_command("language", "--language", tag, "--data", "FILE")
        instead = proxies.offer(tag, infos, where)
    else:
        train = train_command("domain", "--domain", value, "--data", "FILE")
    return (
        f'no adapter for "{value}" in {where} (have: {have or "none"}; '
        f"closest: {', '.join(near) or 'none'}). Train one: {train}"
        + (f".{instead}" if instead else "")
    )


def nothing_fits(language: str | None, domain: str | None, infos: Sequence[AdapterInfo]) -> str:
    """Why no adapter is of a language and a domain: what there is of these, and the closest."""
    reasons = []
    tags = {info.language for info in infos if info.language}
    domains = {info.domain for info in infos if info.domain}
    if language is not None and (tag := languages.canonical(language)) not in tags:
        near = languages.closest(tag, tags, languages.MAX_DISTANCE)
        reasons.append(_lacks("language", tag, tags, near[0] if near else "none"))
    if domain is not None and domain not in domains:
        like = difflib.get_close_matches(domain, domains, n=3)
        reasons.append(_lacks("domain", domain, domains, ", ".join(like) or "none"))
    return "; ".join(reasons) or "none fits"


def _lacks(what: str, value: str, there: set[str], closest: str) -> str:
    some = ", ".join(sorted(there)[:_SHOWN]) + (", …" if len(there) > _SHOWN else "")
    return f'none is of the {what} "{value}" (there are: {some or "none"}; closest: {closest})'


def _named(infos: list[AdapterInfo], name: str, kind: str) -> list[AdapterInfo]:
    """Of several adapters that ``lang:de`` or ``domain:hotel`` could mean, the one called so."""
    same = [info for info in infos if info.name == name]
    return same if kind and same else infos


def _for_language(tag: str, infos: Iterable[AdapterInfo]) -> list[AdapterInfo]:
    """Adapters of a language: the pure ones, or if there are none those with a domain too."""
    matching = [info for info in infos if info.language == tag]
    return [info for info in matching if not info.domain] or matching


def _for_domain(domain: str, infos: Iterable[AdapterInfo]) -> list[AdapterInfo]:
    matching = [info for info in infos if info.domain == domain]
    return [info for info in matching if not info.language] or matching


def _ambiguous(
    term: str, named: Iterable[AdapterInfo], readings: dict[str, list[AdapterInfo]], where: str
) -> str:
    value = term.rpartition(":")[2]
    read = [info for group in readings.values() for info in group]
    options = [f"the adapter named {info.name!r}" for info in named if info not in read]
    options += [f"the {kind} adapter {i.name!r}" for kind, group in readings.items() for i in group]
    advice = "write the adapter's name"
    if readings.get("language") and readings.get("domain"):
        advice = f"write lang:{value} or domain:{value}, or an adapter's full name"
    elif named:
        kind = "lang" if readings.get("language") else "domain"
        advice = f"write {kind}:{value} for that one, or name:{value} for the adapter called so"
    return f"{term!r} in {where} could be {' or '.join(options)}; {advice}"
