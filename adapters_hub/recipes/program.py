"""How anything here runs as a program: its threads, its log, errors on one line, and Ctrl-C.

Imports no torch, so that help and wrong flags are shown at once.
"""

import logging
import os
import sys
from collections.abc import Callable

from adapters_hub import progress
from adapters_hub.errors import AdaptersHubError
from adapters_hub.extras import Once
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


class _Shown(Once):
    """Lets a library's record through once, ours as often as they come; if quiet errors alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        if progress.is_quiet() and record.levelno < logging.ERROR:
            return False
        return record.name.partition(".")[0] == "adapters_hub" or super().filter(record)
