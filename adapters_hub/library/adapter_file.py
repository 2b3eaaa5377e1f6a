"""What is known of one adapter, and how it is read from files, without torch.

A stored adapter is a PEFT folder. What PEFT has no field for is one JSON text in the safetensors
header, under `METADATA_KEY`, beside a copy of the LoRA configuration; so the lone ``.safetensors``
file is a whole adapter. Knows PEFT's file format; does not know libraries or backbones.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from adapters_hub.errors import AdapterFileError, UnsupportedAdapterError
from adapters_hub.library import languages
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.json_fields import (
    Fields,
    as_count,
    as_line,
    as_number,
    as_text,
    dict_of,
    read_json,
    tuple_of,
)
from adapters_hub.library.origin import Origin
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.library.peft_patterns import is_name, matches
from adapters_hub.library.results import Result
from adapters_hub.library.target_parameters import wrapped_modules

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
METADATA_KEY = "adapters_hub"
FORMAT_VERSION = 1
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = ("single_label_classification", MULTI_LABEL)
KEY_PREFIX = "base_model.model."

_TASK_OF_PEFT_TYPE = {
    "SEQ_CLS": "classification", "QUESTION_ANS": "question-answering",
    "TOKEN_CLS": "token-classification",
}  # fmt: skip
_TAG_OF_PEFT_TYPE = {  # where the files do not say the tag themselves
    "SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering", "FEATURE_EXTRACTION": "feature-extraction",
    "CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text-generation",
}  # fmt: skip
_REFUSED = {
    "use_dora": "DoRA rescales the merged weight by its norm, so its delta is not additive and "
    "cannot be summed or mixed; train a plain LoRA (use_dora=False)",
    "use_qalora": "QA-LoRA pools its input before A, which is not a plain LoRA",
    "enable_lora": "LoRA on parts of a layer (PEFT before 0.3) is not a plain LoRA",
    "lora_bias": "a bias on lora_B is not a plain LoRA",
    "layer_replication": "layer replication changes the backbone itself",
    "trainable_token_indices": "trained token embeddings are not a plain LoRA",
    "alora_invocation_tokens": "aLoRA acts from a token on, which is not a plain LoRA",
    "arrow_config": "Arrow routes between adapters at run time",
    "use_bdlora": "block-diagonal LoRA is not a plain LoRA",
    "kasa_config": "KaSA changes the backbone itself",
    "monteclora_config": "MonteCLoRA samples its factors",
    "velora_config": "VeLoRA is not a plain LoRA",
}
_STORED = (
    "alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type",
    "peft_version", "r", "rank_pattern", "revision", "target_modules", "target_parameters",
    "task_type", "use_dora", "use_rslora",
)  # fmt: skip
_FLOATING = ("F64", "F32", "F16", "BF16")
_CONFIG_TYPES: dict[str, type | tuple[type, ...]] = {
    "lora_alpha": (int, float), "alpha_pattern": dict, "modules_to_save": (list, tuple),
    "target_parameters": (list, tuple), "r": int, "task_type": str, "bias": str,
    "base_model_name_or_path": str, "revision": str,
}  # fmt: skip
_MAX_CONFIG_BYTES = 10_000_000  # one of a few thousand modules has a tenth
_MAX_PATTERN_WORK = 100_000_000  # comparisons of characters: seconds, where real ones need none
_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|lm_head|word_embeddings|wte|shared)\.(?:base_layer\.)?weight$"
)
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class AdapterInfo:
    """One adapter of a library: what it is for and what it fits. All of it JSON."""

    name: str
    language: str | None = None  # canonical BCP-47 tag
    domain: str | None = None
    task: str | None = None  # a name in adapters_hub.tasks, None for a bare delta
    labels: tuple[str, ...] | None = None  # classification: in the order of the logits
    problem_type: str | None = None  # classification: of PROBLEM_TYPES, as in transformers
    pipeline_tag: str | None = None  # the Hub's tag for what it does, such as text-generation
    pooling: str | None = None  # retrieval: how hidden states become one vector
    prompts: dict[str, str] = field(default_factory=dict)  # put before or around texts, by kind
    backbone: str | None = None  # hub id, folder, or "starter"
    revision: str | None = None  # of a hub id: the branch, tag or commit it was trained on
    fingerprint: str | None = None
    over: tuple[str, ...] = ()  # frozen adapters it was trained over
    pair_weights: dict[str, PairWeight] = field(default_factory=dict)  # by language adapter
    license: str | None = None
    description: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    results: tuple[Result, ...] = ()  # measured on named data
    datasets: tuple[str, ...] = ()  # the Hub's ids of what it was trained on
    trained_with: str | None = None  # the command
    origin: Origin | None = None  # where it was pulled from
    rank: int = 0
    sites: int = 0
    parameters: int = 0
    bytes: int = 0
    hash: str | None = None
    path: str | None = None  # the folder; not stored

    def to_json(self) -> dict[str, object]:
        """Plain JSON values, without the path."""
        data = asdict(self)
        del data["path"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "AdapterInfo":
        """The reverse of `to_json`; fields this version does not know are left out.

        Raises `TypeError` that names a field whose value is not of its type.
        """
        fields = Fields(data)
        return cls(
            name=fields.need("name", as_text),
            language=fields.get("language", as_text),
            domain=fields.get("domain", as_text),
            task=fields.get("task", as_line),
            labels=fields.get("labels", tuple_of(as_text)),
            problem_type=fields.get("problem_type", as_line),
            pipeline_tag=fields.get("pipeline_tag", as_line),
            pooling=fields.get("pooling", as_line),
            prompts=fields.get("prompts", dict_of(as_text)) or {},
            backbone=fields.get("backbone", as_line),
            revision=fields.get("revision", as_line),
            fingerprint=fields.get("fingerprint", as_line),
            over=fields.get("over", tuple_of(as_text)) or (),
            pair_weights=fields.get("pair_weights", dict_of(PairWeight.from_json)) or {},
            license=fields.get("license", as_line),
            description=fields.get("description", as_text),
            metrics=fields.get("metrics", dict_of(as_number)) or {},
            results=fields.get("results", tuple_of(Result.from_json)) or (),
            datasets=fields.get("datasets", tuple_of(as_line)) or (),
            trained_with=fields.get("trained_with", as_text),
            origin=fields.get("origin", Origin.from_json),
            rank=fields.get("rank", as_count) or 0,
            sites=fields.get("sites", as_count) or 0,
            parameters=fields.get("parameters", as_count) or 0,
            bytes=fields.get("bytes", as_count) or 0,
            hash=fields.get("hash", as_text),
            path=fields.get("path", as_text),
        )


class AdapterConfig(TypedDict, total=False):
    """What is read here of PEFT's ``adapter_config.json``, which holds more."""

    peft_type: str
    r: int
    lora_alpha: float
    alpha_pattern: dict[str, float] | None
    use_rslora: bool
    target_modules: object
    target_parameters: list[str] | None
    modules_to_save: list[str] | None
    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None


