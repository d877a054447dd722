"""A bound on wall time for code that has none of its own and waits in Python."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def within(seconds: float, error: Exception) -> Iterator[None]:
    """Raise ``error`` in the block when it takes longer. Outside the main thread, which gets all signals, never."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_: int, __: FrameType | None) -> NoReturn:
        raise error

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
