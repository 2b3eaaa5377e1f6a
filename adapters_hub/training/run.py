"""From settings to a trained, saved adapter: what the recipes share.

Knows how settings, data, backbone, task, training and library fit together, and prints nothing
but through the accelerator's main process. A recipe decides what is trained and what is shown.
"""

import hashlib
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from adapters_hub.data.batches import draw_batches, members_of
from adapters_hub.data.rows import Row
from adapters_hub.errors import (
    AdaptersHubError,
    DataError,
    LibraryError,
    SettingsError,
)
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.folder import check_name
from adapters_hub.library.hub_fields import hub_id
from adapters_hub.library.library import Library
from adapters_hub.library.paths import STARTER
from adapters_hub.model import load_backbone
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks import task_class
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.accelerator import make_accelerator, set_threads
from adapters_hub.training.augmentation import augmenter_of, described
from adapters_hub.training.corpus import PackedCorpus, count_texts, packed_corpus, packs
from adapters_hub.training.loop import Progress, train_adapters
from adapters_hub.training.over import adapters_below, proxies_below
from adapters_hub.training.pair_weights import measure_pair
from adapters_hub.training.regularisers.penalties import check_regularisers
from adapters_hub.training.rows import (
    AUTO,
    OTHERS,
    STOPPING,
    RunRows,
    encoded,
    fixed_share,
    languages_of,
    with_owners,
)
from adapters_hub.training.settings import Resolved, TrainingSettings, is_pattern
from adapters_hub.training.sharding import shard_model, wants_shards
from adapters_hub.training.starts import check_start

log = logging.getLogger(__name__)


