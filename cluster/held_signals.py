"""SIGINT, SIGTERM and SIGHUP, held while something must not break off in the middle.

Ray, interrupted while it starts or ends, leaves daemons behind or crashes; and
it puts handlers of its own for these signals in place of the program's, also
below Python. Both are seen to here: a signal that arrives in the block is given to
the program's own handler after it, and that handler is there again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from types import FrameType, TracebackType
from typing import Self

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HeldSignals:
    """A ``with`` block that no Ctrl-C interrupts; each is handed on after it.

    Outside the main thread, which gets all signals, it does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, signal.Handlers | int | None] = {}
        self._arrived: list[int] = []

    @property
    def arrived(self) -> bool:
        """Whether anything is held by now, so that whoever is in the block may leave it sooner."""
        return bool(self._arrived)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in HELD:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None is a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for arrived in self._arrived:
            signal.raise_signal(arrived)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """SIGTERM and SIGHUP arrive after the block, below Python too; threads that are started in it never hear them.

    Processes that are forked in it by Python code are on their own: each is a group, so that it does not end with the
    terminal, nor as this one's group is told to, but it hears SIGTERM, and ends when somebody ends it.
    """
    _part_from_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    _heard_by_children.append({signal.SIGTERM} - before)
    try:
        yield
    finally:
        _heard_by_children.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_heard_by_children: list[set[signal.Signals]] = []
"""One entry for each block that we are in."""


@cache
def _part_from_children() -> None:
    def in_child() -> None:
        for heard in _heard_by_children:
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)

    os.register_at_fork(after_in_child=in_child)
