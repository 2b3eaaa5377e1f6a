"""The settings of a training run: one dataclass, read from defaults, a YAML file and flags.

Flags, ``--help``, YAML keys and the printed table are made from the dataclass and from what the
tasks declare. Knows nothing of what the settings do, and never imports torch.
"""

import argparse
import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Literal, Self, TypeVar, get_type_hints

from adapters_hub.data.augmentation.registry import methods, methods_of
from adapters_hub.errors import SettingsError
from adapters_hub.library.paths import sample_folder
from adapters_hub.tasks.declaration import TaskOptions
from adapters_hub.tasks.registry import DEFAULT_TASK, declaration_of, declarations, task_names
from adapters_hub.training.conversion import (
    add_flag,
    choices,
    converted,
    is_optional,
    read_yaml,
    shown,
)
from adapters_hub.training.regularisers.control import wanted_of
from adapters_hub.training.regularisers.registry import method_names

SYNONYMS = {
    "r": "rank",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "loraplus_lr_ratio": "lora_plus",
    "target_modules": "targets",
    "target_parameters": "parameters",
    "max_steps": "steps",
    "gradient_accumulation_steps": "accumulation",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
}
"""What PEFT's ``LoraConfig`` and transformers' ``TrainingArguments`` call a setting → its name."""

WITHOUT_PENALTIES: Mapping[str, object] = {"regularise": {}, "regularise_data": None}
"""Changes for training a head alone, which adds nothing to the backbone that could be held."""

_PATTERN_SIGNS = frozenset("\\^$*+?()[]{}|")

_Value = TypeVar("_Value")

Init = Literal["gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"]
"""PEFT's names of what an adapter may start with, where it is not the default."""

_MODEL = "backbone"
_DATA = "data"
_ADAPTER = "adapter"
_STEPS = "steps and rates"
_MACHINE = "machine and run"


def setting(default: _Value, help: str, group: str) -> _Value:
    """A field of a settings class: its default, what ``--help`` says of it, and in which group."""
    metadata = {"help": help, "group": group}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _objectives() -> tuple[str, ...]:
    return tuple(sorted(name for task in declarations() for name in task.objectives))


_Settings = TypeVar("_Settings", bound="TrainingSettings")


def takes_every_name(settings: type[_Settings]) -> type[_Settings]:
    """Let a settings class be called with synonyms, and with options of tasks by their names."""
    initialise: Callable[..., None] = settings.__init__

    @functools.wraps(initialise)
    def with_every_name(self: _Settings, *values: object, **named: object) -> None:
        ours = _by_our_names(named, "settings")
        given = ours.get("options", {})
        if not isinstance(given, Mapping):
            raise SettingsError(f"options={given!r}: give a mapping of names to values")
        options = {name: ours.pop(name) for name in [*ours] if name in _task_fields()}
        if options:
            ours["options"] = {**given, **options}
        initialise(self, *values, **ours)

    settings.__init__ = with_every_name  # type: ignore[assignment]
    return settings