@dataclass(frozen=True)
class LoraSpec:
    """The part of a PEFT configuration that says what the factors mean."""

    config: AdapterConfig

    def scaling(self, module: str, rank: int) -> float:
        """α/r, or α/√r with rsLoRA (arXiv:2312.03732), for a module's path in the model."""
        patterns = self.config.get("alpha_pattern") or {}
        alpha = next(
            (value for key, value in patterns.items() if matches(key, module)),
            self.config.get("lora_alpha", 8),
        )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk, checked: its info, configuration, header and weights file."""

    info: AdapterInfo
    spec: LoraSpec
    header: tensorfile.Header
    weights: Path
    modules: dict[str, tuple[str, str]]  # module path in the model → keys of A and B
    head: dict[str, str]  # parameter path in the model → key
    copies: dict[str, str] = field(default_factory=dict)
    """Path → key of the weights of the backbone that PEFT saves beside an adapted output layer."""

    @property
    def target_parameters(self) -> frozenset[str]:
        """The parameters that are no linear layer's, as the configuration names them."""
        return frozenset(self.spec.config.get("target_parameters") or ())

    @property
    def wrapped(self) -> set[str]:
        """The modules that are wrapped for one of these: A and B may be of many matrices."""
        return wrapped_modules(self.modules, self.target_parameters)


