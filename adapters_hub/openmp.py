"""How torch's threads wait for each other, set before torch is loaded; imports no torch."""

import os
import sys

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_shortly() -> None:
    """Let OpenMP's threads spin at a barrier for a moment, then sleep; what is set already wins.

    A thread that goes on spinning keeps the core that the thread it waits for needs: beside other
    work two threads then take many times as long as one. One that sleeps at once is woken too late
    on a quiet machine: writing a token takes as long as on one thread (``benchmarks/threads.py``,
    ``versions.py``). For programs alone, and for what they start: it changes the environment, which
    GNU's OpenMP reads when torch is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"
