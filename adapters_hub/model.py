"""`AdaptedModel`: one backbone, its bank and a library, used by names and blends.

Knows how a term becomes a resident adapter and a call becomes a plan. The arithmetic is the
bank's, what a task's outputs mean is the task's.
"""

import copy
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from adapters_hub.adapter import Adapter
from adapters_hub.backbone import Backbone, enable_checkpointing
from adapters_hub.backbone import load_backbone as _load_backbone
from adapters_hub.bank import Bank, Plan
from adapters_hub.blend import Blend, BlendLike
from adapters_hub.compose import Piece, check_options, compose_sites, delta
from adapters_hub.errors import BackboneError, BackboneMismatchError, HeadError, NotFoundError
from adapters_hub.info import AdapterInfo, read_adapter
from adapters_hub.library import Library, check_name

log = logging.getLogger(__name__)

Weights = BlendLike | Mapping[str, float]
Adapters = Weights | Sequence[Weights]
Heads = list[tuple[dict[str, Tensor], Tensor | None]]


class AdaptedModel:
    """A frozen backbone whose rows can each use another blend of adapters.

    Adapters come from ``library`` by name, language or domain as blends mention them, and stay
    resident; ``capacity`` bounds how many (those added from memory, and those that one call needs,
    stay whatever it is). One that changes in the library is loaded again when it is next used.
    ``check_backbone=False`` accepts adapters that carry another backbone's fingerprint where the
    shapes fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        library: Library | None = None,
        *,
        capacity: int = 256,
        check_backbone: bool = True,
    ) -> None:
        self.backbone = backbone
        self.library = Library() if library is None else library
        self.bank = Bank(backbone.sites, capacity)
        self.check_backbone = check_backbone
        self.active = Blend()
        self._lock = threading.RLock()
        self._resident: dict[str, Adapter] = {}
        self._own: set[str] = set()  # added from memory: not in the library, so never dropped
        self._stamps: dict[str, Any] = {}  # the state of the files an adapter was loaded from
        self._names: dict[str, str] = {}  # term → adapter, as long as the library stays as it is
        self._seen: Any = None  # the state of the library's folder that _names is for
        self._hooks: list[RemovableHandle] = []

    def __repr__(self) -> str:
        return (
            f"AdaptedModel({self.backbone.name!r}, bits={self.backbone.bits}, "
            f"active={str(self.active)!r}, resident={self.bank.names()})"
        )

    # ── adapters ─────────────────────────────────────────────────────────────────────────────

    def use(self, blend: Weights) -> "AdaptedModel":
        """Make a blend the one that rows use unless a call says otherwise; None is bare.

        Raises `NotFoundError`, `AmbiguousTermError`, `BackboneMismatchError` or `AdapterFileError`,
        and then the blend that was active stays.
        """
        self.active = self.resolve(blend)
        return self

    def resolve(self, blend: Weights) -> Blend:
        """The blend with every term replaced by an adapter's exact name, each one loaded."""
        wanted = Blend.of(blend)
        with self._lock:
            names = {term: self._name_of(term) for term in wanted.terms}
            self._make_resident(set(names.values()))
        return wanted.rename(names)

    def add(self, adapter: Adapter, trained: bool = False) -> Adapter:
        """Make an adapter from memory resident under its name; ``trained`` keeps gradients."""
        with self._lock:
            self.bank.put(
                adapter.name, adapter.factors, adapter.scaling, trained=trained, pinned=True
            )
            self._resident[adapter.name] = adapter
            self._own.add(adapter.name)
        return adapter

    def drop(self, name: str) -> None:
        """Forget a resident adapter; it is loaded again from the library when it is next used."""
        with self._lock:
            self.bank.drop(name)
            self._resident.pop(name, None)
            self._own.discard(name)

    def adapter(self, term: str) -> Adapter:
        """The adapter that a term means, loaded if it is not resident."""
        with self._lock:
            return self.resident(self._name_of(term))

    def resident(self, name: str) -> Adapter:
        """The adapter of exactly this name, loaded if it is not resident."""
        with self._lock:
            self._make_resident({name})
            return self._resident[name]

    def _name_of(self, term: str) -> str:
        """The exact name a term means, by what the library holds now."""
        if term in self._own:
            return term
        if (state := self.library.state()) != self._seen:
            self._names.clear()
            self._seen = state
        if term not in self._names:
            check = self.backbone.fingerprint if self.check_backbone else None
            info = self.library.find(term, check)
            stamp = self._stamps.get(info.name)  # none for what was added from memory
            if info.name not in self._own and stamp not in (None, self.library.stamp(info.name)):
                self.drop(info.name)  # replaced in the library since it was loaded
            self._names[term] = info.name
        return self._names[term]

    def _make_resident(self, names: Set[str]) -> None:
        """Load those of the adapters, by exact name, that are not in the bank."""
        for name in sorted(names):
            if name in self.bank:
                continue
            info = self.library.get(name)
            self._stamps[name] = self.library.stamp(name)
            with torch.inference_mode(False):  # what stays must serve any later call
                files = read_adapter(Path(info.path or ""), name)
                adapter = Adapter.load(files, self.backbone, self.check_backbone)
            self.bank.put(name, adapter.factors, adapter.scaling, keep=names)
            self._resident[name] = replace(adapter, info=info)
        for gone in self._resident.keys() - set(self.bank.names()):
            del self._resident[gone]

    # ── plans ────────────────────────────────────────────────────────────────────────────────

    def blends(self, rows: int, adapters: Adapters = None) -> list[Blend]:
        """One resolved blend a row, from what a caller may give as ``adapters``."""
        if adapters is None:
            return [self.active] * rows
        if isinstance(adapters, str | Blend | Mapping):
            return [self.resolve(adapters)] * rows
        if len(adapters) != rows:
            raise BackboneError(
                f"{len(adapters)} blends in `adapters` for {rows} rows: give one for all, "
                "or one a row (None for a bare row)"
            )
        wanted = [Blend.of(blend) for blend in adapters]
        known = {blend: self.resolve(blend) for blend in set(wanted)}
        return [known[blend] for blend in wanted]

    def plan(self, blends: Sequence[Blend], dropout: float = 0.0) -> Plan | None:
        """The bank's plan for rows of resolved blends."""
        distinct = list(dict.fromkeys(blends))
        number = {blend: place for place, blend in enumerate(distinct)}
        mappings = [dict(blend.weights) for blend in distinct]
        index = None if len(distinct) == 1 else [number[blend] for blend in blends]
        with self._lock:  # an adapter may have been evicted since the blends were resolved
            self._make_resident({name for blend in distinct for name in blend.terms})
            return self.bank.plan(mappings, index, dropout)

    @contextmanager
    def adapted(self, rows: int, adapters: Adapters = None) -> Iterator[None]:
        """Every forward inside the block follows the given blends."""
        with self.bank.using(self.plan(self.blends(rows, adapters))):
            yield

    def heads(self, blends: Sequence[Blend]) -> Heads:
        """The distinct heads of rows and which rows have them: (parameters, row indices or None).

        Raises `HeadError` for a row whose blend has no head, or more than one.
        """
        rows_of: dict[str, list[int]] = {}
        owners = {blend: self.head_owner(blend) for blend in set(blends)}
        for row, blend in enumerate(blends):
            rows_of.setdefault(owners[blend], []).append(row)
        found = [(self.resident(name).head, rows) for name, rows in rows_of.items()]
        if len(found) == 1:
            return [(found[0][0], None)]
        device = self.backbone.device
        return [(head, torch.tensor(rows, device=device)) for head, rows in found]

    def head_owner(self, blend: Blend) -> str:
        """The one adapter of a blend that brings the head."""
        found = {name: self.resident(name) for name in blend.terms}
        owners = [name for name, adapter in found.items() if adapter.head]
        if len(owners) == 1:
            return owners[0]
        if not owners:
            raise HeadError(
                f"no adapter of {str(blend)!r} has a task head: add the adapter that was trained "
                "for the task, such as 'de + hotel'"
            )
        labels = {name: list(found[name].info.labels or ()) for name in owners}
        differ = len({tuple(value) for value in labels.values()}) > 1
        listed = ", ".join(f"{n} {value}" if differ else n for n, value in labels.items())
        raise HeadError(
            f"{len(owners)} adapters of {str(blend)!r} have a task head ({listed}) and heads are "
            "never averaged" + (": their labels differ" if differ else "") + "; keep one of them"
        )

    # ── use ──────────────────────────────────────────────────────────────────────────────────

    def __call__(self, *, adapters: Adapters = None, **inputs: Any) -> Any:
        """The backbone's own forward, with a blend a row: what transformers returns, unchanged.

        ``input_ids``, ``attention_mask``, …: (rows, tokens), as the backbone's class takes them.
        """
        tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        if not tensors:
            raise BackboneError("give the inputs by name: model(input_ids=…, attention_mask=…)")
        known = [tensors[key] for key in ("input_ids", "inputs_embeds") if key in tensors]
        rows = len((known or [*tensors.values()])[0])
        if self._hooks and torch.is_grad_enabled() and self.backbone.kind != "encoder":
            inputs.setdefault("use_cache", False)  # a layer computed twice would fill it twice
        with self.adapted(rows, adapters):
            return self.backbone.model(**inputs)

    @torch.no_grad()
    def generate(
        self, texts: Sequence[str] | str, adapters: Adapters = None, **options: Any
    ) -> list[str]:
        """Continue each text (decoder) or answer it (encoder-decoder); transformers' options.

        Beams, sampling and the key-value cache work as in ``transformers``; ``max_new_tokens``
        defaults to 32. Raises `BackboneError` for an encoder.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return []
        if self.backbone.kind == "encoder" or not self.backbone.has_lm_head:
            raise BackboneError(
                f"{self.backbone.name} has no head that generates text: its checkpoint is "
                f"{'an encoder' if self.backbone.kind == 'encoder' else 'a bare decoder'}"
            )
        tokenizer = copy.copy(self.backbone.tokenizer)
        tokenizer.padding_side = "left"
        encoded = tokenizer(texts, return_tensors="pt", padding=True).to(self.backbone.device)
        size, limit = encoded["input_ids"].shape[1], self.backbone.max_tokens
        new = 0
        if self.backbone.kind == "decoder":
            new = options.get("max_new_tokens", options.get("max_length", 32 + size) - size)
        if limit and size + new > limit:
            raise BackboneError(
                f"a prompt of {size} tokens and {new} new ones: {self.backbone.name} has positions "
                f"for {limit}"
            )
        with self.adapted(len(texts), adapters):
            model: Any = self.backbone.model
            out = model.generate(**{"max_new_tokens": 32, **encoded, **options})
        out = getattr(out, "sequences", out)
        if self.backbone.kind == "decoder":
            out = out[:, size:]
        return tokenizer.batch_decode(out, skip_special_tokens=True)

    def classify(
        self, texts: Sequence[str] | str, adapters: Adapters = None, batch_size: int = 32
    ) -> list[dict[str, float]]:
        """Each text's labels with their probabilities, the most probable first."""
        from adapters_hub.tasks.classification import classify

        return classify(
            self, [texts] if isinstance(texts, str) else list(texts), adapters, batch_size
        )

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in training; the second forward follows the first one's plan."""

        def contexts() -> tuple[Any, Any]:  # a function, which a copy of the model just refers to
            return self.bank.checkpoint_contexts()

        self._hooks += enable_checkpointing(self.backbone.model, contexts)

    # ── out ──────────────────────────────────────────────────────────────────────────────────

    def export(
        self,
        blend: BlendLike,
        folder: str | os.PathLike[str],
        *,
        method: str = "sum",
        rank: int | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Path:
        """Write a blend as one standard PEFT adapter, which plain PEFT loads.

        ``method``, ``rank`` and further options are those of `adapters_hub.compose.METHODS`; the
        default is exact. The head, if one adapter has one, goes along. Raises `HeadError` for two
        heads, `SettingsError` for a method or an option that cannot work.
        """
        options = options if rank is None else {"rank": rank, **options}
        check_options(method, options)
        resolved = self.resolve(blend)
        if not resolved:
            raise NotFoundError("nothing to export: the blend is empty")
        parts = [self.resident(name) for name in resolved.terms]
        outer = self.backbone.head_sites
        owner = None
        if any(part.head for part in parts):
            owner = self.resident(self.head_owner(resolved))
        below = [part for part in ([owner] if owner else parts) if part.factors.keys() - outer]
        main = owner or (below or parts)[0]
        if below:
            prefix = below[0].prefix
        elif owner:
            from adapters_hub.tasks.classification import shell_of

            prefix = shell_of(owner, self.backbone).prefix
        else:
            prefix = self.backbone.prefix
        pieces = self._pieces(resolved, without_outer=owner is not None)
        factors = compose_sites(pieces, method, sites=self.backbone.sites, **options)
        if pieces and not factors:
            raise NotFoundError(f"nothing to export: the {method} of {resolved} is zero everywhere")
        how = ", ".join(f"{key}={value}" for key, value in options.items())
        info = AdapterInfo(
            name=check_name(name or "-".join(part.name for part in parts)),
            task=main.info.task,
            labels=main.info.labels,
            backbone=self.backbone.name,
            fingerprint=self.backbone.fingerprint,
            description=f"The {method} of {resolved}{how and f' ({how})'}.",
        )
        config = {
            key: value
            for key, value in main.config.items()
            if key in ("task_type", "fan_in_fan_out", "peft_version")
        }
        scaling = dict.fromkeys(factors, 1.0)
        head = owner.head if owner is not None else {}
        return Adapter(info, factors, scaling, head, config, prefix, outer).save(folder)

    def merge(self, blend: BlendLike) -> nn.Module:
        """A plain transformers model, a copy, with the blend added into its weights.

        With a head in the blend it is the task's class. Raises `BackboneError` at 8 or 4 bits,
        where a weight cannot take a delta without being rounded again.
        """
        if self.backbone.bits < 16:
            raise BackboneError(
                f"cannot merge into {self.backbone.bits}-bit weights without rounding them again; "
                "load the backbone at 32 or 16 bits"
            )
        resolved = self.resolve(blend)
        owners = [name for name in resolved.terms if self.resident(name).head]
        plain = self._plain_copy(self.head_owner(resolved) if owners else None)
        own_prefix = getattr(plain, "base_model_prefix", "")
        base = getattr(plain, own_prefix, plain)
        modules = dict(plain.named_modules()) | dict(base.named_modules())
        with torch.no_grad():
            for site, pieces in self._pieces(resolved, without_outer=bool(owners)).items():
                change = delta(pieces)
                module = modules[site]
                if site in self.backbone.head_sites and plain.config.tie_word_embeddings:
                    # the embedding, whose weight it shares, has no delta
                    module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
                    plain.config.tie_word_embeddings = False
                weight = module.weight
                change = change.t() if isinstance(module, Conv1D) else change
                weight.copy_((weight.float() + change).to(weight.dtype))
        return plain

    def _plain_copy(self, head_owner: str | None) -> Any:
        """The model of a class that transformers would load, with nothing of ours on it."""
        if head_owner is None:
            plain: Any = copy.deepcopy(self.backbone.model)
            for name in self.backbone.attached:
                setattr(getattr(plain, plain.base_model_prefix), name, None)
        else:
            from adapters_hub.tasks.classification import plain_classifier

            plain = plain_classifier(self.backbone, self.resident(head_owner))
        if self._hooks:
            plain.gradient_checkpointing_disable()
        ours = self.bank.hook_ids() | {hook.id for hook in self._hooks}
        for module in plain.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for number in ours & hooks.keys():
                    del hooks[number]
        return plain

    def _pieces(self, blend: Blend, without_outer: bool) -> Mapping[str, list[Piece]]:
        """What a blend adds at each site; a task's class has no sites of the LM head.

        Each site has a piece a term, of rank 0 where the term does not act.
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


def load_backbone(
    name: str = "starter",
    *,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int = 32,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check_backbone: bool = True,
) -> AdaptedModel:
    """A backbone with no adapter active: ``starter``, a folder, or a hub id.

    ``bits``: 32, 16 (bfloat16), or 8 and 4 by bitsandbytes. See `AdaptedModel`.
    """
    backbone = _load_backbone(
        name, bits=bits, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    if not isinstance(library, Library):
        library = Library(library)
    return AdaptedModel(backbone, library, check_backbone=check_backbone)


def load(
    language: str | None = None,
    domain: str | None = None,
    *,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int = 32,
    device: str | torch.device | None = None,
) -> AdaptedModel:
    """The backbone that a language's and a domain's adapters name, with both active.

    A language without an adapter falls back to the closest one within a stated distance, with a
    logged warning. Raises `NotFoundError`, or `BackboneMismatchError` if they name two backbones.
    """
    library = library if isinstance(library, Library) else Library(library)
    terms = [f"domain:{domain}"] if domain else []
    terms += [f"lang:{language}"] if language else []
    if not terms:
        raise NotFoundError("load() needs a language or a domain; load_backbone() takes none")
    found: list[AdapterInfo] = []
    for term in terms:
        found.append(library.find(term, found[0].fingerprint if found else None))
    names = {info.backbone for info in found}
    if len(names) != 1 or None in names:
        raise BackboneMismatchError(
            "the adapters must name one backbone, and name "
            + ", ".join(f"{info.backbone} ({info.name})" for info in found)
            + "; load_backbone(...) takes it from you"
        )
    model = load_backbone(names.pop() or "", library=library, bits=bits, device=device)
    exact = Blend.of([info.name for info in reversed(found)])
    with model._lock:
        model._make_resident(set(exact.terms))
    model.active = Blend(tuple((name, 1.0) for name in exact.terms))  # once, if both are one
    return model