@takes_every_name
@dataclass(frozen=True)
class TrainingSettings:
    """What one run trains, on what, and how. Raises `SettingsError` for values that cannot work.

    The settings that only some tasks have are given by their names too: they are kept in
    ``options``, and `task_options` are those of the run's task.
    """

    backbone: str = setting("starter", "'starter', a model folder, or a hub id", _MODEL)
    revision: str | None = setting(
        None, "the backbone's branch, tag or commit, where it is a hub id", _MODEL
    )
    bits: int | None = setting(
        None, "precision of the backbone: 32, 16, 8 or 4; default: 32, or the stored one", _MODEL
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = setting(
        None, "the same as transformers has it; 'auto': the checkpoint's", _MODEL
    )
    attn_implementation: str | None = setting(
        None, "transformers' attention: eager, sdpa, flash_attention_2, …", _MODEL
    )
    trust_remote_code: bool = setting(False, "run code that comes with the checkpoint", _MODEL)
    task: str = setting(DEFAULT_TASK, "what is learnt: " + ", ".join(task_names()), _DATA)
    data: str = setting("sample", "file, folder or Hub data set of rows; 'sample' ships", _DATA)
    columns: dict[str, str] = setting({}, "the data's names: text=review label=stars", _DATA)
    label_separator: str | None = setting(
        None,
        "what stands between the labels of one cell, such as ';'; default: it is one",
        _DATA,
    )
    language: tuple[str, ...] = setting(
        (),
        "languages to train on; none given: all in the data; 'auto' among them: rows that name "
        "none are in the one that their text is found to be in",
        _DATA,
    )
    domain: tuple[str, ...] = setting((), "domains to train on; rows that name none fit any", _DATA)
    dev_language: tuple[str, ...] = setting(
        (), "languages whose dev rows choose the best state and stop; default: as trained", _DATA
    )
    sampling_alpha: float = setting(
        0.3, "languages, then their domains, are drawn with p ~ n^alpha", _DATA
    )
    max_length: int = setting(256, "tokens a text is cut at, or into (language, questions)", _DATA)
    augment: dict[str, float] = setting(
        {},
        "change train rows as they are drawn: "
        + "; ".join(f"{name}=NUMBER, {method.help}" for name, method in methods().items()),
        _DATA,
    )
    augment_data: str | None = setting(
        None,
        "what codeswitch and translate take: rows of one id in several languages, as --data (a "
        "folder of en.txt and yo.txt); codeswitch also a file with columns word and translation",
        _DATA,
    )
    augment_language: tuple[str, ...] = setting(
        (), "languages that they take of it; none given: all", _DATA
    )
    name: str | None = setting(
        None, "the adapter's name; default: its one language or domain", _ADAPTER
    )
    library: str | None = setting(None, "folder of adapters to read from and save to", _ADAPTER)
    replace: bool = setting(False, "replace an adapter of the same name", _ADAPTER)
    save_precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "number format of the saved adapter", _ADAPTER
    )
    license: str | None = setting(None, "licence written into the model card", _ADAPTER)
    objective: str | None = setting(
        None,
        "how a language adapter is trained: " + ", ".join(_objectives()) + "; default: the one "
        "that the data and the backbone allow",
        _ADAPTER,
    )
    over: tuple[str, ...] = setting(
        ("auto",),
        "frozen language adapters below a domain adapter, chosen per row by its language: "
        "'auto' takes those the library has, 'none' none, or a list of languages; with 'proxy' "
        "(auto proxy) languages without one get those of near languages",
        _ADAPTER,
    )
    over_share: float = setting(1.0, "share of the rows that see their language adapter", _ADAPTER)
    rank: int = setting(8, "LoRA rank", _ADAPTER)
    lora_alpha: float | None = setting(None, "LoRA alpha; default: twice the rank", _ADAPTER)
    rslora: bool = setting(
        False, "scale by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)", _ADAPTER
    )
    init: Init | None = setting(
        None,
        "what A and B start with, as PEFT computes it: from the weights pissa (arXiv:2404.02948), "
        "olora (arXiv:2406.01775) and orthogonal, from the first train batches eva "
        "(arXiv:2410.07170) and lora_ga (arXiv:2407.05000), or gaussian; "
        "default: A uniform, B zero",
        _ADAPTER,
    )
    dropout: float = setting(0.0, "dropout before A", _ADAPTER)
    targets: tuple[str, ...] = setting(
        ("all-linear",),
        "modules to adapt, as in PEFT: the ends of their names, or one regular expression",
        _ADAPTER,
    )
    parameters: tuple[str, ...] = setting(
        (),
        "parameters of routers and experts to adapt too, as PEFT's target_parameters: the ends of "
        "their names",
        _ADAPTER,
    )
    cut: float | None = setting(
        None,
        "when trained, cut each site's delta to the smallest rank that keeps this share of its "
        "energy, the sum of squared singular values (Eckart and Young, 1936)",
        _ADAPTER,
    )
    cut_rank: int | None = setting(
        None, "when trained, cut each site's delta to this rank at most, likewise", _ADAPTER
    )
    steps: int = setting(300, "optimizer steps", _STEPS)
    regularise: dict[str, str] = setting(
        {},
        "penalties beside the loss, each with a weight, or with a value that its weight keeps it "
        "at: l2=1e-3 kl=target:0.05; of " + ", ".join(method_names()),
        _STEPS,
    )
    regularise_data: str | None = setting(
        None, "file of generic text that fisher and kl look at; default: the run's rows", _STEPS
    )
    joint_weights: Literal["proportional", "dro"] | None = setting(
        None, "weigh each language and domain by its loss, or as group DRO (arXiv:1911.08731)",
        _STEPS,
    )  # fmt: skip
    batch_size: int = setting(32, "rows a step, over all processes and accumulated pieces", _STEPS)
    accumulation: int = setting(1, "pieces each process takes its share of a batch in", _STEPS)
    learning_rate: float = setting(1e-3, "peak learning rate of the adapter", _STEPS)
    lora_plus: float | None = setting(
        None, "B learns at so many times the rate of A (LoRA+, arXiv:2402.12354, with 16)", _STEPS
    )
    head_learning_rate: float | None = setting(None, "of the head; default: as the adapter", _STEPS)
    weight_decay: float = setting(0.0, "AdamW's, on the factors", _STEPS)
    warmup: float = setting(0.06, "share of the steps with a rising rate", _STEPS)
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "decay after that", _STEPS
    )
    clip: float = setting(1.0, "gradient norm limit of each adapter; 0: none", _STEPS)
    eval_every: int = setting(0, "steps between looks at dev; 0: ten looks a run", _STEPS)
    patience: int = setting(0, "looks without a better dev score before stopping; 0: never", _STEPS)
    seed: int = setting(0, "seed of everything random", _STEPS)
    mixed_precision: Literal["no", "bf16", "fp16"] | None = setting(
        None, "autocast of the forward; default: as accelerate was launched", _MACHINE
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory", _MACHINE)
    cpu: bool = setting(False, "do not use an accelerator", _MACHINE)
    threads: int = setting(0, "CPU threads a process; 0: all cores for one process", _MACHINE)
    tracker: tuple[str, ...] = setting((), "accelerate trackers: tensorboard, …", _MACHINE)
    run_folder: str = setting("runs", "checkpoints and tracker logs go below it", _MACHINE)
    save_every: int = setting(0, "steps between checkpoints; 0: only when interrupted", _MACHINE)
    resume: bool = setting(True, "go on from this run's checkpoint if there is one", _MACHINE)
    options: Mapping[str, object] = field(default_factory=dict)
    """What only some tasks have, by name, where it is not the default."""

    def __post_init__(self) -> None:
        if self.data == "sample":
            folder = sample_folder(declaration_of(self.task).sample.folder)
            object.__setattr__(self, "data", str(folder))
        for name in ("steps", "batch_size", "accumulation", "rank"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("cut_rank", "lora_plus"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < float("inf"):
                raise SettingsError(f"{name}={value}: must be 1 or more")
        if self.cut is not None and not 0 < self.cut <= 1:
            raise SettingsError(
                f"cut={self.cut}: must be a share above 0, at most 1 (a rank is cut_rank)"
            )
        if self.init is not None and self.parameters:
            raise SettingsError(
                f"init={self.init!r} is for layers, and parameters={' '.join(self.parameters)} are "
                "none: leave out one of them"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise SettingsError(f"rank={self.rank}: init='orthogonal' needs an even one")
        for name in ("dropout", "warmup", "over_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        for name in ("sampling_alpha", "clip", "weight_decay", "patience", "threads", "eval_every",
                     "save_every"):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("learning_rate", "head_learning_rate", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingsError(f"{name}={value}: must be above 0")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed={self.seed}: must be between 0 and {2**32 - 1}")
        if self.objective not in (None, *_objectives()):
            raise SettingsError(
                f"objective={self.objective!r}: choose one of {', '.join(_objectives())}"
            )
        methods_of(self.augment)  # which checks names and numbers
        if self.label_separator == "":
            raise SettingsError("label_separator='': nothing can stand between labels")
        if self.bits not in (None, 32, 16, 8, 4):
            raise SettingsError(f"bits={self.bits}: choose one of 32, 16, 8, 4")
        wanted_of(self.regularise)
        _check_targets(self.targets)
        for name, hint in _hints(type(self)).items():
            value = self.value(name)
            allowed = choices(hint)
            if allowed and value not in allowed and not (value is None and is_optional(hint)):
                raise SettingsError(f"{name}={value!r}: choose one of {', '.join(allowed)}")
        if unknown := sorted(self.options.keys() - _task_fields().keys()):
            raise SettingsError(f"options: no task has {', '.join(unknown)}")
        given = {name: value for name, value in self.options.items()
                 if value != _task_fields()[name].default}  # fmt: skip
        object.__setattr__(self, "options", given)
        declaration_of(self.task)
        for declaration in declarations():
            self._options_of(declaration.options)  # which checks them

    @property
    def task_options(self) -> TaskOptions:
        """The options of the run's task."""
        return self._options_of(declaration_of(self.task).options)

    def value(self, name: str) -> object:
        """A setting's value, or a task's option's, by name."""
        if name in _task_fields():
            return self.options.get(name, _task_fields()[name].default)
        return getattr(self, name)

    def flat(self) -> dict[str, object]:
        """Every setting, and every option of every task, by name."""
        return {name: self.value(name) for name in _hints(type(self))}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Settings of values whose names are known only now."""
        make: Callable[..., Self] = cls
        return make(**values)

    def changed(self, **values: object) -> Self:
        """A copy with other values, checked again."""
        return self.of({**vars(self), **_by_our_names(values, "settings")})

    def _options_of(self, kind: type[TaskOptions]) -> TaskOptions:
        names = {setting.name for setting in fields(kind)}
        given = {name: value for name, value in self.options.items() if name in names}
        return kind(max_length=self.max_length, **given)


@dataclass(frozen=True)
class Resolved:
    """Settings and, for each, where its value came from."""

    settings: TrainingSettings
    origins: Mapping[str, str]

    def defaults(self, **values: object) -> "Resolved":
        """The same with other defaults: values for those of the settings that nobody chose."""
        unchosen = {name: v for name, v in values.items() if self.origins[name] == "default"}
        origins = {**self.origins, **dict.fromkeys(unchosen, "recipe")}
        return Resolved(self.settings.changed(**unchosen), origins)

    def filled(self, origin: str, **values: object) -> "Resolved":
        """The same with values, which come from ``origin``, for settings that were left open."""
        left = {name: v for name, v in values.items() if self.settings.value(name) is None}
        return Resolved(
            self.settings.changed(**left), {**self.origins, **dict.fromkeys(left, origin)}
        )

    def table(self) -> str:
        """One line a setting: name, value, origin; of the options those of the run's task."""
        options = {setting.name for setting in fields(self.settings.task_options)}
        names = [n for n in _hints(type(self.settings)) if n in options or n not in _task_fields()]
        rows = [(name, shown(self.settings.value(name))) for name in names]
        wide = max(len(name) for name, _ in rows)
        broad = max(len(value) for _, value in rows)
        return "\n".join(f"  {n:<{wide}}  {v:<{broad}}  {self.origins[n]}" for n, v in rows)


def parse_settings(
    arguments: Sequence[str] | None = None,
    recipe: Mapping[str, object] | None = None,
    description: str | None = None,
    kind: type[TrainingSettings] = TrainingSettings,
) -> Resolved:
    """Settings from the dataclass's defaults, a recipe's, ``--config FILE.yaml``, and flags.

    Later ones win. ``arguments`` defaults to the process's. Raises `SettingsError` for a YAML key
    or value that is no setting; a wrong flag ends the process with a message, as argparse does.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    declare_settings(parser, recipe, kind)
    return resolve_settings(vars(parser.parse_args(arguments)), recipe, kind)


def declare_settings(
    parser: argparse.ArgumentParser,
    recipe: Mapping[str, object] | None = None,
    kind: type[TrainingSettings] = TrainingSettings,
) -> None:
    """Add ``--config`` and the flag of every setting; their help has a recipe's defaults."""
    recipe = _by_our_names(recipe or {}, "recipe")
    hints = _hints(kind)
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, setting in _fields(kind).items():
        title = setting.metadata.get("group") or f"task {_tasks_with(name)}"
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        names = [name, *(theirs for theirs, ours in SYNONYMS.items() if ours == name)]
        default = recipe.get(name, _default(setting))
        add_flag(group, names, hints[name], setting.metadata["help"], default)


def resolve_settings(
    given: Mapping[str, object],
    recipe: Mapping[str, object] | None = None,
    kind: type[TrainingSettings] = TrainingSettings,
) -> Resolved:
    """Settings of what the flags of `declare_settings` were given; see `parse_settings`."""
    recipe = _by_our_names(recipe or {}, "recipe")
    hints = _hints(kind)
    flags = dict(given)
    config = flags.pop("config", None)
    values = dict(recipe)
    origins = {name: "recipe" if name in recipe else "default" for name in hints}
    written = _by_our_names(read_yaml(str(config)), str(config)) if config else {}
    for origin, chosen in ((str(config), written), ("command line", flags)):
        for name, value in chosen.items():
            if name not in origins:
                raise SettingsError(f"{origin}: {name!r} is no setting (see --help)")
            is_whole = is_pattern if name == "targets" else lambda text: False
            values[name] = converted(name, value, hints[name], origin, is_whole)
            origins[name] = origin
    return Resolved(kind.of(values), origins)


def is_pattern(target: str) -> bool:
    """Whether a module to adapt is a regular expression rather than the end of a name."""
    return bool(_PATTERN_SIGNS & set(target))


def _check_targets(targets: Sequence[str]) -> None:
    for target in filter(is_pattern, targets):
        if len(targets) > 1:
            raise SettingsError(
                f"targets={' '.join(targets)!r}: give one regular expression ({target!r} is one), "
                "or only names; several expressions are one with | between them"
            )
        try:
            re.compile(target)
        except re.error as error:
            raise SettingsError(f"targets={target!r}: no regular expression ({error})") from None


def _by_our_names(values: Mapping[str, object], where: str) -> dict[str, object]:
    """Values by the names that settings have here; `SettingsError` for one that is given twice."""
    named: dict[str, object] = {}
    for name, value in values.items():
        ours = SYNONYMS.get(name, name)
        if ours in named:
            both = [theirs for theirs in values if SYNONYMS.get(theirs, theirs) == ours]
            raise SettingsError(f"{where}: {' and '.join(both)} are one setting: give one of them")
        named[ours] = value
    return named


@functools.cache
def _task_fields() -> dict[str, "Field[object]"]:
    """The options that only some tasks have, by name; one of two tasks is the same in both."""
    options: dict[str, Field[object]] = {}
    for declaration in declarations():
        for setting in fields(declaration.options):
            if setting.name != "max_length":
                options.setdefault(setting.name, setting)
    return options


def _tasks_with(name: str) -> str:
    """The names of the tasks that have an option."""
    have = [d.name for d in declarations() if name in {f.name for f in fields(d.options)}]
    return ", ".join(have)


def _fields(kind: type[TrainingSettings]) -> dict[str, "Field[object]"]:
    """A class's settings, then the options of tasks, by name."""
    return {f.name: f for f in fields(kind) if f.name != "options"} | _task_fields()


def _hints(kind: type[TrainingSettings]) -> dict[str, object]:
    """The type of each setting and of each option, in the order of `_fields`."""
    hints = get_type_hints(kind)
    for declaration in declarations():
        hints |= get_type_hints(declaration.options)
    return {name: hints[name] for name in _fields(kind)}


def _default(setting: "Field[object]") -> object:
    make = setting.default_factory
    return setting.default if make is MISSING else make()
