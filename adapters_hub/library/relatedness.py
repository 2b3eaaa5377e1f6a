"""How far apart two languages are, for a choice among adapters: by family, by CLDR, by URIEL+.

Knows tags, a table that ships and, where it is installed, urielplus' tables; knows no adapters. All
distances are from 0 (the same) to 1 (nothing in common).
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.errors import LanguageError, MissingExtraError, SettingsError
from adapters_hub.library import languages

if TYPE_CHECKING:
    import numpy.typing as npt
    from numpy import float32

_SCRIPT = 0.1  # what another script adds; two languages with nothing else between them are near
_FAR = 134  # CLDR's distance of languages that have nothing in common, in other scripts


def distance(wanted: str, offered: str, source: str = "family") -> float:
    """The distance of two languages (tags) by a source of `SOURCES`.

    Raises `LanguageError` for a language that the source does not know, `SettingsError` for no
    source, `MissingExtraError` for ``uriel`` without its package.
    """
    if source not in SOURCES:
        raise SettingsError(f"distance={source!r}: choose one of {', '.join(SOURCES)}")
    return min(1.0, SOURCES[source](languages.canonical(wanted), languages.canonical(offered)))


def shared_group(wanted: str, offered: str) -> str | None:
    """The smallest group (ISO 639-5 code) that the table of families has both languages in."""
    shared = [a for a, b in zip(_path(wanted), _path(offered), strict=False) if a == b]
    return shared[-1] if shared else None


def by_family(wanted: str, offered: str) -> float:
    """The share of the ways from the root that two languages do not share, and their scripts."""
    a, b = (*_path(wanted), _base(wanted)), (*_path(offered), _base(offered))
    shared = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        shared += 1
    other_script = _SCRIPT if languages.script(wanted) != languages.script(offered) else 0.0
    return 1 - 2 * shared / (len(a) + len(b)) + other_script


def by_cldr(wanted: str, offered: str) -> float:
    """CLDR's distance of a reader's language to the one offered, which knows few pairs."""
    return languages.distance(wanted, offered) / _FAR


def by_uriel(wanted: str, offered: str) -> float:
    """The mean of URIEL's genetic, syntactic and geographic distances (arXiv:2601.16629 uses them).

    Each is the angle between the feature vectors, as urielplus has it (arXiv:2409.18472); a kind
    for which a language has no features is left out.
    """
    import numpy as np  # which listing a library does not need

    angles = []
    for table in _URIEL:
        index, values = _uriel(*table)
        pair = [values[_row(index, tag)] for tag in (wanted, offered)]
        known = (pair[0] >= 0) & (pair[1] >= 0)
        a, b = pair[0][known], pair[1][known]
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        if norm:
            angles.append(2 / np.pi * float(np.arccos(np.clip(a @ b / norm, -1, 1))))
    if not angles:
        raise LanguageError(f"URIEL has no features that {wanted} and {offered} share")
    return sum(angles) / len(angles)


SOURCES: dict[str, Callable[[str, str], float]] = {
    "family": by_family,
    "cldr": by_cldr,
    "uriel": by_uriel,
}
"""Where distances come from, by name."""

_URIEL = (("family_features.npz", ""), ("features.npz", "S_"), ("geocoord_features.npz", ""))


def _base(tag: str) -> str:
    return tag.partition("-")[0]


def _path(tag: str) -> tuple[str, ...]:
    """The groups a language is in, the widest first."""
    groups = _families().get(_base(tag))
    if groups is None:
        raise LanguageError(
            f"{tag} ({languages.name(tag)}) is not in the table of families that ships; "
            "distance='uriel' knows more languages: pip install 'adapters-hub[uriel]'"
        )
    return groups


@lru_cache(maxsize=1)
def _families() -> dict[str, tuple[str, ...]]:
    text = (files("adapters_hub.library") / "families.txt").read_text(encoding="utf-8")
    groups: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            path, _, tags = line.partition(":")
            groups.update(dict.fromkeys(tags.split(), tuple(path.split())))
    return groups


@lru_cache(maxsize=8)
def _uriel(file: str, prefix: str) -> tuple[dict[str, int], "npt.NDArray[float32]"]:
    """URIEL's languages (ISO 639-3) → rows, and features (languages, features), -1 unknown.

    The package's tables, without the package: to import it turns on the program's logging.
    """
    import numpy as np

    spec = find_spec("urielplus")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "distances by URIEL need urielplus: pip install 'adapters-hub[uriel]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "database" / "original_uriel"
    with np.load(folder / file, allow_pickle=False) as table:
        chosen = np.array([str(name).startswith(prefix) for name in table["feats"]])
        data = table["data"][:, chosen].astype(np.float32)
        index = {str(code): row for row, code in enumerate(table["langs"])}
    known = data >= 0  # (languages, features, sources); where sources differ, their mean
    total = np.where(known, data, 0).sum(2)
    return index, np.where(known.any(2), total / np.maximum(known.sum(2), 1), -1)


def _row(index: dict[str, int], tag: str) -> int:
    """The row of a language, or of the language that a macrolanguage's code is used for."""
    import langcodes

    code = langcodes.Language.get(_base(tag)).to_alpha3()
    for candidate in (code, *_members().get(_base(tag), ())):
        if candidate in index:
            return index[candidate]
    raise LanguageError(f"URIEL does not know {tag} ({languages.name(tag)})")


@lru_cache(maxsize=1)
def _members() -> dict[str, list[str]]:
    """Macrolanguage → the codes that are written as it."""
    from langcodes.data_dicts import NORMALIZED_MACROLANGUAGES

    members: dict[str, list[str]] = {}
    for code, whole in NORMALIZED_MACROLANGUAGES.items():
        members.setdefault(whole, []).append(code)
    return members