class SplitKeys(NamedTuple):
    """A file's keys, sorted into the three of `AdapterFiles`; not to be changed."""

    modules: dict[str, tuple[str, str]]
    head: dict[str, str]
    copies: dict[str, str]


def read_adapter(path: str | Path, name: str | None = None) -> AdapterFiles:
    """Read a PEFT folder or a lone ``.safetensors`` file of ours and check all but the numbers.

    Raises `AdapterFileError` for damaged or unsafe files, `UnsupportedAdapterError` for adapters
    that are sound but no plain LoRA. Metadata in the header win over the configuration file.
    """
    path = Path(path)
    weights = _weights_file(path)
    header = tensorfile.read_header(weights)
    ours = _metadata(header, weights)
    stored = ours.get("lora") if path.is_file() else read_config(path / CONFIG_FILE)
    if not isinstance(stored, dict):
        raise AdapterFileError(
            f"{path}: a lone file needs the metadata this library writes into its header, and it "
            f"has none; give the PEFT folder with its {CONFIG_FILE} instead"
        )
    config = check_plain(stored, path)
    modules, head, copies = split_keys(header, config, path)
    spec = LoraSpec(config)
    ranks = {module: header.tensors[a].shape[0] for module, (a, _) in modules.items()}
    check_scaling(spec, ranks, path)
    for module in wrapped_modules(modules, frozenset(config.get("target_parameters") or ())):
        ranks[module] = min(ranks[module], config.get("r") or ranks[module])  # it may be of many
    try:
        info = AdapterInfo.from_json({"name": name or path.stem, **ours})
        if info.language is not None:
            info = replace(info, language=languages.canonical(info.language))
    except (TypeError, ValueError) as error:
        raise AdapterFileError(f"{weights}: damaged metadata ({error})") from None
    if METADATA_KEY not in header.metadata:
        info = replace(
            info,
            backbone=config.get("base_model_name_or_path"),
            task=_TASK_OF_PEFT_TYPE.get(config.get("task_type") or ""),
        )
    if info.revision is None and info.backbone == config.get("base_model_name_or_path"):
        info = replace(info, revision=config.get("revision") or None)
    if info.pipeline_tag is None:
        tag = _TAG_OF_PEFT_TYPE.get(config.get("task_type") or "")
        info = replace(info, pipeline_tag=tag)
    info = replace(
        info,
        name=name or info.name or path.stem,
        rank=max(ranks.values(), default=0),
        sites=len(modules),
        parameters=header.layout.items,
        bytes=weights.stat().st_size,
        path=str(path),
    )
    return AdapterFiles(info, spec, header, weights, modules, head, copies)


