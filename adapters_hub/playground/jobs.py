"""The one training that may run beside the page: started, watched, stopped.

Knows a request's fields, the worker's process and its events. The rows lie in a folder that is
gone when the job is; the adapter is put into the library here, where the page looks for it.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from adapters_hub.data.reading import read_data
from adapters_hub.errors import AdaptersHubError, LibraryError, SettingsError, TrainingError
from adapters_hub.library import languages
from adapters_hub.library.folder import check_name
from adapters_hub.playground.fields import Request, public
from adapters_hub.tasks.registry import row_fields, task_names
from adapters_hub.training.conversion import named_values
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from adapters_hub.model import AdaptedModel

log = logging.getLogger(__name__)

FORMATS = ("txt", "jsonl", "csv", "tsv")
_RUNNING = ("starting", "training", "storing")
_POINTS = 200  # of the curve that is shown
_PATIENCE = 10  # seconds that a worker has to end, when the server does
_LAST_WORDS = 2_000  # characters of the error stream


class Jobs:
    """At most one job at a time, and what the last one came to."""

    def __init__(self, model: "AdaptedModel") -> None:
        self._model = model
        self._lock = threading.Lock()
        self._job: Job | None = None

    def start(self, request: Request) -> dict[str, object]:
        """Begin a training; returns its state.

        Raises `TrainingError` where one is running, and what is wrong with the request or its rows
        before anything is started.
        """
        with self._lock:
            if self._job is not None and self._job.state in _RUNNING:
                raise TrainingError(
                    f"{self._job.name!r} is being trained; wait until it is done, or stop it"
                )
            self._job = Job(self._model, request)
        return self.state()

    def state(self) -> dict[str, object]:
        """The job that runs, or the last one; ``state`` is ``none`` where there was none."""
        return {"state": "none"} if self._job is None else self._job.shown()

    def stop(self) -> dict[str, object]:
        """Ask the job to end; it adds nothing to the library."""
        if self._job is not None:
            self._job.stop()
        return self.state()

    def close(self) -> None:
        """Stop the job, and wait for it; one that does not end in time is killed."""
        self.stop()
        if self._job is not None:
            self._job.end(_PATIENCE)


class Job:
    """One training in a process of its own; a thread follows what it says."""

    def __init__(self, model: "AdaptedModel", request: Request) -> None:
        self._model = model
        self.name = check_name(request.text("name", longest=96))
        self._replace = request.flag("replace")
        self._kind = request.choice("kind", ("domain", "language"), "domain")
        library = model.library
        library.check_writable()
        if self.name in library and not self._replace:
            raise LibraryError(
                f"there is already an adapter called {self.name!r}: choose another name, or "
                "replace it"
            )
        self._place = tempfile.TemporaryDirectory(prefix="adapters-hub-play-")
        self._folder = Path(self._place.name)
        try:
            given = self._settings(request)
            self.steps = TrainingSettings.of(given).steps
            self._errors = open(self._folder / "errors.txt", "w+", encoding="utf-8")  # noqa: SIM115
            order = {"settings": given, "kind": self._kind, "folder": str(self._folder / "adapter")}
            self._process = _worker(order, self._errors)
        except AdaptersHubError as error:
            self._place.cleanup()
            raise type(error)(self._public(str(error))) from None
        except BaseException:
            self._place.cleanup()
            raise
        self.state, self._message = "starting", ""
        self._step = 0
        self._rows: dict[str, int] = {}
        self._over: list[str] = []
        self._scores: dict[str, float] = {}
        self._metric, self._higher_is_better = "", False
        self._loss: list[tuple[int, float]] = []
        self._dev: list[tuple[int, float]] = []
        self._began = self._ended = 0.0
        self._stopping = False
        self.thread = threading.Thread(target=self._follow, name="adapters_hub.play", daemon=True)
        self.thread.start()

    def shown(self) -> dict[str, object]:
        """What the page shows of it."""
        seconds = (self._ended or time.monotonic()) - self._began if self._began else 0.0
        left = None
        if self.state == "training" and self._step > 1:
            left = seconds / self._step * (self.steps - self._step)
        best = max if self._higher_is_better else min
        thin = max(1, len(self._loss) // _POINTS)
        return {
            "state": "stopping" if self._stopping and self.state in _RUNNING else self.state,
            "name": self.name,
            "kind": self._kind,
            "step": self._step,
            "steps": self.steps,
            "rows": self._rows,
            "over": self._over,
            "metric": self._metric,
            "scores": self._scores,
            "best": best(self._dev, key=lambda look: look[1]) if self._dev else None,
            "loss": self._loss[::thin],
            "dev": self._dev,
            "seconds": seconds,
            "left": left,
            "message": self._message,
        }

    def stop(self) -> None:
        """Close the worker's input, at which it ends."""
        if self.state not in ("starting", "training"):
            return
        self._stopping = True
        if self._process.stdin is not None:
            self._process.stdin.close()

    def end(self, seconds: float) -> None:
        """Wait until it has ended, so long at most; then kill it."""
        self.thread.join(seconds)
        if self.thread.is_alive():
            self._process.kill()
            self.thread.join()

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _settings(self, request: Request) -> dict[str, object]:
        """The run's settings; the rows are written, read once, and so known to be sound."""
        task = request.choice("task", task_names(), "language-modeling")
        data = self._folder / f"rows.{request.choice('format', FORMATS, 'txt')}"
        data.write_text(request.text("rows", longest=None), encoding="utf-8")
        columns = named_values("columns", request.text("columns", "").split(), "page", "COLUMN")
        read_data(data, columns, None, row_fields())
        backbone = self._model.backbone
        language = request.text("language", "").strip()
        given: dict[str, object] = {
            "task": task,
            "data": str(data),
            "columns": columns,
            "name": self.name,
            "backbone": backbone.name,
            "revision": backbone.revision,
            "bits": backbone.bits,
            "library": str(self._model.library.root),
            "run_folder": str(self._folder / "runs"),
            "steps": request.count("steps", 60, 1, 100_000),
            "rank": request.count("rank", 8, 1, 512),
            "batch_size": request.count("batch_size", 16, 1, 1024),
            "learning_rate": request.number("learning_rate", 2e-3, 1e-7, 1.0),
            "seed": request.count("seed", 0, 0, 2**31 - 1),
        }
        if language:
            given["language"] = (languages.canonical(language),)
        if self._kind == "language":
            if not language:
                raise SettingsError("language: say which language the adapter is for")
            given["over"] = ("none",)
        elif domain := request.text("domain", "").strip():
            given["domain"] = (check_name(domain),)
        return given

    def _public(self, message: str) -> str:
        """A message without the folders that the rows and the library lie in."""
        return public(message.replace(f"{self._folder}{os.sep}", ""), self._model.library)

    def _follow(self) -> None:
        """Follow the worker to its end; nothing stays behind, whatever happens."""
        try:
            self._listen()
        except Exception as error:
            log.exception("following the training of %s", self.name)
            self._end("failed", f"{type(error).__name__}: {error}")
        finally:
            self._process.kill()  # it has ended, unless it could not be followed
            self._process.wait()
            self._errors.close()
            self._place.cleanup()

    def _listen(self) -> None:
        """Take in the worker's events to the last, then put what it made into the library."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        trained = False
        with self._process.stdout as lines:
            for line in lines:
                event = json.loads(line)
                trained = trained or event["event"] == "trained"
                self._take(event)
        code = self._process.wait()
        self._process.stdin.close()
        if self._stopping:
            self._end("stopped", f"stopped after step {self._step}; nothing was added")
        elif trained:
            self._store()
        elif self.state != "failed":
            self._errors.seek(0)
            last = self._errors.read()[-_LAST_WORDS:].strip().splitlines()[-1:]
            self._end("failed", f"the training ended with code {code}: {' '.join(last)}")

    def _take(self, event: Mapping[str, object]) -> None:
        match event:
            case {"event": "rows", "rows": dict(rows), "over": list(over), "metric": str(metric)}:
                self._rows, self._over, self._metric = rows, over, metric
                self._higher_is_better = bool(event["higher_is_better"])
            case {"event": "step", "step": int(step), "loss": float(loss)}:
                if self.state == "starting":
                    self._began, self.state = time.monotonic(), "training"
                self._step = step
                self._loss.append((step, loss))
            case {"event": "trained", "scores": dict(scores)}:
                self._scores = scores
            case {"event": "dev", "step": int(step), "score": float(score)}:
                self._dev.append((step, score))
            case {"event": "failed", "message": str(message)}:
                self._end("failed", self._public(message))

    def _store(self) -> None:
        self.state = "storing"
        try:
            self._model.library.add(
                self._folder / "adapter", name=self.name, replace_existing=self._replace
            )
        except AdaptersHubError as error:
            self._end("failed", self._public(str(error)))
        else:
            self._end("done", f"{self.name} is in the library")

    def _end(self, state: str, message: str) -> None:
        self._ended = time.monotonic()
        self._message, self.state = message, state


def _worker(order: Mapping[str, object], errors: IO[str]) -> "subprocess.Popen[str]":
    """Start the worker process and send it its settings."""
    here = str(Path(__file__).parents[2])  # the same package, wherever it was imported from
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "adapters_hub.playground.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return process
