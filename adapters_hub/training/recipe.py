"""How a recipe runs as a program: its threads, its log, its errors on one line, and Ctrl-C.

Imports no torch, so that help and wrong flags are shown at once.
"""

import logging
import sys
from collections.abc import Callable

from adapters_hub.errors import AdaptersHubError
from adapters_hub.openmp import wait_shortly


def main(recipe: Callable[[], None]) -> None:
    """Run a recipe; an error that the library raises on purpose is shown without a traceback."""
    wait_shortly()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "huggingface_hub", "filelock", "torch", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an absent extra
    try:
        recipe()
    except AdaptersHubError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"\n{stop or 'interrupted'}")
