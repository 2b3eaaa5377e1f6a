"""Checks of PEFT's configuration: what it may hold, and how servers read its rank and alpha."""

import math
from collections.abc import Iterator, Mapping

from adapters_hub.errors import AdaptersHubError
from adapters_hub.library.adapter_file import AdapterFiles
from adapters_hub.library.checks import missing_modules
from adapters_hub.library.fingerprint import belongs, fingerprint
from adapters_hub.sharing.doctor.findings import Finding, check, few
from adapters_hub.sharing.doctor.subject import Subject, Unread
from adapters_hub.sharing.limits import MAX_LORA_RANKS, rank_limit

KNOWN_KEYS = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping",
    "base_model_name_or_path", "bias", "corda_config", "enable_lora", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "merge_weights", "modules_to_save", "monteclora_config", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora",
    "use_dora", "use_qalora", "use_rslora", "velora_config",
})  # fmt: skip
"""What PEFT's LoraConfig has, up to 0.21, and had before."""

_USUAL_CORE = (None, "megatron.core")  # written by every version, and used only with the other
_MOST_SCALING = 64.0


@check
def configuration(subject: Subject) -> Iterator[Finding]:
    """There is one that can be read."""
    if isinstance(subject.config, Unread):
        yield Finding(
            "error", "configuration", subject.config.why, "adapter_config.json",
            "a PEFT folder has one; a lone file has a copy in its header",
        )  # fmt: skip


@check
def configuration_keys(subject: Subject) -> Iterator[Finding]:
    """Only keys that PEFT has, and none that makes a loader import a module it names."""
    config = _config(subject)
    mapping = config.get("auto_mapping")
    if mapping is not None:
        library = mapping.get("parent_library") if isinstance(mapping, Mapping) else mapping
        usual = isinstance(library, str) and library.split(".")[0] == "transformers"
        yield Finding(
            "note" if usual else "error", "configuration keys",
            f"PEFT's AutoPeftModel imports the module {str(library)[:80]!r}", "auto_mapping",
            "" if usual else "remove the key before PEFT loads it; this library never uses it",
        )  # fmt: skip
    if config.get("megatron_config") or config.get("megatron_core") not in _USUAL_CORE:
        yield Finding(
            "error", "configuration keys", "PEFT imports the module that this names",
            "megatron_core", "remove megatron_core and megatron_config, which are not used here",
        )  # fmt: skip
    if unknown := sorted(str(key) for key in config if key not in KNOWN_KEYS):
        yield Finding(
            "warning", "configuration keys", "no keys of PEFT's LoraConfig", few(unknown),
            "made by a newer PEFT, or not by PEFT; readers ignore them, or fail",
        )  # fmt: skip


@check
def scaling(subject: Subject) -> Iterator[Finding]:
    """Alpha over rank is what adapters have, and read alike by servers."""
    config = _config(subject)
    if isinstance(subject.adapter, AdapterFiles) and subject.adapter.modules:
        spec, ranks = subject.adapter.spec, subject.ranks
        prefix = "base_model.model."
        worst = max(
            (abs(spec.scaling(m.removeprefix(prefix), rank)) for m, rank in ranks.items() if rank),
            default=0.0,
        )
        if worst == 0.0 or worst > _MOST_SCALING or not math.isfinite(worst):
            yield Finding(
                "warning", "scaling", f"a scaling of {worst:g}; usual are 0.5 to 4", "lora_alpha",
                "compare with the card; a wrong alpha makes an adapter mute or destructive",
            )  # fmt: skip
    odd = [key for key in ("use_rslora", "alpha_pattern", "rank_pattern") if config.get(key)]
    if odd:
        yield Finding(
            "warning", "scaling", "servers and converters ignore these, and scale wrongly",
            few(odd), "adapters-hub export NAME -o FOLDER --for ENGINE folds them into the tensors",
        )  # fmt: skip


