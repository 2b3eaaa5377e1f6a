"""The process that trains for the page: settings in, progress out, the adapter in a folder.

Knows a run of `training` and two pipes. The first line of its input is what to train; when the
input ends, because someone stopped it or the server is gone, it ends too. Its output is one JSON
object a line; whatever else the packages print goes to the error stream.
"""

import _thread
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from adapters_hub.errors import AdaptersHubError
from adapters_hub.openmp import wait_shortly

if TYPE_CHECKING:
    from adapters_hub.inference.records import BlendOf
    from adapters_hub.training.run import Experiment

Say = Callable[..., None]


def main() -> int:
    """Train one adapter; returns 0 where it was stored in the folder that was asked for."""
    wait_shortly()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**event: object) -> None:
        print(json.dumps(event), file=out, flush=True)

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, args=(sys.stdin,), daemon=True).start()
    try:
        _train(order, say)
    except AdaptersHubError as error:
        say(event="failed", message=str(error))
        return 1
    except KeyboardInterrupt:
        say(event="stopped")
        return 1
    return 0


def _watch(stream: TextIO) -> None:
    """Interrupt the training when the input ends."""
    while stream.readline():
        pass
    _thread.interrupt_main()


def _train(order: dict[str, Any], say: Say) -> None:
    from accelerate.tracking import GeneralTracker, on_main_process

    from adapters_hub.training.run import Experiment
    from adapters_hub.training.settings import Resolved, TrainingSettings

    class Reporter(GeneralTracker):
        """A tracker of accelerate's that says each step and each look at dev."""

        name = "page"
        requires_logging_directory = False

        @property
        def tracker(self) -> "Reporter":
            return self

        @on_main_process
        def store_init_configuration(self, values: dict[str, object]) -> None:
            """Nothing: the server has sent the settings."""

        @on_main_process
        def log(self, values: dict[str, float], step: int | None = None, **_: object) -> None:
            """Say the loss of a step, or the first score of a look at dev."""
            if "loss" in values:
                say(event="step", step=step, loss=values["loss"])
            elif values:
                say(event="dev", step=step, score=next(iter(values.values())))

    # JSON has no tuples, which settings of several values are
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in order["settings"].items()}
    settings = TrainingSettings.of(given)
    origins = {name: "page" if name in given else "default" for name in settings.flat()}
    experiment = Experiment(Resolved(settings, origins), command="adapters-hub play", quiet=True)
    if order["kind"] == "language":
        (tag,) = experiment.languages
        fresh = experiment.new_adapter(str(settings.name), language=tag)
    else:
        fresh = experiment.new_adapter(
            str(settings.name), domain=experiment.domain(str(settings.name))
        )
    rows = {split: len(rows) for split, rows in experiment.splits.items()}
    task = experiment.task
    say(
        event="rows",
        rows=rows,
        over=experiment.languages_with_adapters(),
        metric=task.metric_name(experiment.model.backbone),
        higher_is_better=task.higher_is_better,
    )
    experiment.accelerator.trackers.append(Reporter())
    (adapter,), _ = experiment.train([fresh])
    if order["kind"] == "domain":
        adapter = experiment.model.add(experiment.with_pair_weights(adapter))
    scores = _scores(experiment, adapter.name)
    metrics = {f"{task.metric_name(experiment.model.backbone)}, {k}": v for k, v in scores.items()}
    info = replace(adapter.info, metrics=metrics)
    replace(adapter, info=info).save(Path(order["folder"]))
    say(event="trained", scores=scores)
    experiment.close()


def _scores(experiment: "Experiment", name: str) -> dict[str, float]:
    """The metric on rows that were kept for the test, by what they are under; none without them."""
    from adapters_hub.evaluation.scores import scores_by_language

    test, task, model = experiment.examples["test"], experiment.task, experiment.model
    if not test:
        return {}
    alone, bare = model.resolve(name), model.resolve(None)
    columns: dict[str, BlendOf] = {} if task.needs_head() else {"bare": lambda row: bare}
    columns[name] = lambda row: alone
    if experiment.languages_with_adapters():
        columns[f"language + {name}"] = lambda row: experiment.in_use(row, alone)
    scores = scores_by_language(model, task, test, columns, experiment.accelerator)[task.metric]
    return {column: by_language["mean"] for column, by_language in scores.items()}


if __name__ == "__main__":
    sys.exit(main())
