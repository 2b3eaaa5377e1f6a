"""One adapter in memory: factors by site, a scaling each, perhaps a head; from and to PEFT files.

Knows a backbone's sites and PEFT's file format; does not know banks, batches or tasks.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import (
    AdapterFileError,
    BackboneError,
    BackboneMismatchError,
    SettingsError,
    UnsupportedAdapterError,
)
from adapters_hub.library import adapter_file
from adapters_hub.library.adapter_file import AdapterConfig, AdapterFiles, AdapterInfo
from adapters_hub.library.checks import lost_pooler
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.target_parameters import is_targeted
from adapters_hub.runtime.products import FlatFactors, SiteFactors, Sites
from adapters_hub.runtime.stored import SiteMap, Stored, examples, map_sites, stored
from adapters_hub.runtime.tensors import (
    check_finite,
    read_tensor_bytes,
    tensor_of,
    write_folder,
)

if TYPE_CHECKING:
    from peft import LoraConfig

_STARTS = (True, "gaussian")


@dataclass
class Adapter:
    """A plain LoRA (arXiv:2106.09685): at each site the delta is ``scaling · B @ A``.

    ``factors`` maps a site to A (r, in) and B (out, r); ranks may differ by site. ``head`` maps
    the head's parameters by their path in the task class. ``prefix`` stands before the path of a
    site of the body in that class, and so in the file; ``outer`` are the sites above the body, and
    ``stacks`` the parameters of routers and experts by path, each with its sites.
    """

    info: AdapterInfo
    factors: SiteFactors
    scaling: dict[str, float]
    head: dict[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    prefix: str = ""
    outer: frozenset[str] = frozenset()
    stacks: Mapping[str, Mapping[str, Sites]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.info.name

    def parameters(self) -> list[Tensor]:
        """All tensors, in one fixed order: factors by site, then the head by name."""
        pairs = [tensor for site in sorted(self.factors) for tensor in self.factors[site]]
        return pairs + [self.head[name] for name in sorted(self.head)]

    def path(self, site: str) -> str:
        """A site's path in the class the adapter is saved for."""
        return site if site in self.outer else self.prefix + site

    def map(self, change: Callable[[Tensor], Tensor]) -> "Adapter":
        """The same adapter with every tensor changed, such as moved or cast."""
        return replace(
            self,
            factors={site: (change(a), change(b)) for site, (a, b) in self.factors.items()},
            head={name: change(tensor) for name, tensor in self.head.items()},
        )

    def trainable(self) -> "Adapter":
        """A float32 copy whose tensors are parameters.

        They are contiguous, as gradients that went through other processes and what a checkpoint
        brings back are: a fused optimizer takes all of it in the order of memory.
        """

        def parameter(tensor: Tensor) -> Tensor:
            ordered = torch.contiguous_format
            return nn.Parameter(tensor.detach().to(torch.float32, copy=True, memory_format=ordered))

        return self.map(parameter)

    # ── from ─────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def load(
        cls,
        files: AdapterFiles,
        backbone: Backbone,
        check_backbone: bool = True,
        data: Tensor | None = None,
    ) -> "Adapter":
        """Read an adapter's numbers for a backbone: one read, one copy to its device.

        ``data``: what `read_tensor_bytes` gives, if it was read before. Raises
        `BackboneMismatchError` if its fingerprint is another's (unless ``check_backbone`` is False)
        or a site is missing or has another shape; `AdapterFileError` for damaged files.
        """
        _same_backbone(files.info, backbone, check_backbone)
        data = read_tensor_bytes(files) if data is None else data
        data = data.to(backbone.device, non_blocking=True)
        if files.head:
            _check_head(files, backbone)
        _check_copies(files, backbone, data)
        maps = backbone.site_maps.setdefault(files.header.layout, {})
        site_map = maps.get(files.target_parameters)
        if not isinstance(site_map, SiteMap):
            site_map = maps[files.target_parameters] = map_sites(files, backbone)
        factors: SiteFactors
        if site_map.dtype is not None:
            flat = data.view(site_map.dtype)
            if not torch.isfinite(flat.sum()):  # or a sum beyond the largest number
                check_finite(data, files)
            factors = FlatFactors(flat, site_map.places)
        else:
            check_finite(data, files)
            tensors = {
                key: tensor_of(data, files, key) for keys in files.modules.values() for key in keys
            }
            factors = {
                site: (tensors[a].as_strided(*of_a), tensors[b].as_strided(*of_b))
                for site, (of_a, of_b) in site_map.places.items()
                for a, b in [site_map.keys[site]]
            }
        scalings = {name: files.spec.scaling(*name) for name in set(site_map.names.values())}
        scaling = {site: scalings[name] for site, name in site_map.names.items()}
        head = {path: tensor_of(data, files, key).float() for path, key in files.head.items()}
        return cls(
            files.info, factors, scaling, head, files.spec.config, site_map.prefix,
            backbone.head_sites, backbone.stacks,
        )  # fmt: skip

    @classmethod
    def create(
        cls,
        info: AdapterInfo,
        backbone: Backbone,
        lora: "LoraConfig | None",
        *,
        prefix: str,
        sites: Sequence[str],
        head: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> "Adapter":
        """A new adapter from a `peft.LoraConfig`, started as PEFT starts it: its delta is zero.

        ``sites``: those of the body that the task's class has below its head.
        ``lora.target_modules`` chooses among them as in PEFT (None: PEFT's default for the
        architecture, ``"all-linear"``: every one), ``lora.target_parameters`` among routers and
        experts, for which nothing else need be given; None for ``lora`` itself makes an adapter
        that is only a head.
        """
        generator = torch.Generator().manual_seed(seed)
        factors, scaling = {}, {}
        config: AdapterConfig = {
            "peft_type": "LORA",
            "r": 1,
            "lora_alpha": 1,
            "target_modules": [],
        }
        if lora is not None:
            if lora.init_lora_weights not in _STARTS:
                raise SettingsError(
                    f"init_lora_weights={lora.init_lora_weights!r} is not supported here; "
                    f"choose one of {', '.join(map(repr, _STARTS))}"
                )
            config = adapter_file.check_plain(_plain(lora.to_dict()), "the LoRA configuration")
            targets = target_parameters(backbone, lora, prefix)
            if not targets or lora.target_modules != set():
                targets |= {s: prefix + s for s in target_sites(backbone, lora, prefix, sites)}
            for site, name in targets.items():
                fan_in, fan_out = backbone.shapes[site]
                rank = _pattern(lora.rank_pattern, name, lora.r)
                a = torch.empty(rank, fan_in)
                if lora.init_lora_weights == "gaussian":
                    a.normal_(std=1 / rank, generator=generator)
                else:
                    nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
                factors[site] = (a, torch.zeros(fan_out, rank))
                scaling[site] = adapter_file.LoraSpec(config).scaling(name, rank)
        info = replace(info, rank=max((a.shape[0] for a, _ in factors.values()), default=0))
        made = cls(
            info, factors, scaling, dict(head or {}), config, prefix,
            backbone.head_sites, backbone.stacks,
        )  # fmt: skip
        return made.map(lambda tensor: tensor.to(backbone.device))

    # ── to ───────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a PEFT folder that `peft.PeftModel.from_pretrained` and `Library.add` read.

        It is written beside and renamed into place, where there is nothing but an adapter; among
        other files each of its three is replaced by itself. Raises `AdapterFileError` for what
        cannot be such a folder, `LibraryError` where it cannot be written; nothing is new then.
        """
        if not self.factors:
            raise AdapterFileError(f"{self.name!r} is only a head, which no PEFT file can be")
        modules = [*stored(self.factors, self.scaling, self.stacks, self.path)]
        config = self.peft_config(modules)
        tensors = {}
        for module in modules:
            stem = adapter_file.KEY_PREFIX + module.path
            tensors[f"{stem}.lora_A.weight"] = module.a
            tensors[f"{stem}.lora_B.weight"] = module.b
        for path, tensor in self.head.items():
            tensors[adapter_file.KEY_PREFIX + path] = tensor
        shown = replace(
            self.info,
            rank=max(module.rank for module in modules),
            sites=len(modules),
            parameters=sum(tensor.numel() for tensor in tensors.values()),
        )
        return write_folder(folder, shown, config, tensors)

    def peft_config(self, modules: Iterable[Stored] | None = None) -> dict[str, object]:
        """The ``adapter_config.json`` that makes PEFT build exactly these sites and ranks.

        ``modules``: what the file has, if it was worked out before.
        """
        if modules is None:
            modules = stored(self.factors, self.scaling, self.stacks, self.path)
        modules = list(modules)
        ranks = {module.target: module.rank for module in modules}
        rank = max(ranks.values(), default=1)
        root = math.sqrt if self.config.get("use_rslora") else float
        alphas = {module.target: module.scaling * root(module.rank) for module in modules}
        alpha = next((alphas[target] for target, r in ranks.items() if r == rank), rank)
        parameters = sorted(module.target for module in modules if module.is_parameter)
        return {
            **self.config,
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": _whole(alpha),
            "rank_pattern": {target: r for target, r in ranks.items() if r != rank},
            "alpha_pattern": {
                target: _whole(v) for target, v in alphas.items() if not math.isclose(v, alpha)
            },
            "target_modules": sorted(m.target for m in modules if not m.is_parameter),
            **({"target_parameters": parameters} if parameters else {}),
            # which left out some of others; these are all of them
            **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
            "modules_to_save": self._head_modules() or None,
            "base_model_name_or_path": self.info.backbone,
            **({"revision": self.info.revision} if self.info.revision else {}),
            "bias": "none",
            "inference_mode": True,
            "init_lora_weights": True,
        }

    def _head_modules(self) -> list[str]:
        """The modules PEFT saves whole: ``score``, ``classifier``, an untrained ``pooler``."""
        return sorted({path.removeprefix(self.prefix).split(".")[0] for path in self.head})


def target_sites(
    backbone: Backbone, lora: "LoraConfig", prefix: str, candidates: Sequence[str]
) -> list[str]:
    """The sites a `peft.LoraConfig` means, by PEFT's rules; `SettingsError` if none."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    sites = list(candidates)
    if lora.target_modules == "all-linear":
        lora = copy.copy(lora)  # all of them by name, of which it may still exclude some
        lora.target_modules = {prefix + site for site in sites}
        sites = [s for s in sites if check_target_module_exists(lora, prefix + s)]
    else:
        if lora.target_modules is None:
            default = DEFAULTS.get(backbone.config.model_type)
            if default is None:
                raise SettingsError(
                    f"PEFT has no default target_modules for {backbone.config.model_type!r}; "
                    "give them, or 'all-linear'"
                )
            lora.target_modules = set(default)
        sites = [s for s in sites if check_target_module_exists(lora, prefix + s)]
    if not sites:
        raise SettingsError(
            f"target_modules={lora.target_modules!r} matches no linear layer of {backbone.name} "
            f"(it has {examples(backbone.sites)})"
        )
    return sites


def target_parameters(backbone: Backbone, lora: "LoraConfig", prefix: str) -> dict[str, str]:
    """The sites of routers and experts that a `peft.LoraConfig` means, by PEFT's rules, each with
    the name of its parameter; `SettingsError` for what means none, and for a dropout.
    """
    targets = frozenset(lora.target_parameters or ())
    known = {
        f"{prefix}{path}.{name}": sites
        for path, parameters in backbone.stacks.items()
        for name, sites in parameters.items()
    }
    chosen = {name: sites for name, sites in known.items() if is_targeted(name, targets)}
    idle = [
        target for target in sorted(targets) if not any(is_targeted(n, {target}) for n in known)
    ]
    if idle:
        raise SettingsError(
            f"target_parameters={idle!r}: no matrix of a router or of experts of {backbone.name} "
            f"(it has {', '.join(sorted({'.'.join(n.split('.')[-2:]) for n in known})) or 'none'})"
        )
    if chosen and lora.lora_dropout:
        raise SettingsError(
            f"dropout {lora.lora_dropout} with target_parameters: a sum of W and B·A has no input "
            "of its own that could be dropped; use dropout 0, as PEFT does"
        )
    return {site: name for name, sites in chosen.items() for site in sites}


def _check_head(files: AdapterFiles, backbone: Backbone) -> None:
    """Refuse ``modules_to_save`` that is a trained copy of a part of the backbone, and no head."""
    of_backbone = {
        name.removeprefix(backbone.prefix)
        for name, _ in backbone.model.named_parameters(remove_duplicate=False)
    }
    of_backbone -= backbone.untrained
    try:  # its prediction head may share names with the classification head, as in ModernBERT
        shell = backbone.shell("AutoModelForSequenceClassification", num_labels=2)
        head = set(shell.shapes)
    except BackboneError:
        head = set()
    else:
        pooler = {name for name in head if name.startswith(f"{shell.prefix}pooler.")}
        of_class = (
            files.info.task in (None, "classification") and files.head.keys() == head - pooler
        )
        if shell.untrained_pooler and of_class:
            raise UnsupportedAdapterError(lost_pooler(files, backbone.name))
    copied = [p for p in files.head if {p, p.partition(".")[2]} & of_backbone and p not in head]
    if copied:
        raise UnsupportedAdapterError(
            f"{files.weights}: modules_to_save holds {copied[0]}, a trained copy of a part of the "
            f"backbone ({len(copied)} tensors in all); only a task's head can go with an adapter, "
            "since whole modules cannot be added up"
        )


def _check_copies(files: AdapterFiles, backbone: Backbone, data: Tensor) -> None:
    """Refuse copies of the backbone's weights that are none: trained, or of a grown vocabulary."""
    parameters = (
        dict(backbone.model.named_parameters(remove_duplicate=False)) if files.copies else {}
    )
    for path, key in files.copies.items():
        weight = parameters.get(path, parameters.get(path.removeprefix(backbone.prefix)))
        if weight is None or not weight.is_floating_point():
            continue
        copy_ = tensor_of(data, files, key).to(weight.device)
        if copy_.shape != weight.shape:
            raise BackboneMismatchError(
                f"{files.info.name!r} was trained on a backbone whose {path} is "
                f"{tuple(copy_.shape)}; {backbone.name} has {tuple(weight.shape)}: its vocabulary "
                "grew. Save that backbone with its tokenizer, and load it here"
            )
        if not torch.allclose(
            copy_.float(), weight.float(), rtol=0.02, atol=0.02 * float(weight.std())
        ):
            raise UnsupportedAdapterError(
                f"{files.weights}: {key} differs from the backbone's weight, so it was trained "
                "as a whole, and whole modules cannot be added up"
            )


def _same_backbone(info: AdapterInfo, backbone: Backbone, check: bool) -> None:
    if check and not belongs(info.fingerprint, backbone.fingerprint):
        raise BackboneMismatchError(
            f"{info.name!r} belongs to another backbone:\n"
            f"  adapter:  {info.fingerprint} ({info.backbone})\n"
            f"  backbone: {backbone.fingerprint} ({backbone.name})\n"
            "check_backbone=False loads it all the same if the shapes fit"
        )


def _pattern(patterns: Mapping[str, int] | None, module: str, default: int) -> int:
    import re

    matches = (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", module))
    return next(matches, default)


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """A LoRA configuration as JSON, without what PEFT fills in for nothing."""
    kept = {k: v for k, v in config.items() if v not in (None, {}, [], False) or k == "r"}
    text = json.dumps(kept, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    return json.loads(text)


def _whole(value: float) -> float | int:
    return round(value) if math.isclose(value, round(value)) else value
