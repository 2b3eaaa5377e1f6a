"""How torch's threads wait for each other, set before torch is loaded; imports no torch."""

import os
import sys

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> None:
    """Let OpenMP's threads sleep at a barrier instead of spinning; what is set already wins.

    A thread that spins keeps the core that the thread it waits for needs: beside other work two
    threads then take many times as long as one (``benchmarks/threads.py``). For programs alone,
    and for what they start: it changes the environment, which OpenMP reads when torch is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
