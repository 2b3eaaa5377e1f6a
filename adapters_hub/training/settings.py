"""The settings of a training run: one dataclass, read from defaults, a YAML file and flags.

The dataclass is the only list of settings there is: flags, ``--help``, YAML keys and the printed
table are made from it. Knows nothing of what the settings do.
"""

import argparse
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from adapters_hub.errors import SettingsError


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainingSettings:
    """What one run trains, on what, and how. Raises `SettingsError` for values that cannot work."""

    backbone: str = _setting("starter", "'starter', a model folder, or a hub id")
    task: str = _setting(
        "language-modeling",
        "'language-modeling', 'classification', 'question-answering', 'token-classification', "
        "'retrieval', 'generation' or 'translation'",
    )
    data: str = _setting(
        "recipes/data",
        "file, folder or Hub data set: text, label, language, domain, positive, target",
    )
    columns: dict[str, str] = _setting({}, "the data's own names: text=review label=stars")
    label_separator: str | None = _setting(
        None, "what stands between the labels of one cell, such as ';'; default: a cell is one"
    )
    language: tuple[str, ...] = _setting((), "languages to train on; none given: all in the data")
    domain: tuple[str, ...] = _setting((), "domains to train on; rows that name none fit any")
    over: tuple[str, ...] = _setting(
        ("auto",),
        "frozen language adapters below a domain adapter, chosen per row by its language: "
        "'auto' takes those the library has, 'none' none, or a list of languages",
    )
    over_share: float = _setting(1.0, "share of the rows that see their language adapter")
    library: str | None = _setting(None, "folder of adapters to read from and save to")
    name: str | None = _setting(None, "the adapter's name; default: its one language or domain")
    save_precision: Literal["float32", "bfloat16", "float16"] = _setting(
        "float32", "number format of the saved adapter"
    )
    replace: bool = _setting(False, "replace an adapter of the same name")
    license: str | None = _setting(None, "licence written into the model card")
    bits: int = _setting(32, "precision of the backbone: 32, 16, 8 or 4")
    trust_remote_code: bool = _setting(False, "run code that comes with the checkpoint")
    rank: int = _setting(8, "LoRA rank")
    lora_alpha: float | None = _setting(None, "LoRA alpha; default: twice the rank")
    rslora: bool = _setting(False, "scale by alpha / sqrt(rank)")
    dropout: float = _setting(0.0, "dropout before A")
    targets: tuple[str, ...] = _setting(("all-linear",), "modules to adapt, as in PEFT")
    max_length: int = _setting(256, "tokens a text is cut at, or into (language, questions)")
    stride: int = _setting(64, "question answering: tokens that windows of a long text share")
    mask_probability: float = _setting(0.15, "masked language modelling: share of targets")
    label_smoothing: float = _setting(0.0, "classification: label smoothing")
    pooling: Literal["mean", "cls", "last"] | None = _setting(
        None, "retrieval: default: the last token of a decoder, else the mean"
    )
    query_prompt: str = _setting("", "retrieval: put before each text")
    document_prompt: str = _setting("", "retrieval: put before each positive and negative")
    temperature: float = _setting(0.05, "retrieval: what cosines are divided by")
    prompt: str | None = _setting(
        None,
        "generation, translation: a template over the row's fields, such as '{text} {question}'",
    )
    chat: bool = _setting(False, "generation, translation: the prompt in the chat template")
    target_language: tuple[str, ...] = _setting(
        (), "translation: languages to translate into; none given: all in the data"
    )
    max_new_tokens: int = _setting(128, "generation, translation: tokens written in the test")
    steps: int = _setting(300, "optimizer steps")
    batch_size: int = _setting(32, "rows a step, over all processes and accumulated pieces")
    accumulation: int = _setting(1, "pieces each process takes its share of a batch in")
    sampling_alpha: float = _setting(
        0.3, "languages, then their domains, are drawn with p ~ n^alpha"
    )
    learning_rate: float = _setting(1e-3, "peak learning rate of the adapter")
    head_learning_rate: float | None = _setting(None, "of the head; default: as the adapter")
    weight_decay: float = _setting(0.0, "AdamW's, on the factors")
    warmup: float = _setting(0.06, "share of the steps with a rising rate")
    schedule: Literal["cosine", "linear", "constant"] = _setting("cosine", "decay after that")
    clip: float = _setting(1.0, "gradient norm limit of each adapter; 0: none")
    eval_every: int = _setting(0, "steps between looks at dev; 0: ten looks a run")
    patience: int = _setting(0, "looks without a better dev score before stopping; 0: never")
    seed: int = _setting(0, "seed of everything random")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _setting(
        None, "autocast of the forward; default: as accelerate was launched"
    )
    gradient_checkpointing: bool = _setting(False, "recompute activations to save memory")
    cpu: bool = _setting(False, "do not use an accelerator")
    threads: int = _setting(0, "CPU threads a process; 0: all cores for one process")
    tracker: tuple[str, ...] = _setting((), "accelerate trackers: tensorboard, …")
    run_folder: str = _setting("runs", "checkpoints and tracker logs go below it")
    save_every: int = _setting(0, "steps between checkpoints; 0: only when interrupted")
    resume: bool = _setting(True, "go on from this run's checkpoint if there is one")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "rank", "max_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("dropout", "warmup", "over_share", "label_smoothing", "mask_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        for name in ("sampling_alpha", "clip", "weight_decay", "patience", "threads", "eval_every",
                     "save_every", "stride"):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("learning_rate", "head_learning_rate", "lora_alpha", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingsError(f"{name}={value}: must be above 0")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed={self.seed}: must be between 0 and {2**32 - 1}")
        if self.label_separator == "":
            raise SettingsError("label_separator='': nothing can stand between labels")
        if self.bits not in (32, 16, 8, 4):
            raise SettingsError(f"bits={self.bits}: choose one of 32, 16, 8, 4")
        for setting in fields(self):
            hint, value = get_type_hints(type(self))[setting.name], getattr(self, setting.name)
            choices = _choices(hint)
            if choices and value not in choices and not (value is None and _is_optional(hint)):
                raise SettingsError(f"{setting.name}={value!r}: choose one of {', '.join(choices)}")

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked again."""
        return replace(self, **values)


@dataclass(frozen=True)
class MatrixSettings(TrainingSettings):
    """A run's settings, and what a matrix by language and domain needs beside them."""

    source: str = _setting("en", "the language that the task's adapter is trained in")
    methods: tuple[str, ...] = _setting(("sum",), "how language and domain are composed")
    seeds: int = _setting(3, "trainings of everything, from --seed on")
    rows: int = _setting(200, "dev and test rows of a cell at most; 0: all")
    resamples: int = _setting(2000, "bootstrap samples of an interval")
    results: str = _setting("matrix", "folder of the cells, a JSON each, and of what was trained")
    oracle: bool = _setting(True, "train an adapter in every cell too, to compare with")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "resamples"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.rows < 0:
            raise SettingsError(f"rows={self.rows}: must be 0 or more")


@dataclass(frozen=True)
class Resolved:
    """Settings and, for each, where its value came from."""

    settings: TrainingSettings
    origins: Mapping[str, str]

    def defaults(self, **values: Any) -> "Resolved":
        """The same with other defaults: values for those of the settings that nobody chose."""
        unchosen = {name: v for name, v in values.items() if self.origins[name] == "default"}
        origins = {**self.origins, **dict.fromkeys(unchosen, "recipe")}
        return Resolved(self.settings.changed(**unchosen), origins)

    def filled(self, origin: str, **values: Any) -> "Resolved":
        """The same with values, which come from ``origin``, for settings that were left open."""
        left = {name: v for name, v in values.items() if getattr(self.settings, name) is None}
        return Resolved(
            self.settings.changed(**left), {**self.origins, **dict.fromkeys(left, origin)}
        )

    def table(self) -> str:
        """One line a setting: name, value, origin."""
        rows = [(f.name, _show(getattr(self.settings, f.name))) for f in fields(self.settings)]
        wide = max(len(name) for name, _ in rows)
        broad = max(len(value) for _, value in rows)
        return "\n".join(f"  {n:<{wide}}  {v:<{broad}}  {self.origins[n]}" for n, v in rows)


def parse_settings(
    arguments: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    description: str | None = None,
    kind: type[TrainingSettings] = TrainingSettings,
) -> Resolved:
    """Settings from the dataclass's defaults, a recipe's, ``--config FILE.yaml``, and flags.

    Later ones win. ``arguments`` defaults to the process's. Raises `SettingsError` for a YAML key
    or value that is no setting; a wrong flag ends the process with a message, as argparse does.
    """
    recipe = dict(recipe or {})
    hints = get_type_hints(kind)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    for setting in fields(kind):
        default = recipe.get(setting.name, _default(setting))
        _add_flag(parser, setting.name, hints[setting.name], setting.metadata["help"], default)
    given = vars(parser.parse_args(arguments))
    config = given.pop("config")
    values = dict(recipe)
    origins = {f.name: "recipe" if f.name in recipe else "default" for f in fields(kind)}
    for name, value in (_yaml(config) if config else {}).items():
        if name not in origins:
            raise SettingsError(f"{config}: {name!r} is no setting (see --help)")
        values[name] = _convert(name, value, hints[name], config)
        origins[name] = config
    for name, value in given.items():
        values[name] = _convert(name, value, hints[name], "command line")
        origins[name] = "command line"
    return Resolved(kind(**values), origins)


def _add_flag(
    parser: argparse.ArgumentParser, name: str, hint: Any, help: str, default: Any
) -> None:
    flag = "--" + name.replace("_", "-")
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    options["help"] = f"{help} [{_show(default)}]".replace("%", "%%")
    if hint is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        return
    if get_origin(hint) in (tuple, dict):
        options["nargs"] = "*"
    elif choices := _choices(hint):
        options["choices"] = choices
    else:
        options["type"] = _plain_type(hint)
    metavar = "NAME=COLUMN" if get_origin(hint) is dict else None
    parser.add_argument(flag, metavar=metavar, **options)


def _convert(name: str, value: Any, hint: Any, where: str) -> Any:
    """A value from YAML or flags as the dataclass wants it."""
    if value is False and (get_origin(hint) is tuple or _choices(hint)):
        value = "no"  # what YAML 1.1 makes of an unquoted no
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [] if value is None else [value]
        texts = ["no" if item is False else str(item) for item in items]
        return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())
    if get_origin(hint) is dict:
        if isinstance(value, Mapping):
            return {str(k): str(v) for k, v in value.items()}
        items = value if isinstance(value, list) else [] if value is None else [value]
        pairs = [str(item).partition("=") for item in items]
        if any(not column for _, _, column in pairs):
            raise SettingsError(f"{where}: {name}: write NAME=COLUMN")
        return {key: column for key, _, column in pairs}
    kind = _plain_type(hint)
    if value is None and _is_optional(hint):
        return None
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-3 as text
    fits = isinstance(value, bool) == (kind is bool) and (
        isinstance(value, kind) or (kind is float and isinstance(value, int))
    )
    if not fits and not _choices(hint):
        raise SettingsError(f"{where}: {name}={value!r} should be of type {kind.__name__}")
    return kind(value) if kind is float else value


def _yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path}: not YAML ({error})") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"{path}: a YAML mapping of settings is expected")
    return {str(key).replace("-", "_"): value for key, value in (loaded or {}).items()}


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _without_none(hint: Any) -> Any:
    if not _is_optional(hint):
        return hint
    return next(part for part in get_args(hint) if part is not type(None))


def _plain_type(hint: Any) -> type:
    hint = _without_none(hint)
    return str if get_origin(hint) is Literal else hint


def _choices(hint: Any) -> tuple[str, ...]:
    hint = _without_none(hint)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _default(setting: Any) -> Any:
    return {} if setting.name == "columns" else setting.default


def _show(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value)
