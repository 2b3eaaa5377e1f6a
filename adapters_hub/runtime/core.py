"""`Runtime`: one backbone, its bank and a library, used by names and blends.

Knows how a term becomes a resident adapter and a call becomes a plan. The arithmetic is the bank's;
what a task's outputs mean is the task's.
"""

from __future__ import annotations  # so that help() shows the names of types, not what they are

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from functools import cached_property
from typing import Any, Final, Self, cast
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import Backbone, ContextPair, enable_checkpointing
from adapters_hub.backbone.options import Dtype
from adapters_hub.backbone.placement import destination, move
from adapters_hub.compose.core_space import Piece
from adapters_hub.errors import BackboneError, HeadError, NotFoundError, SettingsError
from adapters_hub.library.blend import Blend, BlendLike
from adapters_hub.library.blend_file import BlendFile
from adapters_hub.library.commands import train_command
from adapters_hub.library.layers import layers_of
from adapters_hub.library.library import Library
from adapters_hub.library.row_terms import Auto
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.bank import MEMORY, MergedView
from adapters_hub.runtime.merged import merged_view, wrapped
from adapters_hub.runtime.plan import Plan
from adapters_hub.runtime.residents import Residents

log = logging.getLogger(__name__)


class Active(Enum):
    """The type of `ACTIVE`, which stands where no blend was given; None is the bare backbone."""

    ACTIVE = "active"

    def __repr__(self) -> str:
        return "ACTIVE"


ACTIVE: Final = Active.ACTIVE
Weights = BlendLike | Mapping[str, float]
"""A blend: one, its text, a mapping of names to weights, or None, the bare backbone."""

Adapters = Active | Weights | Sequence[Weights | Sequence[Weights]]
"""A blend for all rows, or a list of one a row (of several a row, where rows are of segments)."""

Languages = str | Sequence[str | None] | None
"""A language for all rows, or a list of one a row."""

BlendsOfRow = Blend | tuple[Blend, ...]
Heads = list[tuple[dict[str, Tensor], Tensor | None]]