class Experiment:
    """Everything one run needs, made from its settings; raises before any long work starts.

    ``other_languages`` keeps test rows in languages that were not asked for, to measure on.
    ``trained`` are the languages of those asked for that must have train rows: all of them, unless
    it is given; the others must have rows in some split.
    ``model`` and ``rows`` take the place of those that the settings name; ``command`` is what made
    the run, for the adapter's card (that of the process, unless it is given); ``quiet`` prints
    nothing but progress.
    """

    def __init__(
        self,
        resolved: Resolved,
        *,
        other_languages: bool = False,
        trained: Sequence[str] | None = None,
        model: Runtime | None = None,
        rows: Sequence[Row] | Mapping[str, Sequence[Row]] | None = None,
        command: str | None = None,
        quiet: bool = False,
    ) -> None:
        self.command = command or "accelerate launch " + shlex.join(sys.argv)
        if model is None:
            set_threads(resolved.settings.threads)
            _check_revision(resolved.settings)
        else:
            on_cpu = resolved.settings.cpu or model.backbone.device.type == "cpu"
            backbone = model.backbone
            resolved = replace(
                resolved,
                settings=resolved.settings.changed(
                    cpu=on_cpu,
                    bits=backbone.bits,
                    backbone=backbone.name,
                    revision=backbone.revision,
                ),
            )
        self.accelerator = accelerator = make_accelerator(resolved.settings)
        resolved = resolved.filled("accelerate", mixed_precision=accelerator.mixed_precision)
        self.settings = settings = resolved.settings
        self.print: Callable[..., None] = _silent if quiet else accelerator.print
        self.print(f"settings (value, where from):\n{resolved.table()}\n")
        kind = accelerator.device.type
        self.print(f"processes: {accelerator.num_processes} on {kind}\n")
        self.languages = languages_of(settings)
        self.library = Library(settings.library) if model is None else model.library
        self._saved: set[str] = set()
        self.task_class = task_class(settings.task)
        chosen = RunRows(settings, self.languages, trained, other_languages, self.print)
        if rows is not None and not isinstance(rows, Mapping):
            rows = {"train": rows}
        self.splits = chosen.read() if rows is None else chosen.of(rows)
        self._others = self.splits.pop(OTHERS, [])
        if self.task_class.couples and settings.batch_size < 2:
            raise SettingsError(
                f"batch_size={settings.batch_size}: a row of {settings.task} learns from the "
                "others of its batch; give 2 or more"
            )
        self.task = self.task_class.from_rows(settings.task_options, self.splits, settings.columns)
        self.model: Runtime = model or load_backbone(
            settings.backbone,
            library=self.library,
            bits=settings.bits,
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            revision=settings.revision,
            # where it is sharded it goes from there; safetensors knows no "cpu:0"
            device="cpu" if kind == "cpu" or wants_shards(accelerator) else accelerator.device,
            trust_remote_code=settings.trust_remote_code,
        )
        if held := shard_model(self.model, accelerator, settings):
            self.print(f"{held}\n")
        check_start(settings.init, self.model.backbone)
        check_regularisers(settings, self.task, self.model)
        train = self.splits["train"]
        self.augmenter = augmenter_of(settings, self.task, self.model.backbone, train)
        if settings.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if settings.tracker:
            flat = {
                k: v if isinstance(v, int | float) else str(v) for k, v in settings.flat().items()
            }
            self.accelerator.init_trackers("adapters_hub", config=flat)
        every = {tag for name in self.splits for tag in self._tags(name)}
        self._over = adapters_below(self.model, settings.over, every)
        without = every - {*self._over}
        self._proxies = proxies_below(self.model, settings.over, without, self.print)

    # ── what is trained ──────────────────────────────────────────────────────────────────────

    def new_adapter(
        self,
        name: str,
        *,
        language: str | None = None,
        domain: str | None = None,
        head_only: bool = False,
        seed: int | None = None,
    ) -> Adapter:
        """A fresh adapter for this run's task; ``head_only`` leaves the backbone as it is."""
        from peft import LoraConfig

        if domain:
            check_name(domain)  # as the library will
        settings, backbone = self.settings, self.model.backbone
        alpha = settings.lora_alpha if settings.lora_alpha is not None else 2 * settings.rank
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            target_modules=_target_modules(settings.targets),
            target_parameters=list(settings.parameters) or None,
            task_type=self.task.peft_task_type(backbone),
            fan_in_fan_out=any(isinstance(site, Conv1D) for site in backbone.sites.values()),
        )
        info = AdapterInfo(
            name=name,
            language=language,
            domain=domain,
            task=self.task.name,
            labels=self.task.labels,
            backbone=settings.backbone,
            fingerprint=backbone.fingerprint,
            revision=settings.revision,
            over=() if head_only else self._over_in_training(),
            license=settings.license,
            datasets=(settings.data,) if hub_id(settings.data) else (),
            trained_with=self.command,
        )
        seed = settings.seed if seed is None else seed
        return self.task.new_adapter(info, backbone, None if head_only else lora, seed)

    def domain_name(self) -> str:
        """What the domain adapter is called; `SettingsError` if that is not said."""
        domains = self._domains()
        if self.settings.name is None and len(domains) != 1:
            raise SettingsError("say which domain (--domain hotel), or --name one for several")
        return self.settings.name or domains[0]

    def domain(self, name: str) -> str:
        """The domain an adapter of a name is for: the one of its rows, else its name."""
        domains = self._domains()
        return domains[0] if len(domains) == 1 else name

    def _domains(self) -> tuple[str, ...]:
        """The domains asked for, else those that the rows name."""
        named = {row.domain for row in self.splits["train"] if row.domain}
        return self.settings.domain or tuple(sorted(named))

    def train(
        self,
        adapters: Sequence[Adapter],
        owner: Callable[[Row], int | None] = lambda row: 0,
        *,
        over: bool = True,
        **changes: object,
    ) -> tuple[list[Adapter], Progress]:
        """Train adapters on the train split; ``owner`` says which one a row is for, if any.

        ``over`` puts each row's frozen language adapter below, for ``over_share`` of the rows;
        ``changes`` are settings of this training alone. Raises `DataError` for an adapter without
        a row.
        """
        settings = self.settings.changed(**changes)
        train = self.examples["train"]
        examples: Sequence[Example]
        owners: Sequence[int] | np.ndarray
        known_by = None
        if isinstance(train, PackedCorpus):
            examples, (owners, members) = train, train.owned(owner)
            lengths, known_by = train.rows.lengths, train.known_by(owner)
        else:
            examples, owners = with_owners(train, owner)
            lengths = np.array([len(example.input_ids) for example in examples])
            members = members_of(
                [
                    (number, self.task.language(example.row))
                    for number, example in zip(owners, examples, strict=True)
                ],
                [example.row.domain for example in examples],
            )
        stopping = STOPPING if STOPPING in self.examples else "dev"
        dev, dev_owners = with_owners(self.examples[stopping], owner)
        for number, adapter in enumerate(adapters):
            if number not in owners:
                raise DataError(f"{settings.data}: no train rows for {adapter.name!r}")
        batches = draw_batches(
            members,
            lengths,
            batch_size=settings.batch_size,
            steps=settings.steps,
            alpha=settings.sampling_alpha,
            pooled=not self.task.couples,
            seed=settings.seed,
        )
        below = self.language_blend if over else lambda row: Blend()
        trained, progress = train_adapters(
            self.model,
            self.task,
            adapters,
            examples,
            owners,
            batches,
            settings,
            self.accelerator,
            over=lambda row: below(row) if fixed_share(row) < settings.over_share else Blend(),
            dev=dev,
            dev_owners=dev_owners,
            folder=Path(settings.run_folder) / _folder_name([a.name for a in adapters]),
            known_by=known_by,
            augmenter=self.augmenter,
        )
        for note in progress.notes:
            self.print(note)
        if progress.augmented:
            self.print(described(progress.augmented))
        for adapter in trained:
            if adapter.info.description:
                self.print(f"{adapter.name}: {adapter.info.description}")
        return trained, progress

    @cached_property
    def examples(self) -> dict[str, Sequence[Example]]:
        """Every split's rows, encoded and checked; the first use raises before a step is made."""
        examples: dict[str, Sequence[Example]] = {}
        show = self.accelerator.is_main_process
        for name, rows in self.splits.items():
            if name == "train" and packs(self.settings):
                examples[name] = self._packed(rows)
                continue
            examples[name] = encoded(self.task, rows, self.model.backbone, show)
            self.task.check(examples[name])
        if not examples["train"]:
            raise DataError(f"{self.settings.data}: no text long enough to train on")
        return examples

    def _packed(self, rows: Sequence[Row]) -> PackedCorpus:
        assert isinstance(self.task, LanguageModeling)  # of which `packs` makes sure
        backbone = self.model.backbone
        corpus = packed_corpus(self.settings, self.task, backbone, rows)
        apart = backbone.packing(corpus.limit) is not None
        self.print(
            f"packed: {corpus}; texts in one row "
            + ("see only themselves" if apart else f"see each other, as {backbone.name} has it")
            + "\n"
        )
        return corpus

    def language_blend(self, row: Row) -> Blend:
        """The frozen language adapter of a row, as a blend; bare where there is none."""
        info = self._over.get(row.language or "")
        proxy = self._proxies.get(row.language or "", Blend())
        return Blend(((info.name, 1.0),), exact=True) if info else proxy

    def languages_with_adapters(self) -> list[str]:
        """The data's languages for which a frozen language adapter is used."""
        return sorted({*self._over, *self._proxies})

    def with_pair_weights(self, adapter: Adapter) -> Adapter:
        """A trained domain adapter that knows its weights beside the library's language adapters.

        Measured are those of the languages that have dev rows, unless it was trained over language
        adapters, which it expects at weight 1.
        """
        if adapter.info.over or self.task.across:
            return adapter
        rows: dict[str, list[Row]] = {}
        for row in (*self.splits["dev"], *self._others):
            if row.language:
                rows.setdefault(row.language, []).append(row)
        pairs = {}
        for tag, info in adapters_below(self.model, self.settings.over, rows).items():
            if info.language == tag in rows and info.name != adapter.name:
                pair = measure_pair(self.model, info.name, adapter.name, self.task, rows[tag])
                self.print(f"{info.name} beside {adapter.name}: {pair}")
                pairs[info.name] = pair
        return replace(adapter, info=replace(adapter.info, pair_weights=pairs))

    def in_use(self, row: Row, blend: Blend) -> Blend:
        """A blend and the adapter of a row's language, at the weight that users get."""
        info = self._over.get(row.language or "")
        if info is None:
            return blend + self._proxies.get(row.language or "", Blend())
        return self.model.residents.with_language(blend, info.name)

    # ── what comes out ───────────────────────────────────────────────────────────────────────

    def check_can_train(self, name: str) -> None:
        """Raise now, rather than after the training, for a name the adapter cannot have.

        `LibraryError` for one that is no name or is taken, `SettingsError` for one of a frozen
        adapter below, over which the new one would be trained: nothing is trained over itself.
        """
        check_name(name)
        self.library.check_writable(name)
        for tag in self.languages_with_adapters():
            if name in self.language_blend(Row("", language=tag)).terms:
                raise SettingsError(
                    f"{name!r} would be trained over itself: it is the frozen adapter below rows "
                    f"in {tag}. Leave it out of --over (none, or a list of others), or choose "
                    "another --name"
                )
        if not self.settings.replace and any(info.name == name for info in self.library.list()):
            raise LibraryError(
                f"{self.library.root} already has {name!r}: choose another --name, or --replace it"
            )

    def require_languages(self) -> None:
        """Leave out rows whose language is empty or undetermined, where it must be known.

        Raises `DataError` for a row that has no such field at all: its column may have another
        name, or the file may be of one language.
        """
        for split, rows in self.splits.items():
            without = [row for row in rows if row.language is None]
            for row in without:
                field = row.columns.renamed.get("language", "language")
                if field not in row.columns.names and AUTO not in self.settings.language:
                    several = ", ".join(self.languages) or "those of the library"
                    raise DataError(
                        f"{row.where}: field {field!r} is missing, and it could be any of "
                        f"{several}; say it in every row, have it found (--language auto "
                        f"{' '.join(self.languages)}), or ask for one language (--language de)"
                    )
            if without:
                self.splits[split] = [row for row in rows if row.language is not None]
                self.print(
                    f"left out: {count_texts(without)} of {count_texts(rows)} {split} rows, whose "
                    f"language is empty or undetermined (the first: {without[0].where})"
                )
        if not self.splits["train"]:
            raise DataError(f"{self.settings.data}: no train row names its language")

    def save(
        self, adapter: Adapter, metrics: Mapping[str, float] | None = None
    ) -> AdapterInfo | None:
        """Put a trained adapter into the library (main process only), and return what is there.

        Saving it again, with metrics that are known by then, replaces what the first call wrote.
        """
        saved, name = None, adapter.name
        if self.accelerator.is_main_process:
            adapter = replace(adapter, info=replace(adapter.info, metrics=dict(metrics or {})))
            dtype = getattr(torch, self.settings.save_precision)
            kept = Path(self.settings.run_folder) / "trained" / name
            adapter.map(lambda tensor: tensor.to(dtype)).save(kept)
            again = self.settings.replace or name in self._saved
            try:
                saved = self.library.add(kept, name=name, replace_existing=again)
            except AdaptersHubError as error:
                raise LibraryError(
                    f"{error}\nThe trained adapter is not lost: adapters-hub add "
                    + shlex.join([str(kept), "--name", name, "--library", str(self.library.root)])
                ) from error
            self._saved.add(name)
            shutil.rmtree(kept)
            with suppress(OSError):
                kept.parent.rmdir()  # unless another run keeps one there
        self.accelerator.wait_for_everyone()
        return saved

    def close(self) -> None:
        """End trackers and processes."""
        self.accelerator.end_training()

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _over_in_training(self) -> tuple[str, ...]:
        """The frozen adapters that train rows see."""
        tags = self._tags("train")
        below = [self.language_blend(Row("", language=tag)) for tag in tags]
        return tuple(sorted({name for blend in below for name in blend.terms}))

    def _tags(self, split: str) -> set[str]:
        """The languages whose adapters would go below a split's rows, as they may be drawn."""
        texts = (text for row in self.splits[split] for text in self.task.rows(row))
        drawn = self.augmenter.languages if self.augmenter and split == "train" else frozenset()
        return {text.language for text in texts if text.language} | drawn


def _check_revision(settings: TrainingSettings) -> None:
    """`SettingsError` for a revision of what has none; the adapter's file would name it."""
    name = settings.backbone
    if settings.revision and (name == STARTER or Path(name).is_dir()):
        what = "ships with the project" if name == STARTER else "is a folder"
        raise SettingsError(
            f"revision={settings.revision!r}: only a hub id has revisions, and the backbone "
            f"{name!r} {what}; leave it out"
        )


def _silent(*values: object) -> None:
    """Print nothing."""


def _target_modules(targets: Sequence[str]) -> str | list[str]:
    """Targets as PEFT takes them: a regular expression and PEFT's words are texts, not lists."""
    one = len(targets) == 1 and (targets[0] == "all-linear" or is_pattern(targets[0]))
    return targets[0] if one else list(targets)


def _folder_name(names: Sequence[str]) -> str:
    """A name for what adapters are trained together, short enough for a folder."""
    whole = "+".join(names)
    if len(whole.encode()) <= 200:
        return whole
    return f"{names[0]}+{len(names) - 1}.{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
