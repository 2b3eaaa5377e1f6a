"""How anything here runs as a program: its threads, its log, errors on one line, and Ctrl-C.

Imports no torch, so that help and wrong flags are shown at once.
"""

import logging
import os
import sys
from collections.abc import Callable

from adapters_hub import progress
from adapters_hub.errors import AdaptersHubError
from adapters_hub.openmp import wait_shortly

DONE, REFUSED, WRONG_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; argparse ends with that of wrong arguments by itself."""

_NOISY = ("httpx", "huggingface_hub", "filelock", "torch", "accelerate")


def run_program(work: Callable[[], int | None]) -> int:
    """Do the work of a program; returns its exit status.

    An error that the library raises on purpose, and Ctrl-C, are a sentence on stderr and no
    traceback.
    """
    wait_shortly()
    _logging()
    try:
        return work() or DONE
    except AdaptersHubError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; nothing half-written is left"
        print(f"\n{said}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `adapters-hub list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _logging() -> None:
    """Warnings a line each, those of libraries once."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an absent extra
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, _Shown) for one in handler.filters):
            handler.addFilter(_Shown())


class _Shown(logging.Filter):
    """Lets a record of a library through once, however often it says the same; errors if quiet."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; ours are as often as they come."""
        if progress.is_quiet() and record.levelno < logging.ERROR:
            return False
        if record.name.partition(".")[0] == "adapters_hub":
            return True
        said = (record.name, record.getMessage())
        new = said not in self._said
        self._said.add(said)
        return new
