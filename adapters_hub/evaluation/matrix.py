"""The matrix: what language and domain adapters bring in every cell, alone and composed.

For each seed and domain the task's adapter is trained once, in the source language, over that
language's frozen adapter; every other language swaps its adapter in. Beside it are measured
what it should beat and what it should not need. A cell is one JSON file, written when it is whole;
what was trained is kept beside the cells, so a run that was stopped goes on where it was.

Columns of a cell, all with one head each:

- ``bare``: the backbone, with a head trained on it alone; ``language``: with the cell's language
  adapter, and that head.
- ``domain``: the task's adapter alone. ``source kept``: over the source language's adapter.
- each method asked for, such as ``sum``: the cell's language adapter and the task's, composed.
  ``fitted`` is the sum with the language adapter at the weight that has the least loss on the
  cell's dev rows, as loading by language and domain uses it.
- ``oracle``: an adapter trained in the cell itself, over the cell's language adapter.
- controls: ``wrong language`` (another language's adapter instead), ``random`` (one of random
  factors whose delta has the norm of the language adapter's at every layer), ``apart`` and ``apart
  + language`` (a task adapter trained without the source's language adapter below it, if it has
  one).
- ``there``: how the sum with the cell's language does on the source language's rows, beside
  ``source there``, the sum with the adapter of the source.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from adapters_hub.backbone.backbone import site_shape
from adapters_hub.compose.methods import METHODS
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.evaluation.cell_file import (
    CONTROLS,
    FORMAT_VERSION,
    CellFile,
    Composed,
    interval,
)
from adapters_hub.evaluation.controls import random_like
from adapters_hub.evaluation.kept_results import keep_results
from adapters_hub.evaluation.matrix_settings import MatrixSettings
from adapters_hub.evaluation.report import read_cells
from adapters_hub.inference.export import composed
from adapters_hub.inference.records import collect_records
from adapters_hub.interpretability import compare, predictors_of
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.blend import Blend
from adapters_hub.library.languages import canonical
from adapters_hub.library.row_terms import PROXY
from adapters_hub.metrics.bootstrap import Resampled
from adapters_hub.progress import bar
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks.base import Example
from adapters_hub.training.pair_weights import best_weight
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import WITHOUT_PENALTIES, Resolved

if TYPE_CHECKING:
    from tqdm.std import tqdm

_CALIBRATION = 8  # dev texts that interference is measured on
_FREE = {"results", "resume", "run_folder", "tracker", "threads", "cpu", "replace", "accumulation",
         "name", "save_every", "library", "data", "license", "save_precision",
         "benchmark"}  # fmt: skip
"""Settings that may differ between a run and its continuation."""
FITTED = "fitted"
"""The method that is the sum at a weight fitted on dev rows."""
_ONLY_THERE = ("there", "source there")


@dataclass(frozen=True)
class Cell:
    """A language and a domain that have rows; data without domains have the one domain None."""

    language: str
    domain: str | None

    @property
    def file(self) -> str:
        """The name of its JSON file."""
        return f"{self.word}.{self.language}.json"

    @property
    def word(self) -> str:
        """How the names of its domain's files and adapters begin: ``all`` where rows name none.

        So a domain that is called ``all``, or that and underscores, has one underscore more.
        """
        if self.domain is None:
            return "all"
        return self.domain + ("_" if re.fullmatch("all_*", self.domain, re.IGNORECASE) else "")


class Matrix:
    """A run over all cells of an experiment's data; several processes share every cell's work."""

    def __init__(
        self, resolved: Resolved, *, command: str | None = None, quiet: bool = False
    ) -> None:
        settings = resolved.settings
        if not isinstance(settings, MatrixSettings):
            raise TypeError(f"a matrix has MatrixSettings, not {type(settings).__name__}")
        known = [FITTED, *METHODS]
        if unknown := {*settings.methods} - {*known}:
            raise SettingsError(f"methods: {sorted(unknown)} is none of {', '.join(known)}")
        if PROXY in settings.over:
            raise SettingsError(
                "--over proxy: a matrix compares single language adapters, each with controls of "
                "its own; leave it out"
            )
        self.source = canonical(settings.source)
        self.experiment = experiment = Experiment(
            resolved, trained=[self.source], command=command, quiet=quiet
        )
        assert isinstance(experiment.settings, MatrixSettings)
        self.settings = experiment.settings  # with the launcher's precision
        self.task, self.model = experiment.task, experiment.model
        experiment.require_languages()
        for split in ("dev", "test"):
            rows = experiment.splits[split]
            experiment.splits[split] = at_most(rows, settings.rows, self._cell)
        self.cells = self._cells()
        self.results = Path(settings.results)
        self.methods = tuple(dict.fromkeys(settings.methods))
        self.seeds = range(settings.seed, settings.seed + settings.seeds)
        self._there: dict[Blend, np.ndarray] = {}  # of the source's sum, on its rows
        self._claim()
        self.todo = [cell for cell in self.cells if not (self.results / cell.file).exists()]
        experiment.accelerator.wait_for_everyone()  # before a process writes what another looks for

    def run(self) -> None:
        """Train and measure every cell that has no file yet."""
        self.experiment.print(
            f"{len(self.cells)} cells, {len(self.todo)} to do; kept in {self.results}\n"
        )
        shown = self.experiment.accelerator.is_main_process and bool(self.todo)
        with bar(len(self.todo), "cells", "cells", show=shown) as done:
            try:
                self._run(done)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(
                    f"{stop or 'interrupted'}; the cells that are done are kept in {self.results}, "
                    "the same command goes on after them"
                ) from None
        if self.experiment.accelerator.is_main_process:
            settings, cells = self.settings, read_cells(self.results)
            keep_results(self.results, cells, settings.data, settings.benchmark)
        self.experiment.accelerator.wait_for_everyone()

    def _run(self, done: "tqdm[NoReturn]") -> None:
        """A domain after the other, each cell written when it is measured."""
        for domain in dict.fromkeys(cell.domain for cell in self.todo):
            trained = [self._trained(domain, seed) for seed in self.seeds]
            for cell in self.todo:
                if cell.domain == domain:
                    result = self._measure(cell, trained)
                    if self.experiment.accelerator.is_main_process:
                        _write(self.results / cell.file, result)
                    self.experiment.print(f"{cell.word} {cell.language}: {_line(result)}")
                    done.update()
            for names in trained:
                for name in names.values():
                    self.model.drop(name)

    # ── what is trained ──────────────────────────────────────────────────────────────────────

    def _trained(self, domain: str | None, seed: int) -> dict[str, str]:
        """What a domain's cells need of one seed: role → the name of a resident adapter."""
        source = Cell(self.source, domain)
        names: dict[str, str] = {}

        def learn(
            role: str, name: str, cell: Cell, *, over: bool = True, head_only: bool = False
        ) -> None:
            names[role] = f"{source.word}.{name}.{seed}"
            self._train(names[role], cell, seed, over=over, head_only=head_only)

        if self.task.needs_head():
            learn("head", "head", source, over=False, head_only=True)
        learn("domain", "task", source)
        if self._below(self.source):  # else the task's adapter is that already
            learn("apart", "apart", source, over=False)
        if self.settings.oracle:
            trainable = {*map(self._cell, self.experiment.splits["train"])}
            for cell in self.cells:
                if cell.domain == domain and cell in trainable:
                    learn(f"oracle {cell.language}", cell.language, cell)
        return names

    def _train(
        self, name: str, cell: Cell, seed: int, *, over: bool = True, head_only: bool = False
    ) -> None:
        """Make an adapter resident: one kept by an earlier run, or trained now on a cell's rows."""
        folder, experiment = self.results / "adapters" / name, self.experiment
        if folder.is_dir():
            self.model.add(Adapter.load(read_adapter(folder, name), self.model.backbone))
            return
        experiment.print(f"training {name}:")
        fresh = experiment.new_adapter(name, domain=cell.domain, head_only=head_only, seed=seed)
        mine = lambda row: 0 if self._cell(row) == cell else None
        changes = {"seed": seed, **(WITHOUT_PENALTIES if head_only else {})}
        (trained,), _ = experiment.train([fresh], mine, over=over, **changes)
        if experiment.accelerator.is_main_process:
            self._keepable(trained).save(folder)
        experiment.accelerator.wait_for_everyone()

    def _keepable(self, adapter: Adapter) -> Adapter:
        """An adapter as a PEFT file can hold it: one that is only a head with a delta of zero."""
        if adapter.factors:
            return adapter
        site = self.task.body_sites_of(self.model.backbone)[0]
        wide, tall = site_shape(self.model.backbone.sites[site])
        nothing = (torch.zeros(1, wide), torch.zeros(tall, 1))
        prefix = self.task.prefix(self.model.backbone)
        return replace(adapter, factors={site: nothing}, scaling={site: 1.0}, prefix=prefix)

    # ── what is measured ─────────────────────────────────────────────────────────────────────

    def _measure(self, cell: Cell, trained: Sequence[Mapping[str, str]]) -> CellFile:
        """A cell's file: every column on test, the single adapters on dev too."""
        columns = [
            self._columns(cell, names, seed)
            for names, seed in zip(trained, self.seeds, strict=True)
        ]
        singles = [name for name in ("language", "domain") if name in columns[0]]
        test, dev = (self._examples(split, cell) for split in ("test", "dev"))
        there = self._examples("test", Cell(self.source, cell.domain))
        tallies: dict[str, list[np.ndarray]] = {}
        elsewhere: dict[str, list[np.ndarray]] = {}
        on_dev: dict[str, list[float]] = {}
        for by_name in columns:
            for name, blend in by_name.items():
                kept, rows = (elsewhere, there) if name in _ONLY_THERE else (tallies, test)
                known = self._there.get(blend) if name == "source there" else None
                counted = self._tallies(rows, blend) if known is None else known
                if name == "source there":  # the same for every language of a domain
                    self._there[blend] = counted
                kept.setdefault(name, []).append(counted)
                if name in singles:
                    sums = self._tallies(dev, blend).sum(0)
                    on_dev.setdefault(name, []).append(float(self.task.score(sums)))
        for by_name in columns:
            for term in {term for blend in by_name.values() for term in blend.terms}:
                if term.startswith(_MADE):
                    self.model.drop(term)
        sign = 1.0 if self.task.higher_is_better else -1.0
        drawn = self._resampled(tallies)
        best = max(singles, key=lambda name: sign * float(np.mean(on_dev[name])))
        result: CellFile = {
            "version": FORMAT_VERSION,
            "language": cell.language,
            "domain": cell.domain,
            "source": self.source,
            "task": self.task.name,
            "metric": self.task.metric_name(self.model.backbone),
            "higher_is_better": self.task.higher_is_better,
            "backbone": self.settings.backbone,
            "seeds": list(self.seeds),
            "adapters": {
                "language": next(iter(self._below(cell.language).terms), None),
                "domain": [names["domain"] for names in trained],
            },
            "rows": {"test": len(_rows(test)), "dev": len(_rows(dev))},
            "columns": {
                name: {
                    "blend": str(columns[0][name]),
                    "test": [float(self.task.score(array.sum(0))) for array in arrays],
                    **interval(drawn.estimate(name)),
                }
                for name, arrays in tallies.items()
            },
            "best_single": best,
            "dev": {name: float(np.mean(scores)) for name, scores in on_dev.items()},
            "transfer": interval(drawn.estimate("domain", "bare", sign)),
            "composed": {},
        }
        if "language" in tallies:
            texts = [example.row.text for example in dev[:_CALIBRATION]]
            result["predictors"] = self._predictors(cell, trained, texts)
        for method in self.methods:
            if method in tallies:
                result["composed"][method] = self._judged(method, best, drawn, sign)
        if elsewhere and "sum" in result["composed"]:
            forgetting = self._resampled(elsewhere).estimate("source there", "there", sign)
            result["composed"]["sum"]["forgetting"] = interval(forgetting)
        return result

    def _predictors(
        self, cell: Cell, trained: Sequence[Mapping[str, str]], texts: Sequence[str]
    ) -> dict[str, float | None]:
        """What can be seen of language and task adapter before they are composed, mean of seeds."""
        language = self._below(cell.language)
        by_seed = [
            predictors_of(compare(self.model, language, names["domain"], texts))
            for names in trained
        ]
        means: dict[str, float | None] = {}
        for name in by_seed[0]:
            known = [value for seen in by_seed if (value := seen[name]) is not None]
            means[name] = float(np.mean(known)) if known else None
        return means

    def _columns(self, cell: Cell, names: Mapping[str, str], seed: int) -> dict[str, Blend]:
        """Column → the blend of adapters that it is, all resident."""
        language, source = self._below(cell.language), self._below(self.source)
        head = _exact(names["head"]) if "head" in names else Blend()
        task = _exact(names["domain"])
        columns = {"bare": head}
        if language:
            columns["language"] = language + head
        columns["domain"] = task
        if source and self.source != cell.language:
            columns["source kept"] = source + task
        if language:
            for method in self.methods:
                columns[method] = self._composed(method, cell, language, source, task, seed)
            others = [tag for tag in self._tags() if tag not in (cell.language, self.source)]
            if others:  # the one after the cell's language, so that it is another in each cell
                wrong = next((tag for tag in others if tag > cell.language), others[0])
                columns["wrong language"] = self._below(wrong) + task
            (term,) = language.terms
            random = random_like(self.model.resident(term), seed, f"{_MADE}random.{term}.{seed}")
            columns["random"] = _exact(self.model.add(random).name) + task
            if "apart" in names:
                columns["apart"] = _exact(names["apart"])
                columns["apart + language"] = language + columns["apart"]
            if cell.language != self.source and "sum" in self.methods:
                columns["there"] = language + task
                columns["source there"] = source + task
        if f"oracle {cell.language}" in names:
            columns["oracle"] = language + _exact(names[f"oracle {cell.language}"])
        return columns

    def _composed(
        self, method: str, cell: Cell, language: Blend, source: Blend, task: Blend, seed: int
    ) -> Blend:
        """Language and task by one method; the order of terms is the method's."""
        if method == "sum":
            return language + task
        if method == FITTED:
            dev = self._examples("dev", cell)
            return language * best_weight(self.model, language, task, self.task, dev) + task
        if method == "subtract" and language == source:
            return task  # an analogy from a language to itself changes nothing
        blend = task + language - source if method == "subtract" else task + language
        name = f"{_MADE}{method}.{cell.language}.{seed}"
        made = composed(self.model, blend, method, name, {})
        return _exact(self.model.add(made).name)

    def _judged(self, method: str, best: str, drawn: Resampled, sign: float) -> Composed:
        """What one method's composition is worth in a cell."""
        gain, over_best = (drawn.estimate(method, other, sign) for other in ("bare", best))
        judged: Composed = {
            "gain": interval(gain),
            "composition_gain": interval(over_best),
            "hurts": over_best.sure < 0,
            "helps": over_best.sure > 0,
        }
        for name, other in CONTROLS.items():
            if other in drawn.points:
                judged[name] = interval(drawn.estimate(method, other, sign))
        if "oracle" in drawn.points:
            possible = sign * (drawn.points["oracle"] - drawn.points["bare"])
            judged["recovery"] = gain.mean / possible if possible > 0 else None
        return judged

    def _tallies(self, examples: Sequence[Example], blend: Blend) -> np.ndarray:
        accelerator = self.experiment.accelerator
        records = collect_records(
            self.model, self.task, examples, lambda row: blend, accelerator=accelerator
        )
        return self.task.tallies(records)

    def _resampled(self, tallies: Mapping[str, Sequence[np.ndarray]]) -> Resampled:
        return Resampled(tallies, self.task.score, self.settings.resamples, self.settings.seed)

    # ── which cells ──────────────────────────────────────────────────────────────────────────

    def _tags(self) -> list[str]:
        return self.experiment.languages_with_adapters()

    def _below(self, tag: str) -> Blend:
        """A language's frozen adapter as a blend; empty where there is none."""
        return self.experiment.language_blend(Row("", language=tag))

    def _examples(self, split: str, cell: Cell) -> list[Example]:
        return [e for e in self.experiment.examples[split] if self._cell(e.row) == cell]

    def _cell(self, row: Row) -> Cell:
        return Cell(str(self.task.language(row)), row.domain)

    def _cells(self) -> list[Cell]:
        """The cells that have rows to choose on and to measure on, and a source to learn from."""
        splits = self.experiment.splits
        dev, test, train = ({*map(self._cell, splits[name])} for name in ("dev", "test", "train"))
        cells = sorted(dev & test, key=lambda cell: (cell.domain or "", cell.language))
        domains = {cell.domain for cell in cells}
        for domain in domains:
            if Cell(self.source, domain) not in train & dev & test:
                raise DataError(
                    f"{self.settings.data}: no train, dev and test rows in {self.source} "
                    f"for {domain or 'the source'}, where the task's adapter is trained (--source)"
                )
        if not cells:
            raise DataError(f"{self.settings.data}: no cell has both dev and test rows")
        return cells

    def _claim(self) -> None:
        """Make the results' folder this run's; `SettingsError` where it is another's."""
        facts = {k: v for k, v in self.settings.flat().items() if k not in _FREE}
        facts |= {
            "fingerprint": self.model.backbone.fingerprint,
            "rows": _digest(self.experiment.splits),
            "below": {t: self._hash_below(t) for t in self._tags()},
        }
        facts = json.loads(json.dumps(facts))
        path = self.results / "settings.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        self.experiment.accelerator.wait_for_everyone()
        if kept is None:
            if self.experiment.accelerator.is_main_process:
                self.results.mkdir(parents=True, exist_ok=True)
                _write(path, facts)
            return
        usual = json.loads(json.dumps(MatrixSettings().flat()))  # of what the file is too old for
        differ = sorted(key for key in facts if facts[key] != kept.get(key, usual.get(key)))
        if differ:
            raise SettingsError(
                f"{self.results} holds a matrix of other settings ({', '.join(differ)}): choose "
                "another --results, or delete it"
            )

    def _hash_below(self, tag: str) -> str | None:
        (name,) = self._below(tag).terms
        return self.model.resident(name).info.hash


