"""Starts several processes of one command on this machine, as ``torchrun`` does.

``accelerate launch`` and ``torchrun`` add a traceback of their own after an error or Ctrl-C in
the program; here the program's message comes last. Knows no recipe.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from adapters_hub.recipes.program import DONE, INTERRUPTED

_ASKED_EVERY = 0.1  # seconds
_PATIENCE = 30.0  # seconds that the others are given when one has failed


def is_child() -> bool:
    """Whether this process is already one of several, whoever started them."""
    return "WORLD_SIZE" in os.environ


def run_in_processes(command: Sequence[str], count: int) -> int:
    """Run a command ``count`` times at once, joined as ranks of one run; returns its exit status.

    The first process speaks; what another wrote to stderr is shown if that one failed alone.
    Where one fails the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {
        "OMP_NUM_THREADS": str(threads), **os.environ, "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        streams: list[IO[bytes] | None] = [None, *said]
        running = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=streams[rank],
            )
            for rank in range(count)
        ]
        try:
            failed = _wait(running)
        except KeyboardInterrupt:  # which the terminal sent to them too: each says what it kept
            _end(running, ask=False)
            return INTERRUPTED
        finally:
            _end(running, ask=True)
        if failed:
            said[failed - 1].seek(0)
            sys.stderr.write(said[failed - 1].read().decode(errors="replace"))
    return DONE if failed is None else running[failed].returncode


def _wait(running: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """Wait until all end (None) or one fails: its rank, 0 if the first rank failed too."""
    while True:
        status = [process.poll() for process in running]
        if bad := [rank for rank, code in enumerate(status) if code]:
            time.sleep(1.0)  # wrong arguments make all fail: wait for the first rank
            return 0 if running[0].poll() else bad[0]
        if all(code == 0 for code in status):
            return None
        time.sleep(_ASKED_EVERY)


def _end(running: Sequence["subprocess.Popen[bytes]"], *, ask: bool) -> None:
    """Wait for all processes (``ask``: terminate them first); kill those that take too long."""
    for process in running:
        if ask and process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