def check_plain(config: Mapping[str, object], where: str | Path) -> AdapterConfig:
    """The configuration, if it is that of a plain LoRA; else `UnsupportedAdapterError`."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(f"{where}: peft_type is {kind!r}; only LORA can be composed")
    for key, kinds in _CONFIG_TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], kinds):
            raise AdapterFileError(f"{where}: {key} has a value of the wrong type: {config[key]!r}")
    for key in ("modules_to_save", "target_parameters"):
        names = config.get(key)
        if isinstance(names, list | tuple) and not all(isinstance(name, str) for name in names):
            raise AdapterFileError(f"{where}: {key}={names!r}: no names")
    for key in ("base_model_name_or_path", "revision"):
        if not str(config.get(key) or "").isprintable():
            raise AdapterFileError(f"{where}: {key} holds what cannot be printed")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise UnsupportedAdapterError(f"{where}: {key} is set: {reason}")
    if (config.get("bias") or "none") != "none":
        raise UnsupportedAdapterError(
            f"{where}: bias={config['bias']!r} changes the backbone's biases; use bias='none'"
        )
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise UnsupportedAdapterError(
            f"{where}: init_lora_weights={start!r} moved part of the backbone's weight into the "
            "start, so the file alone is not the delta; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which stores the plain delta"
        )
    return cast(AdapterConfig, config)


def split_keys(header: tensorfile.Header, config: AdapterConfig, where: str | Path) -> SplitKeys:
    """Sort a file's tensors into LoRA pairs by module, head parameters, and copies of weights of
    the backbone, by path.
    """
    saved = tuple(config.get("modules_to_save") or ())
    keys = header.layout.known.get(saved)
    try:
        if not isinstance(keys, SplitKeys):
            keys = header.layout.known[saved] = _split_keys(header.layout, saved)
        return keys
    except (AdapterFileError, UnsupportedAdapterError) as error:
        raise type(error)(f"{where}: {error}") from None


def _split_keys(layout: tensorfile.Layout, saved: tuple[str, ...]) -> SplitKeys:
    pairs: dict[str, dict[str, str]] = {}
    head: dict[str, str] = {}
    copies: dict[str, str] = {}
    for key, entry in layout.tensors.items():
        if entry.dtype.startswith("F8"):
            raise UnsupportedAdapterError(
                f"{key} is {entry.dtype}, floating point of 8 bits, in which nothing can be added "
                "up: save the tensors again as float16 (tensor.to(torch.float16))"
            )
        if entry.dtype not in _FLOATING:
            raise UnsupportedAdapterError(f"{key} is {entry.dtype}, not floating point")
        path = _wrapped(key).removeprefix(KEY_PREFIX)
        if match := _FACTOR.fullmatch(path):
            if len(entry.shape) != 2:
                raise UnsupportedAdapterError(f"{key} has shape {entry.shape}, not 2-D")
            pairs.setdefault(match[1], {})[match[2]] = key
        elif "lora_magnitude_vector" in path:
            raise UnsupportedAdapterError(_REFUSED["use_dora"])
        elif "lora_embedding" in path:
            raise UnsupportedAdapterError(f"{key}: LoRA on an embedding is not supported")
        elif any(part in path.split(".") for part in saved):
            if _EMBEDDING.search(path):
                raise UnsupportedAdapterError(
                    f"{key}: modules_to_save holds embeddings or an output layer, a trained copy "
                    "of a part of the backbone; whole modules cannot be added up: train without it"
                )
            head[path.replace(".modules_to_save.default", "")] = key
        elif ".base_layer." in path or _EMBEDDING.search(path):
            copies[path.replace(".base_layer.", ".")] = key
        else:
            raise UnsupportedAdapterError(
                f"{key} is neither a LoRA factor nor in modules_to_save {list(saved)}"
            )
    modules = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise AdapterFileError(f"{module} has lora_{min(pair)} but not the other factor")
        a, b = (layout.tensors[pair[side]].shape for side in "AB")
        if a[0] != b[1]:
            raise AdapterFileError(f"{module}: A is {a} and B is {b}; the ranks differ")
        if a[0] == 0:
            raise AdapterFileError(f"{module}: A is {a} and B is {b}; the rank is 0")
        modules[module] = (pair["A"], pair["B"])
    if not modules and not head:
        raise AdapterFileError("no LoRA factors in the file")
    return SplitKeys(modules, head, copies)


def _wrapped(key: str) -> str:
    """A key without what torch.compile and DistributedDataParallel put before a module's name."""
    plain = key.replace("_orig_mod.", "")
    return plain[len("module.") :] if plain.startswith(f"module.{KEY_PREFIX}") else plain