@check
def rank(subject: Subject) -> Iterator[Finding]:
    """The rank that the configuration says is the tensors', and one that servers load."""
    ranks, config = subject.ranks, _config(subject)
    if not ranks:
        return
    largest, said = max(ranks.values()), config.get("r")
    limit = rank_limit(largest)
    if limit is None:
        yield Finding(
            "warning", "rank", f"rank {largest}, above vLLM's largest, {MAX_LORA_RANKS[-1]}",
            few([module for module, r in ranks.items() if r == largest], 1),
            f"adapters-hub export NAME -o FOLDER --for vllm --rank {MAX_LORA_RANKS[-1]}",
        )  # fmt: skip
    else:
        yield Finding(
            "note", "rank", f"rank {largest}", "adapter_config.json",
            f"vllm serve … --enable-lora --max-lora-rank {limit}",
        )  # fmt: skip
    stacked = config.get("target_parameters")  # whose tensors hold many matrices
    if not config.get("rank_pattern") and not stacked and isinstance(said, int):
        odd = [module for module, r in ranks.items() if r != said]
        if odd:
            yield Finding(
                "error", "rank", f"r is {said}, and {len(odd)} of {len(ranks)} layers have another "
                "rank; PEFT refuses them, servers scale them wrongly", few(odd, 1),
                "ask whoever made it; the library reads ranks from the tensors",
            )  # fmt: skip


@check
def servers(subject: Subject) -> Iterator[Finding]:
    """Nothing that vLLM and SGLang refuse."""
    config = _config(subject)
    held = [key for key in ("modules_to_save", "target_parameters", "use_dora") if config.get(key)]
    if config.get("bias") not in (None, "none"):
        held.append("bias")
    if held:
        yield Finding(
            "warning", "servers", "vLLM and SGLang do not load an adapter with these", few(held),
            "adapters-hub export NAME -o FOLDER --for merged writes a whole model",
        )  # fmt: skip


@check
def targets(subject: Subject) -> Iterator[Finding]:
    """Every layer that the configuration names is in the file."""
    named, adapter = _config(subject).get("target_modules"), subject.adapter
    if not isinstance(named, list) or not subject.pairs:
        return
    lacking = [
        str(target)
        for target in named
        if not any(m == target or m.endswith(f".{target}") for m in subject.pairs)
    ]
    if lacking:
        yield Finding(
            "warning", "targets", "named in target_modules, and not in the file", few(lacking),
            "the file may have been cut when it was saved",
        )  # fmt: skip
    try:
        if isinstance(adapter, AdapterFiles) and (why := missing_modules(adapter, subject.base)):
            yield Finding("error", "targets", why, subject.weights.name, "save it again, whole")
    except (AdaptersHubError, OSError, ValueError):
        return  # the backbone's folder is not whole; that is not the adapter's fault


@check
def base_model(subject: Subject) -> Iterator[Finding]:
    """It says which backbone it is for, in a way that others can follow."""
    base = subject.base
    if base is None:
        yield Finding(
            "warning", "base model", "names no backbone", "base_model_name_or_path",
            "ask which it is for: adapters-hub add … --backbone NAME",
        )  # fmt: skip
        return
    if subject.base_folder is None:
        if base.startswith(("/", ".", "~")) or "\\" in base or base.count("/") > 1:
            yield Finding(
                "warning", "base model", f"{base[:80]!r} is a folder on somebody's machine",
                "base_model_name_or_path",
                "give the Hub's id: adapters-hub add … --backbone ORG/NAME",
            )  # fmt: skip
        return
    stored = subject.ours.get("fingerprint")
    try:
        there = fingerprint(subject.base_folder)
    except (AdaptersHubError, OSError, ValueError):
        return
    if isinstance(stored, str) and not belongs(stored, there):
        yield Finding(
            "error", "base model", f"made for {stored}; {base} here is {there}", "fingerprint",
            "use the backbone that it was trained on",
        )  # fmt: skip


def _config(subject: Subject) -> Mapping[str, object]:
    return {} if isinstance(subject.config, Unread) else subject.config
