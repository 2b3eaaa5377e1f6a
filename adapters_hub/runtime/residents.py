"""Which adapters are in memory: loaded by exact name, in tiers, as the library has them now.

Knows the bank, the library, files, and blends as values; does not know plans or tasks. Adapters in
use are in the bank, beside the backbone. Those that leave it, least recently used first, may stay
as bytes in host memory (``host_memory`` bytes; worth it where the backbone is elsewhere), and
beyond that are read from their files again. Those added from memory have no file, and so never
leave.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Set
from dataclasses import replace

import torch

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import (
    AdaptersHubError,
    BackboneMismatchError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.library import languages, lookup, proxies
from adapters_hub.library.adapter_file import AdapterFiles, AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.composition import weight_beside
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.library import Library
from adapters_hub.library.row_terms import row_term
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.bank import Bank
from adapters_hub.runtime.tensors import read_tensor_bytes

log = logging.getLogger(__name__)

HOST_MEMORY = 8 << 30
"""Bytes kept in host memory for a backbone on another device, unless said otherwise."""
Stamp = tuple[int, ...]
"""The state of the files that an adapter was loaded from."""


class Residents:
    """The adapters of one model. All methods may be called from several threads."""

    def __init__(
        self,
        backbone: Backbone,
        library: Library,
        memory: int,
        host_memory: int | None = None,
        check_backbone: bool = True,
    ) -> None:
        self.backbone = backbone
        self.library = library
        self.check_backbone = check_backbone
        self.lock = threading.RLock()
        self.bank = Bank(backbone.sites, memory, self._evicted, backbone.moe)
        self._wanted_host_memory = host_memory
        self._adapters: dict[str, Adapter] = {}
        self._added: set[str] = set()  # added from memory: not in the library, so never dropped
        self._stamps: dict[str, Stamp] = {}
        self._host: OrderedDict[str, tuple[Stamp, AdapterFiles, torch.Tensor]] = OrderedDict()
        # term → adapter, or None of an optional one, as long as the library stays as it is
        self._names: dict[str, str | None] = {}
        self._languages: dict[str, str | None] = {}  # language → its adapter, likewise
        # (language adapter, terms beside it) → its weight, likewise
        self._weights: dict[tuple[str, tuple[str, ...]], float] = {}
        self._infos: dict[str, AdapterInfo] = {}  # the library's, likewise
        self._seen: tuple[int, ...] | None = None  # the library's state that these are for

    @property
    def _on_host(self) -> bool:
        return self.backbone.device.type == "cpu"

    @property
    def _pinned(self) -> bool:
        return not self._on_host and torch.cuda.is_available()

    @property
    def host_memory(self) -> int:
        """Bytes kept in host memory of adapters that left the bank."""
        if self._wanted_host_memory is not None:
            return self._wanted_host_memory
        return 0 if self._on_host else HOST_MEMORY

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of exactly this name, loaded if it is not resident."""
        with self.lock:
            self.load({name})
            return self._adapters[name]

    def current(self, name: str) -> Adapter:
        """The adapter of exactly this name as the library has it now.

        Raises `NotFoundError` also for one that was loaded and has been removed since.
        """
        with self.lock:
            if name not in self._added:
                self.library.get(name)
            return self[name]

    def names_of(self, terms: Iterable[str]) -> dict[str, str | None]:
        """The exact names that terms mean, by what the library holds now; see `Library.find`.

        None for an optional term (``en?``) for which there is no adapter.
        """
        with self.lock:
            self._look()
            return {term: self._name_of(term) for term in terms}

    def load(self, names: Set[str]) -> None:
        """Make the adapters of these exact names resident, all of them at once."""
        with self.lock:
            self._look()
            for name in sorted(names):
                if name not in self.bank:
                    self.bank.drop_view()  # first, so that its memory is free
                    adapter = self._from_library(name)
                    self.bank.put(name, adapter.factors, adapter.scaling, keep=names)
                    self._adapters[name] = adapter

    def add(self, adapter: Adapter, trained: bool = False) -> None:
        """Make an adapter from memory resident under its name; ``trained`` keeps gradients."""
        with self.lock:
            self.bank.put(
                adapter.name, adapter.factors, adapter.scaling, trained=trained, pinned=True
            )
            self._adapters[adapter.name] = adapter
            self._added.add(adapter.name)
            self._weights.clear()

    def drop(self, name: str) -> None:
        """Forget an adapter; it is loaded again from the library when it is next used."""
        with self.lock:
            self.bank.drop(name)
            self._adapters.pop(name, None)
            self._added.discard(name)
            self._host.pop(name, None)

    def follow_backbone(self) -> None:
        """Bring the adapters to where the backbone was moved.

        Those of the library are loaded again when they are next used.
        """
        device = self.backbone.device
        with self.lock:
            self._host.clear()
            for name in self.bank.names():
                adapter = self._adapters[name]
                if name in self._added:
                    self.add(adapter.map(lambda tensor: tensor.to(device)))
                else:
                    self.drop(name)

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _drop_replaced(self, name: str) -> None:
        """Forget an adapter that was replaced in the library since it was loaded from there."""
        stamp = self._stamps.get(name)
        if name not in self._added and stamp not in (None, self.library.stamp(name)):
            self.drop(name)

    def _name_of(self, term: str) -> str | None:
        plain = term.removesuffix("?")
        if (name := plain.removeprefix("name:")) in self._added:
            return name
        if self.is_row_term(term):
            raise SettingsError(
                f"{term!r} stands for the adapter of each row's language, and here are no texts to "
                "find it by: give texts (model.classify(texts, adapters=…)), or first make blends "
                "of them: model.blends_of(texts, …)"
            )
        if term not in self._names:
            try:
                self._names[term] = self._find(plain).name
            except (NotFoundError, BackboneMismatchError):
                if plain == term:
                    raise
                log.info("no adapter for the optional term %r: it adds nothing", term)
                self._names[term] = None
        return self._names[term]

    def is_row_term(self, term: str) -> bool:
        """Whether a term is ``auto``, and not the name or domain of an adapter."""
        meant = row_term(term)
        if meant is None:
            return False
        self._look()
        word = term.removesuffix("?")
        named = any(word in (info.name, info.domain) for info in self._infos.values())
        return not (meant.plain and (named or word in self._added))

    def split(self, blend: Blend) -> tuple[Blend, Blend]:
        """The terms of a blend that mean another adapter in each row, and the others."""
        with self.lock:
            rows = {} if blend.exact else {t: Blend() for t in blend.terms if self.is_row_term(t)}
        kept = [(term, weight) for term, weight in blend.weights if term in rows]
        return Blend(kept), blend.expand(rows) if rows else blend

    def languages(self) -> list[str]:
        """The languages that have an adapter of their own for this backbone."""
        with self.lock:
            self._look()
            return sorted({info.language for info in self._fitting() if info.language})

    def expand(self, blend: Blend) -> Blend:
        """A blend with what each ``proxy:`` stands for in its place; see `proxies`."""
        if blend.exact or not any(proxies.proxied(term) for term in blend.terms):
            return blend
        with self.lock:
            self._look()
            return proxies.expand(blend, self._fitting(), str(self.library.root))

    def proxy(self, language: str) -> proxies.Proxy | None:
        """The proxy of a language, from the adapters for this backbone; None without a near one."""
        with self.lock:
            self._look()
            try:
                return proxies.proxy(language, self._fitting(), str(self.library.root))
            except NotFoundError:
                return None

    def _fitting(self) -> list[AdapterInfo]:
        """The adapters for a language alone that are for this backbone."""
        check = self.backbone.fingerprint if self.check_backbone else None
        return [
            info
            for info in self._infos.values()
            if info.language and not info.domain and (not check or belongs(info.fingerprint, check))
        ]

    def language_adapter(self, language: str) -> str | None:
        """The adapter that a language has: of just this, else of the closest language.

        None, with one logged line, where there is none or the tag says "undetermined". Raises
        `LanguageError` for what is no language, `AmbiguousTermError` for a language with several
        adapters, none of which is named as it.
        """
        with self.lock:
            self._look()
            if language not in self._languages:
                info = None
                if not languages.undetermined(language):
                    info = self.of_language(languages.canonical(language))
                if info is None:
                    log.warning("no language adapter for %r: its rows go without one", language)
                self._languages[language] = None if info is None else info.name
            return self._languages[language]

    def with_language(self, blend: Blend, name: str | None) -> Blend:
        """A resolved blend and a language adapter more, if there is one and it is not in it."""
        if name is None or name in blend.terms:
            return blend
        return blend + Blend(((name, self.weight_beside(name, blend)),), exact=True)

    def weight_beside(self, name: str, blend: Blend) -> float:
        """The weight of a language adapter beside a resolved blend, by what the cards say.

        One that is not 1 is logged once, with the reason.
        """
        with self.lock:
            self._look()
            key = (name, blend.terms)
            if key not in self._weights:
                chosen = weight_beside(self._info(name), [self._info(t) for t in blend.terms])
                if chosen.weight != 1:
                    log.warning("%s has weight %.3g: %s", name, chosen.weight, chosen.reason)
                self._weights[key] = chosen.weight
            return self._weights[key]

    def _info(self, name: str) -> AdapterInfo:
        """What is known of an adapter, from memory or the library."""
        if name in self._added:
            return self._adapters[name].info
        return self._infos.get(name) or self.library.get(name)

    def of_language(self, tag: str) -> AdapterInfo | None:
        """The adapter for a language alone, of this tag or the closest; None if there is none.

        The one rule for which adapter goes below a row, in training and in use. Raises
        `AmbiguousTermError` for a language with several adapters, none of which is named as it.
        """
        with self.lock:
            self._look()
            try:
                info = self._find(f"lang:{tag}")
            except (NotFoundError, BackboneMismatchError):
                return None
        return None if info.domain else info

    def _find(self, term: str) -> AdapterInfo:
        check = self.backbone.fingerprint if self.check_backbone else None
        if term.rpartition(":")[2] not in self._infos:
            self.library.explain(term)  # rather than another one for a damaged one
        return lookup.find(term, [*self._infos.values()], check, str(self.library.root))

    def with_head(self) -> list[str]:
        """The names of the library's adapters for this backbone that bring a task's head."""
        names = []
        check = self.backbone.fingerprint if self.check_backbone else None
        for info in self.library.list(fingerprint=check):
            try:
                files = self.library.open(info)
            except AdaptersHubError as error:  # gone or damaged since it was listed
                log.debug("%s: %s", info.name, error)
                continue
            if files.head:
                names.append(info.name)
        return names

    def _evicted(self, name: str) -> None:
        self._adapters.pop(name, None)

    def _look(self) -> None:
        """Look at the library again if it changed."""
        if (state := self.library.state()) != self._seen:
            self._names.clear()
            self._languages.clear()
            self._weights.clear()
            self._infos = {info.name: info for info in self.library.list()}
            self._seen = state
            for name in [*self._adapters]:
                self._drop_replaced(name)

    def _from_library(self, name: str) -> Adapter:
        self._look()
        info = self._infos.get(name) or self.library.get(name)  # which raises, with advice
        stamp = self.library.stamp(name)
        with torch.inference_mode(False):  # what stays must serve any later call
            kept, files, data = self._host.get(name, (None, None, None))
            if kept != stamp or files is None or data is None:
                files = self.library.open(info)
                data = read_tensor_bytes(files, self._pinned)
            adapter = Adapter.load(files, self.backbone, self.check_backbone, data)
        self._stamps[name] = stamp
        self._keep(name, stamp, files, data)
        return replace(adapter, info=info)

    def _keep(self, name: str, stamp: Stamp, files: AdapterFiles, data: torch.Tensor) -> None:
        if not self.host_memory:
            return
        self._host[name] = (stamp, files, data)
        self._host.move_to_end(name)
        while sum(len(data) for _, _, data in self._host.values()) > self.host_memory:
            self._host.popitem(last=False)