class Runtime:
    """A frozen backbone whose rows can each use another blend of adapters.

    Adapters come from ``library`` by name, language or domain as blends mention them, and stay
    resident in ``memory`` bytes, with what the last calls stacked of them (those added from memory,
    and those that one call needs, stay whatever it is), then in ``host_memory`` bytes where the
    backbone is on another device. One that is replaced in or removed from the library is
    noticed when it is next used; a file changed in place is not. ``check_backbone=False`` accepts
    adapters that carry another backbone's fingerprint where the shapes fit. Several may stand on
    one backbone: each adds what its calls ask for, and leaves nothing on it when it is gone.
    """

    def __init__(
        self,
        backbone: Backbone,
        library: Library | None = None,
        *,
        memory: int = MEMORY,
        host_memory: int | None = None,
        check_backbone: bool = True,
    ) -> None:
        self.backbone = backbone
        self.library = Library() if library is None else library
        self.residents = Residents(backbone, self.library, memory, host_memory, check_backbone)
        self.bank = self.residents.bank
        finalize(self, self.bank.detach).atexit = False
        self._watch()
        self.active = Blend()
        self.auto = Auto()
        self.hooks: list[RemovableHandle] = []

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.backbone.tokenizer

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what flows between the backbone's layers."""
        return self.backbone.dtype

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels of the active blend's head; None if it names none. `HeadError` without one."""
        fixed = self.resolve(self.residents.split(self.active)[1])
        return self.resident(self.head_owner(fixed)).info.labels

    def eval(self) -> Self:
        """Nothing: the backbone is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode: the backbone is frozen, and adapters are trained by `ah.train`."""
        if mode:
            raise BackboneError(
                "the backbone is frozen and stays in eval mode; train adapters with ah.train(...) "
                "or the recipes"
            )
        return self

    def to(
        self, device: str | int | torch.device | Dtype | None = None, dtype: Dtype | None = None
    ) -> Self:
        """Move the backbone and the resident adapters to a device, or cast the backbone, in place.

        As in transformers: ``to("cuda")``, ``to(torch.bfloat16)``, ``to("cuda", torch.float16)``.
        Adapters keep the precision they have, and are added in the backbone's. No call may be
        under way. Raises `SettingsError` for a device or precision that is none, `BackboneError`
        for a model that is compiled, split over devices or being trained on, and for another
        precision of quantised weights.
        """
        wanted = destination(self.backbone, device, dtype)
        if wanted is None:
            return self
        self.backbone.check_at_hand("moved or cast")
        if self.bank.learning or self.bank.compiled_slots is not None:
            why = f"trains {self.bank.learning[0]!r}" if self.bank.learning else "is compiled"
            raise BackboneError(
                f"the model {why}, so its weights stay where and as they are; load another one"
            )
        move(self.backbone, *wanted)
        self.residents.follow_backbone()
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        raise BackboneError(
            "a model with its resident adapters cannot be copied: load it again with "
            "ah.load_backbone(...), or take model.merge(blend), which is a plain copy"
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.backbone.name!r}, bits={self.backbone.bits}, "
            f"active={str(self.active)!r}, resident={self.bank.names()})"
        )

    def _watch(self) -> None:
        """Let the bank see what the sites see; some architectures need more than a few tokens."""
        for tokens in (5, 64):
            try:
                with self.bank.watching(2, tokens):
                    self.backbone.probe(2, tokens)
                self.bank.bypassed = self.backbone.bypassed(self.bank.called(), 2, tokens)
                return
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                log.warning("a probe of %s with %d tokens: %s", self.backbone.name, tokens, error)
        self.bank.distrust()

    @cached_property
    def splits_head(self) -> bool:
        """Whether the language-model head can be given the body's last hidden states in pieces."""
        with self.bank.using(None):
            return self.backbone.splits_head()

    # ── adapters ─────────────────────────────────────────────────────────────────────────────

    def use(self, blend: Weights) -> Self:
        """Make a blend the one that rows use unless a call says otherwise; None is bare.

        Raises `NotFoundError`, `AmbiguousTermError`, `BackboneMismatchError` or `AdapterFileError`,
        and then the blend that was active stays.
        """
        self.active = self.pinned(blend)
        return self

    def pinned(self, blend: Weights | Active) -> Blend:
        """A blend as far as it is resolved without texts: all of it but ``auto``."""
        rows, fixed = self.residents.split(self.active if blend is ACTIVE else Blend.of(blend))
        return rows + self.resolve(fixed) if rows else self.resolve(fixed)

    def resolve(self, blend: Weights | Active) -> Blend:
        """The blend with every term replaced by an adapter's exact name, each one loaded.

        An optional term (``en?``) for which there is no adapter is left out. Raises `SettingsError`
        for ``auto``, which means an adapter in a row with a text alone.
        """
        wanted = self.residents.expand(self.active if blend is ACTIVE else Blend.of(blend))
        with self.residents.lock:
            names: dict[str, str | None] = {term: term for term in wanted.terms}
            if not wanted.exact:
                names = self.residents.names_of(wanted.terms)
            self.residents.load({name for name in names.values() if name is not None})
        return wanted.rename(names)

    def load_blend(
        self, file: BlendFile | str | os.PathLike[str], *, check_hashes: bool = True
    ) -> Blend:
        """The blend of a blend file, for `use`, a row, `export` or `merge`.

        An adapter with a weight for each layer becomes resident under another name, which
        stands for just this file's content (``hotel-de.0f3a….da``), its factors shared. Raises
        `BlendFileError`, `NotFoundError` or `BackboneMismatchError`; nothing is resident then.
        """
        file = file if isinstance(file, BlendFile) else BlendFile.read(file)
        if self.residents.check_backbone:
            file.check_backbone(self.backbone.name, self.backbone.fingerprint)
        file.check_layers(layers_of(self.backbone.sites))
        weights: list[tuple[str, float]] = []
        variants: list[Adapter] = []
        with self.residents.lock:
            for term in file.terms:
                adapter = self.residents.current(term.name)
                if check_hashes:
                    file.check_hash(term, adapter.info.hash)
                if isinstance(term.weight, float) and term.weight:
                    weights.append((term.name, term.weight))
                    continue  # one of weight 0 would be left out of a blend, with its head
                info = replace(adapter.info, name=f"{file.name}.{file.digest}.{term.name}")
                scaling = {s: v * file.weight_at(term, s) for s, v in adapter.scaling.items()}
                variants.append(replace(adapter, info=info, scaling=scaling))
                weights.append((info.name, 1.0))
            for variant in variants:
                self.add(variant)
        return Blend(tuple(weights), exact=True)

    def add(self, adapter: Adapter, trained: bool = False) -> Adapter:
        """Make an adapter from memory resident under its name; ``trained`` keeps gradients.

        Its tensors must not be changed afterwards, unless it is ``trained``.
        """
        self.residents.add(adapter, trained)
        return adapter

    def drop(self, name: str) -> None:
        """Forget a resident adapter; it is loaded again from the library when it is next used."""
        self.residents.drop(name)

    def adapter(self, term: str) -> Adapter:
        """The adapter that a term means, loaded if it is not resident."""
        with self.residents.lock:
            name = self.residents.names_of([term])[term]
            if name is None:
                raise NotFoundError(f"no adapter for {term!r} in {self.library.root}")
            return self.residents[name]

    def resident(self, name: str) -> Adapter:
        """The adapter of exactly this name, loaded if it is not resident."""
        return self.residents[name]

    # ── plans ────────────────────────────────────────────────────────────────────────────────

    def blends(
        self, rows: int, adapters: Adapters = ACTIVE, languages: Languages = None
    ) -> list[Blend]:
        """One resolved blend a row, from what a caller may give as ``adapters``.

        That is one blend for all rows (None is bare), or a list of one a row; not given, it is the
        active one. ``languages`` (one for all rows, or one a row) adds to each row's blend the
        adapter of its language, if there is one and it is not in it, at the weight of
        `library.composition.weight_beside`. Raises `SettingsError` for a list of another length,
        and for a blend a token.
        """
        resolved = self._rows(rows, adapters, languages)
        blends = [row for row in resolved if isinstance(row, Blend)]
        if len(blends) < rows:
            raise SettingsError("a blend a token works in a plain call of the model, not here")
        return blends

    def _rows(self, rows: int, adapters: Adapters, languages: Languages) -> list[BlendsOfRow]:
        """One resolved blend a row, or a tuple of one a token, with the rows' languages."""
        resolved = self._resolved(rows, adapters)
        if languages is None:
            return resolved
        tags = [languages] * rows if isinstance(languages, str) else list(languages)
        if len(tags) != rows:
            raise SettingsError(
                f"{len(tags)} tags in `languages` for {rows} rows: give one for all, or one a row "
                "(None for a row without a language adapter)"
            )
        with self.residents.lock:
            named = {tag: self.residents.language_adapter(tag) for tag in set(tags) if tag}
            add = self.residents.with_language
            return [
                tuple(add(blend, named.get(tag or "")) for blend in row)
                if isinstance(row, tuple)
                else add(row, named.get(tag or ""))
                for row, tag in zip(resolved, tags, strict=True)
            ]

    def _resolved(self, rows: int, adapters: Adapters) -> list[BlendsOfRow]:
        """One resolved blend a row, or a tuple of one a token."""
        if adapters is None or isinstance(adapters, Active | str | Blend | Mapping):
            return [self.resolve(adapters)] * rows
        if len(adapters) != rows:
            raise SettingsError(
                f"{len(adapters)} blends in `adapters` for {rows} rows: give one for all, "
                "or one a row (None for a bare row)"
            )
        known: dict[Blend, Blend] = {}  # distinct blends are resolved once

        def resolve(weights: Weights) -> Blend:
            wanted = self.active if isinstance(weights, Active) else Blend.of(weights)
            if wanted not in known:
                known[wanted] = self.resolve(wanted)
            return known[wanted]

        return [
            tuple(map(resolve, row))
            if isinstance(row, list | tuple)
            else resolve(cast(Weights, row))
            for row in adapters
        ]

    def plan(self, rows: Sequence[BlendsOfRow], dropout: float = 0.0) -> Plan | None:
        """The bank's plan for rows of resolved blends, or of one a token."""
        shape: tuple[int, ...] = (len(rows),)
        lengths = {len(row) for row in rows if isinstance(row, tuple)}
        if len(lengths) > 1:
            raise SettingsError(
                f"rows of {sorted(lengths)} blends: give as many as there are tokens"
            )
        for tokens in lengths:
            wide = [row if isinstance(row, tuple) else (row,) * tokens for row in rows]
            shape, rows = (len(rows), tokens), [blend for row in wide for blend in row]
        blends = cast(Sequence[Blend], rows)
        distinct = list(dict.fromkeys(blends))
        number = {blend: place for place, blend in enumerate(distinct)}
        mappings = [dict(blend.weights) for blend in distinct]
        index = None
        if len(distinct) > 1 or lengths:
            index = torch.tensor([number[blend] for blend in blends]).view(shape)
        with self.residents.lock:  # one may have been evicted since the blends were resolved
            self.residents.load({name for blend in distinct for name in blend.terms})
            return self.bank.plan(mappings, index, dropout)

    @contextmanager
    def adapted(
        self, rows: int, adapters: Adapters = ACTIVE, languages: Languages = None
    ) -> Iterator[None]:
        """Every forward inside the block follows the given blends; see `blends`."""
        with self.bank.using(self.plan(self._rows(rows, adapters, languages))):
            yield

    def heads(self, blends: Sequence[Blend]) -> Heads:
        """The distinct heads of rows and which rows have them: (parameters, row indices or None).

        Raises `HeadError` for a row whose blend has no head, or more than one.
        """
        rows_of: dict[str, list[int]] = {}
        owners = {blend: self.head_owner(blend) for blend in set(blends)}
        for row, blend in enumerate(blends):
            rows_of.setdefault(owners[blend], []).append(row)
        heads = [(self.resident(name).head, rows) for name, rows in rows_of.items()]
        if len(heads) == 1:
            return [(heads[0][0], None)]
        device = self.backbone.device
        return [(head, torch.tensor(rows, device=device)) for head, rows in heads]

    def head_owner(self, blend: Blend) -> str:
        """The one adapter of a blend that brings the head."""
        adapters = {name: self.resident(name) for name in blend.terms}
        owners = [name for name, adapter in adapters.items() if adapter.head]
        if len(owners) == 1:
            return owners[0]
        if not owners:
            headed = self.residents.with_head()
            listed = ", ".join(headed[:8]) + (", …" if len(headed) > 8 else "")
            raise HeadError(
                f"no adapter of {str(blend)!r} has a task head. "
                + (
                    f"In {self.library.root} these have one: {listed}; add it to the blend"
                    if headed
                    else f"None in {self.library.root} has one for this backbone. Train one: "
                    + train_command("domain", "--task", "classification", "--data", "FILE")
                )
            )
        labels = {name: list(adapters[name].info.labels or ()) for name in owners}
        differ = len({tuple(value) for value in labels.values()}) > 1
        listed = ", ".join(f"{n} {value}" if differ else n for n, value in labels.items())
        raise HeadError(
            f"{len(owners)} adapters of {str(blend)!r} have a task head ({listed}) and heads are "
            "never averaged" + (": their labels differ" if differ else "") + "; keep one of them"
        )

    # ── use ──────────────────────────────────────────────────────────────────────────────────

    def __call__(
        self, *, adapters: Adapters = ACTIVE, languages: Languages = None, **inputs: object
    ) -> Any:
        """The backbone's forward, with a blend a row: what transformers returns, unchanged.

        ``input_ids``, ``attention_mask``, …: (rows, tokens), as the backbone's class takes them.
        A row of ``adapters`` may be a list of blends, one a token, for packed rows; further see
        `blends`.
        """
        tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        if not tensors:
            raise SettingsError("give the inputs by name: model(input_ids=…, attention_mask=…)")
        known = [tensors[key] for key in ("input_ids", "inputs_embeds") if key in tensors]
        rows = len((known or [*tensors.values()])[0])
        if self.hooks and torch.is_grad_enabled() and self.backbone.kind != "encoder":
            inputs.setdefault("use_cache", False)  # a layer computed twice would fill it twice
        with self.adapted(rows, adapters, languages):
            return self.backbone.model(**inputs)

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training; the second forward follows the first one's plan."""

        def contexts() -> ContextPair:  # a function, which a copy of the model just refers to
            return self.bank.checkpoint_contexts()

        self.hooks += enable_checkpointing(self.backbone.model, contexts)

    def compile(self, slots: int = 8, rank: int = 16, **options: object) -> None:
        """Compile the backbone's forward with ``torch.compile``, to whose options the rest goes.

        A batch may then use ``slots`` adapters of at most ``rank``; other adapters are copied in
        when they are wanted, without compiling again. It is compiled once each for a blend a row,
        one blend for all, and none, and, as ever, for new shapes. Not for training. Raises
        `BackboneError` where two models share the backbone.
        """
        self.backbone.check_at_hand("compiled")
        if not self.bank.alone:
            raise BackboneError(
                "two models share this backbone, and what is compiled for one would not see the "
                "adapters of the other; let go of one, or load a backbone for each"
            )
        self.bank.reserve_compiled_slots(slots, rank, self.backbone.device, self.backbone.dtype)
        self.backbone.model.compile(**options)

    def pieces(self, blend: Blend, without_outer: bool = False) -> Mapping[str, list[Piece]]:
        """What a resolved blend adds at each site, a piece a term, of rank 0 where it does not act.

        ``without_outer`` leaves out the sites above the body: a task's class has none of them.
        """
        left_out = self.backbone.head_sites if without_outer else frozenset()
        terms = [(self.resident(term), weight) for term, weight in blend.weights]
        pieces: dict[str, list[Piece]] = {}
        for site in dict.fromkeys(site for adapter, _ in terms for site in adapter.factors):
            if site in left_out:
                continue
            some = next(adapter.factors[site] for adapter, _ in terms if site in adapter.factors)
            nothing = (some[0][:0], some[1][:, :0])
            for adapter, weight in terms:
                a, b = adapter.factors.get(site, nothing)
                scaled = weight * adapter.scaling.get(site, 1.0)
                pieces.setdefault(site, []).append((scaled, a, b))
        return pieces

    def can_merge(self, plan: Plan) -> bool:
        """Whether `merged_view` is as exact as adding, and fits beside the resident adapters."""
        whole = plan.index is None and not any(atom.trained for atom in plan.atoms)
        if self.backbone.shards is not None:
            return False
        weights = self.backbone.weights(plan.sites)
        whole = whole and all(weight.dtype == torch.float32 for weight in weights)
        if not whole or self.bank.compiled_slots is not None or wrapped(self.backbone.model):
            return False
        return sum(w.nbytes for w in weights) <= self.bank.memory - self.bank.bytes

    def merged_view(self, plan: Plan, blend: Blend) -> nn.Module:
        """The backbone with a blend in its weights, sharing what it does not change; the last one
        is kept.
        """
        weights = self.backbone.weights(plan.sites)
        versions = [weight._version for weight in weights]
        key = (plan.atoms, tuple(plan.weights.flatten().tolist()), versions)
        kept = self.bank.view
        if kept is None or kept.key != key:
            self.bank.drop_view()  # two would not fit
            model = merged_view(self.backbone, self.pieces(blend), self.bank.hook_ids())
            kept = MergedView(model, sum(weight.nbytes for weight in weights), key)
            self.bank.keep_view(kept)
        return kept.model
