"""Who must have signed which adapters of a library: its ``trust.yaml``.

    keys:
      ops: ops.pub                 # public keys, PEM; paths are relative to trust.yaml
      partner: partner.pub
    adapters:
      hotel: [partner]             # a name
      "de*": [ops, partner]        # a pattern: * is anything, ? one letter, [ab] one of these
      "test-*": unsigned
      "*": [ops]

A name's rule is that of the name itself, else the first pattern that fits; a name without a rule is
refused, so that none is forgotten. No file: nothing is demanded. A file that cannot be read is an
error, and nothing is loaded. Whoever may write to the library's folder may write this file too: it
guards against files from elsewhere, not against those who keep the library.
"""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapters_hub.errors import AdapterFileError, SettingsError, SignatureError
from adapters_hub.library.safetensors_file import read_small
from adapters_hub.library.signatures import PublicKey, check_signed, read_public_key

TRUST_FILE = "trust.yaml"
UNSIGNED = "unsigned"
_MAX_BYTES = 100_000

_State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class TrustPolicy:
    """What a library's ``trust.yaml`` demands. ``rules``: names or patterns → keys, None for none
    demanded.
    """

    path: Path
    rules: dict[str, tuple[PublicKey, ...] | None]

    @classmethod
    def read(cls, root: Path) -> "TrustPolicy | None":
        """A library's policy; None if it has none. Raises `SettingsError` for a damaged one."""
        path = root / TRUST_FILE
        if not os.path.lexists(path):
            return None
        try:
            data = _yaml(read_small(path, _MAX_BYTES).decode())
            keys, adapters = _mapping(data, "keys"), _mapping(data, "adapters")
            if extra := data.keys() - {"keys", "adapters"}:
                raise ValueError(f"unknown: {sorted(map(str, extra))}")
            known = {name: read_public_key(root / str(file), name) for name, file in keys.items()}
            return cls(path, {term: _rule(term, rule, known) for term, rule in adapters.items()})
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror or error}") from None
        except (AdapterFileError, SettingsError, ValueError, RecursionError) as error:
            raise SettingsError(
                f"{path}: {error}; nothing is loaded until it is put right"
            ) from None

    def keys(self, name: str) -> tuple[PublicKey, ...] | None:
        """The keys of which one must have signed an adapter; None where it may be unsigned.

        Raises `SignatureError` for a name that no rule is for.
        """
        if name in self.rules:
            return self.rules[name]
        for pattern, rule in self.rules.items():
            if fnmatch.fnmatchcase(name, pattern):
                return rule
        raise SignatureError(
            f'{self.path} has no rule for {name!r}: add one under "adapters" (its keys, or '
            f"{UNSIGNED})"
        )


class Gate:
    """Checks an adapter's signature each time a library loads it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._passed: dict[str, tuple[frozenset[str], _State]] = {}

    def keys(self, name: str) -> tuple[PublicKey, ...] | None:
        """The keys of which one must have signed an adapter of this name; None for no demand."""
        policy = TrustPolicy.read(self._root)
        return policy.keys(name) if policy else None

    def check(self, name: str, folder: Path) -> None:
        """Raise `SignatureError` unless an adapter is signed as its library demands.

        The files are not read again while their times and sizes and the keys stay the same.
        """
        if (keys := self.keys(name)) is None:
            return
        asked = frozenset(key.digest for key in keys), _state(folder)
        if self._passed.get(name) == asked:
            return
        self._passed.pop(name, None)
        check_signed(folder, keys)
        if _state(folder) != asked[1]:
            raise SignatureError(
                f"{folder}: changed while its signature was checked; load it again"
            )
        self._passed[name] = asked

    def unchanged(self, name: str, folder: Path) -> None:
        """After files were read: raise `SignatureError` if they are not those that passed."""
        passed = self._passed.get(name)
        if passed and passed[1] != _state(folder):
            raise SignatureError(f"{folder}: changed while it was read; load it again")

    def refuse_change(self, name: str, what: str) -> None:
        """Raise `SignatureError` if ``what`` would leave an adapter unsigned that must be."""
        if keys := self.keys(name):
            raise SignatureError(
                f"{self._root / TRUST_FILE} demands a signature of {' or '.join(map(str, keys))} "
                f"for {name!r}, and {what} would be without: do it in another library, then sign "
                "the adapter's folder and add that (adapters-hub sign, adapters-hub add)"
            )


def _state(folder: Path) -> _State:
    """Names, times and sizes of all files below a folder."""
    stamps = []
    for place, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(place, file)
            try:
                seen = os.stat(path)
            except OSError:
                continue  # a dangling link, which the check itself reports
            stamps.append((path, seen.st_mtime_ns, seen.st_size, seen.st_ino))
    return tuple(sorted(stamps))


def _yaml(text: str) -> dict[object, object]:
    """A policy's text; `ValueError` for no YAML, a name twice, or aliases."""
    import yaml

    class Strict(yaml.BaseLoader):
        """One that takes no name twice; all is text, for \"no\" is Norwegian."""

        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[object, object]:
            names = [str(key.value) for key, _ in node.value]
            if len(set(names)) < len(names):
                raise ValueError(f"a name occurs twice among {names!r}")
            return dict(super().construct_mapping(node, deep))

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("aliases are not allowed")
        data = yaml.load(text, Loader=Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({error})") from None
    if not isinstance(data, dict):
        raise ValueError('no mapping with "keys" and "adapters"')
    return data


def _mapping(data: dict[object, object], name: str) -> dict[str, object]:
    value = data.get(name) or {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f'"{name}" is no mapping of names')
    return value


def _rule(term: str, rule: object, keys: dict[str, PublicKey]) -> tuple[PublicKey, ...] | None:
    if rule == UNSIGNED:
        return None
    names: Iterable[object] = rule if isinstance(rule, list) else [rule]
    if not isinstance(rule, list | str) or not rule:
        raise ValueError(f"{term!r}: a list of keys, or {UNSIGNED}")
    if unknown := [name for name in names if not isinstance(name, str) or name not in keys]:
        raise ValueError(f'{term!r}: no key {unknown[0]!r} under "keys"')
    return tuple(keys[str(name)] for name in names)
