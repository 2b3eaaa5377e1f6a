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
from pathlib import Path
from typing import Any, TextIO

from adapters_hub.errors import AdaptersHubError
from adapters_hub.openmp import wait_shortly

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

    settings = TrainingSettings.of(order["settings"])
    origins = {name: "page" if name in order["settings"] else "default" for name in settings.flat()}
    experiment = Experiment(Resolved(settings, origins), command="adapters-hub play", quiet=True)
    if order["kind"] == "language":
        (tag,) = experiment.languages
        fresh = experiment.new_adapter(str(settings.name), language=tag)
    else:
        fresh = experiment.new_adapter(
            str(settings.name), domain=experiment.domain(str(settings.name))
        )
    rows = {split: len(rows) for split, rows in experiment.splits.items()}
    say(event="rows", rows=rows, over=experiment.languages_with_adapters())
    experiment.accelerator.trackers.append(Reporter())
    (adapter,), _ = experiment.train([fresh])
    adapter.save(Path(order["folder"]))
    say(event="trained")
    experiment.close()


if __name__ == "__main__":
    sys.exit(main())