def check_scaling(spec: LoraSpec, ranks: Mapping[str, int], where: Path) -> None:
    """Raise `AdapterFileError` unless these modules, by their ranks, have a scaling."""
    patterns = spec.config.get("alpha_pattern") or {}
    letters = sum(map(len, ranks))
    try:
        work = sum(len(key) * (len(ranks) if is_name(key) else 4 * letters) for key in patterns)
        if work > _MAX_PATTERN_WORK:
            raise UnsupportedAdapterError(
                f"{len(patterns)} patterns are too many to match with {len(ranks)} modules"
            )
        bad = [m for m, rank in ranks.items() if not math.isfinite(spec.scaling(m, rank))]
    except UnsupportedAdapterError as error:
        raise UnsupportedAdapterError(f"{where}: alpha_pattern: {error}") from None
    except (TypeError, ArithmeticError) as error:
        raise AdapterFileError(f"{where}: lora_alpha or alpha_pattern: {error}") from None
    if bad:
        raise AdapterFileError(f"{where}: the scaling of {bad[0]} is not a finite number")


def _weights_file(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        if path.suffix != ".safetensors":
            raise AdapterFileError(f"{path}: not a .safetensors file or an adapter folder")
        return path
    if not path.is_dir():
        raise AdapterFileError(f"{path}: no such folder or file")
    weights = path / WEIGHTS_FILE
    if weights.exists() and not weights.is_dir():
        return weights
    for old in ("adapter_model.bin", "adapter_model.pt"):
        if (path / old).exists():
            raise AdapterFileError(
                f"{path / old} is a pickle, which can run code when it is opened; "
                "load it with PEFT where you trust it and save_pretrained it as safetensors"
            )
    present = sorted(entry.name for entry in path.iterdir())[:5]
    raise AdapterFileError(f"{path}: no {WEIGHTS_FILE} (there: {', '.join(present) or 'nothing'})")


def read_config(path: Path) -> dict[str, object]:
    """PEFT's configuration, any of it; raises `AdapterFileError` for what is no JSON object."""
    try:
        config = read_json(tensorfile.read_small(path, _MAX_CONFIG_BYTES).decode())
    except FileNotFoundError:
        raise AdapterFileError(f"{path}: missing; a PEFT adapter folder has one") from None
    except OSError as error:
        raise AdapterFileError(f"{path}: {error.strerror or error}") from None
    except AdapterFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path}: not a JSON object")
    return config


def _metadata(header: tensorfile.Header, weights: Path) -> dict[str, object]:
    raw = header.metadata.get(METADATA_KEY)
    if raw is None:
        return {}
    try:
        data = read_json(raw)
        if not isinstance(data, dict):
            raise TypeError(f"a JSON {type(data).__name__}, not an object")
        version = data["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterFileError(f"{weights}: damaged metadata in the header ({error!r})") from None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{weights}: written by a newer version of the format ({version}, this one reads "
            f"{FORMAT_VERSION}); upgrade adapters_hub"
        )
    return data


def metadata(info: AdapterInfo, config: Mapping[str, object]) -> dict[str, str]:
    """The header's metadata for an adapter: what `read_adapter` reads back."""
    ours = {"version": FORMAT_VERSION, **info.to_json(), "lora": plain_config(config)}
    del ours["bytes"]  # of the file that this becomes a part of
    return {
        "format": "pt",
        METADATA_KEY: json.dumps(dict(sorted(ours.items())), ensure_ascii=False),
    }


def plain_config(config: Mapping[str, object]) -> dict[str, object]:
    """What of a PEFT configuration is stored: what says how a plain LoRA is to be read.

    The rest says how it was trained, or, as ``megatron_core`` and ``auto_mapping`` do, names a
    module that PEFT would import. The keys are sorted, but a pattern's not: PEFT takes the first
    of them that fits.
    """
    return {key: config[key] for key in _STORED if key in config}


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The keys whose values differ, in the order of patterns too."""
    pairs = {key: (one.get(key), other.get(key)) for key in sorted(one.keys() | other)}
    return [
        key
        for key, (a, b) in pairs.items()
        if a != b or (isinstance(a, dict) and isinstance(b, dict) and [*a] != [*b])
    ]
