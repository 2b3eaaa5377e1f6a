"""Ctrl-C and SIGTERM as a flag that a loop looks at. Knows signals alone."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress


class Flag:
    """Whether a signal has come."""

    is_set = False


@contextmanager
def interruptible() -> Iterator[Flag]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one is immediate."""
    flag = Flag()
    with ExitStack() as handlers:  # the old ones, put back by the first signal or at the end

        def note(number: int, frame: object) -> None:
            flag.is_set = True
            handlers.close()

        with suppress(ValueError):  # not the main thread, which alone receives signals
            for signum in (signal.SIGINT, signal.SIGTERM):
                handlers.callback(signal.signal, signum, signal.signal(signum, note))
        yield flag
