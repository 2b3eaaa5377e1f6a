"""Train rows drawn anew at each step: which methods, what they work with, and what they did.

A draw hangs on the run's seed, the step, and the row's place in the batch among the rows of its
adapter, so it is the same for any number of processes and pieces, for adapters trained together or
alone, and after a run was resumed. Knows methods by what they declare, and tasks by their
interface. Dev and test rows never come here.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.mixing import check_mixes
from adapters_hub.data.augmentation.method import Material, Method
from adapters_hub.data.augmentation.mixup import Mixup
from adapters_hub.data.augmentation.registry import methods, methods_of
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.tasks.base import Example, Task
from adapters_hub.text.resegmentation import Resegmented
from adapters_hub.text.words import split_words
from adapters_hub.training.corpus import packs
from adapters_hub.training.material import material_of
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class Augmenter:
    """The methods of one run, for its task and backbone; made by `augmenter_of`.

    ``languages`` are those that rows may be in after a draw, beside their own.
    """

    def __init__(
        self, used: Sequence[Method], material: Material, task: Task, backbone: Backbone
    ) -> None:
        """Raises `SettingsError` for a method that the task or the tokenizer does not go with,
        `BackboneError` for a model whose embeddings cannot be mixed.
        """
        self.methods, self.material = used, material
        self.task, self.backbone = task, backbone
        for method in used:
            _check_task(method, material, task)
        by_change = {method.change(material): method for method in used}
        cut, mixed = by_change.get("segmentation"), by_change.get("embeddings")
        self.resegmented = Resegmented(backbone, cut.amount) if cut else None
        self.mixup = mixed if isinstance(mixed, Mixup) else None
        if self.mixup:
            if backbone.kind == "encoder-decoder":
                raise SettingsError(
                    f"augment mixup: {backbone.name} is an encoder-decoder, whose two parts embed "
                    "a text each; take an encoder or a decoder, or leave it out"
                )
            check_mixes(backbone)
        rows = (row for rows in material.translations.values() for row in rows)
        self.languages = frozenset(row.language for row in rows if row.language)
        self.counts: Counter[str] = Counter()

    @property
    def digest(self) -> str:
        """Of what the methods work with: a checkpoint belongs to just that."""
        words = {str(language): dict(words) for language, words in self.material.lexicon.items()}
        rows = {
            key: [(row.language, row.text) for row in rows]
            for key, rows in self.material.translations.items()
        }
        facts = sorted(words.items()), sorted(rows.items())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def draw(
        self,
        step: int,
        batch: Sequence[int],
        examples: Sequence[Example],
        owners: Sequence[int] | np.ndarray,
        seed: int,
    ) -> "Draw":
        """The examples of a batch, which are those of these indices, as a step has them."""
        return Draw(self, f"{seed} {step}", batch, examples, [int(owners[i]) for i in batch])

    def drawn(self, example: Example, window: int, draws: str) -> "Drawn":
        """An example drawn anew, and how many words each method changed; ``draws``: the seed.

        Of a row that is several windows it is the window of the same number, or the last.
        What no longer fits the task, as a longer target may not, stays as it is.
        """
        row, changed = example.row, {}
        for method in self.methods:
            row, words = method.row(row, Random(f"{draws} {method.name}"), self.material)
            if words:
                changed[method.name] = words
        backbone = self.backbone
        if self.resegmented:
            self.resegmented.begin(Random(f"{draws} subword"))
            backbone = self.resegmented.backbone
        elif not changed:
            return example, changed
        try:
            windows = self.task.encode_again([row], backbone)
        except (DataError, SettingsError) as error:
            log.debug("%s stays as it is: %s", row.where, error)
            return example, {_LEFT: 1}
        if self.resegmented and self.resegmented.changed:
            changed["subword"] = self.resegmented.changed
        if not windows or not changed:
            return example, {}
        return windows[min(window, len(windows) - 1)], changed

    def summary(self, accelerator: "Accelerator") -> dict[str, int]:
        """What was done since the last summary, or a run was resumed, over all processes.

        ``rows`` are those drawn; of each method the rows and, unless it is a mixture of rows, the
        words that it changed; ``left`` rows would have fitted the task no more.
        """
        names = ["rows"]
        for method in self.methods:
            names += [f"{method.name} rows", f"{method.name} words"]
        names += [f"{_LEFT} rows"]
        counts = torch.tensor([self.counts[name] for name in names], device=accelerator.device)
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts, "sum")
        self.counts.clear()
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


_LEFT = "left"
Drawn = tuple[Example, Mapping[str, int]]


class Draw:
    """The rows of one batch as one step has them, each made when it is first asked for."""

    def __init__(
        self,
        augmenter: Augmenter,
        seed: str,
        batch: Sequence[int],
        examples: Sequence[Example],
        owners: Sequence[int],
    ) -> None:
        self._augmenter, self._seed = augmenter, seed
        self._batch, self._examples = batch, examples
        self._rows_of: dict[int, list[int]] = defaultdict(list)  # places of each adapter's rows
        self._among: list[tuple[int, int]] = []  # of each place: its adapter, and which row of it
        for place, owner in enumerate(owners):
            self._among.append((owner, len(self._rows_of[owner])))
            self._rows_of[owner].append(place)
        self._known: dict[int, Drawn] = {}

    def __getitem__(self, place: int) -> Example:
        return self._drawn(place)[0]

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self._batch)))

    def taken(self, places: Sequence[int]) -> list[Example]:
        """The examples at some places, which are counted for the summary."""
        counts = self._augmenter.counts
        counts["rows"] += len(places)
        for place in places:
            for name, words in self._drawn(place)[1].items():
                counts[f"{name} rows"] += 1
                counts[f"{name} words"] += words
        return [self[place] for place in places]

    def mixed(self, inputs: dict[str, Tensor], places: Sequence[int]) -> dict[str, Tensor]:
        """A batch of the examples at some places, each blended with its partner in the step."""
        augmenter = self._augmenter
        if augmenter.mixup is None:
            return inputs
        partners, shares = [], []
        for place in places:
            owner, among = self._among[place]
            rows = self._rows_of[owner]
            random = Random(f"{self._seed} {among} mixup")
            partner, share = augmenter.mixup.partner(among, len(rows), random)
            partners.append(self[rows[partner]])
            shares.append(share)
        augmenter.counts["mixup rows"] += len(places)
        others = augmenter.task.collate(partners, augmenter.backbone)
        return augmenter.task.mixed(inputs, others, torch.tensor(shares), augmenter.backbone)

    def _drawn(self, place: int) -> Drawn:
        if place not in self._known:
            number = self._batch[place]
            window = 0
            row = self._examples[number].row
            while window < number and self._examples[number - window - 1].row is row:
                window += 1
            draws = f"{self._seed} {self._among[place][1]}"
            self._known[place] = self._augmenter.drawn(self._examples[number], window, draws)
        return self._known[place]


def augmenter_of(
    settings: TrainingSettings, task: Task, backbone: Backbone, train: Sequence[Row]
) -> Augmenter | None:
    """What a run's settings ask for; None where they ask for nothing.

    Raises `SettingsError` or `DataError` for what cannot work: methods that do not go with the
    task, the backbone or packed texts, or that lack words or translations.
    """
    used = methods_of(settings.augment)
    if not any(method.reads_lexicon or method.reads_translations for method in used):
        for name in ("augment_data", "augment_language"):
            if getattr(settings, name):
                raise SettingsError(f"{name}: no method of --augment reads it; leave it out")
    if not used:
        return None
    if packs(settings):
        raise SettingsError(
            "augment: packed texts are cut into tokens once, and cannot be drawn anew; leave it "
            "out, or give --no-packing"
        )
    for method in used:  # before a lexicon is learnt
        _check_task(method, Material(mask=_mask(backbone)), task)
    material = material_of(settings, used, train, Material(split_words, _mask(backbone)))
    return Augmenter(used, material, task, backbone)


def described(counts: Mapping[str, int]) -> str:
    """What augmentation did, from `Augmenter.summary`, on one line."""
    parts = []
    for name in (*methods(), _LEFT):
        if rows := counts.get(f"{name} rows", 0):
            words = counts.get(f"{name} words", 0)
            said = f"{name} {rows:,} rows"
            said += f" ({words:,} words)" if words and name != _LEFT else ""
            parts.append(f"{rows:,} rows no longer fitted and stayed" if name == _LEFT else said)
    return f"augmented, of {counts.get('rows', 0):,} rows drawn: {', '.join(parts) or 'none'}"


def _mask(backbone: Backbone) -> str | None:
    """The token that hides a word; only encoders have learnt what it means."""
    mask = backbone.tokenizer.mask_token if backbone.kind == "encoder" else None
    return str(mask) if mask is not None else None


def _check_task(method: Method, material: Material, task: Task) -> None:
    """`SettingsError` for a method that would make a task's targets wrong."""
    change = method.change(material)
    if change in task.declaration.withstands:
        return
    possible = [
        name
        for name, kind in methods().items()
        if kind(0.5).change(material) in task.declaration.withstands
    ]
    raise SettingsError(
        f"augment {method.name}: it changes {change}, and the targets of {task.name} would no "
        f"longer be right; leave it out ({', '.join(possible) or 'no method'} can be used there)"
    )