_MADE = "matrix."  # how names of adapters begin that are made for one cell


def at_most(rows: Sequence[Row], count: int, cell_of: Callable[[Row], Cell]) -> list[Row]:
    """At most ``count`` rows of each cell (0: all), those of the same ids in every language."""
    if not count:
        return list(rows)
    ranked = sorted(
        range(len(rows)),
        key=lambda i: hashlib.sha256((rows[i].key or rows[i].text).encode()).digest(),
    )
    taken: dict[Cell, int] = {}
    chosen = []
    for number in ranked:
        cell = cell_of(rows[number])
        taken[cell] = taken.get(cell, 0) + 1
        if taken[cell] <= count:
            chosen.append(number)
    return [rows[number] for number in sorted(chosen)]


def _exact(name: str) -> Blend:
    return Blend(((name, 1.0),), exact=True)


def _rows(examples: Iterable[Example]) -> set[int]:
    return {id(example.row) for example in examples}


def _digest(splits: Mapping[str, Sequence[Row]]) -> str:
    facts = [
        (name, row.text, row.label, row.language, row.domain, row.key, repr(row.fields))
        for name, rows in sorted(splits.items())
        for row in rows
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _line(result: CellFile) -> str:
    return ", ".join(f"{name} {column['mean']:.3f}" for name, column in result["columns"].items())


def _write(path: Path, data: Mapping[str, object]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
