"""Ctrl-C, a polite kill, a closed terminal: the first asks the run to end with what it has, the second ends it at once.

A command that knows no end with what it has is interrupted by the first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import Self

ASKED: Mapping[int, str] = {
    signal.SIGINT: "stopped with Ctrl-C",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped by SIGHUP",
}
"""What is said of an end by each signal."""


class Interrupted(KeyboardInterrupt):
    """As Ctrl-C, by another signal; ``number`` is that."""

    def __init__(self, number: int) -> None:
        super().__init__(ASKED.get(number, f"stopped by signal {number}"))
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt, as SIGINT does anyway. Outside the main thread, which gets all signals, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _let_go_of_terminal()
    raise Interrupted(number)


class Stopping:
    """Watches for these signals while a ``with`` block lasts, but not for a SIGHUP that is ignored (nohup)."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, signal.Handlers | int | None] = {}

    def requested(self) -> str | None:
        """Who asked for an end; None if nobody did."""
        return ASKED.get(self._signal) if self._signal is not None else None

    @property
    def exit_code(self) -> int:
        """As a shell reports a program that was stopped so; 0 if nobody asked."""
        return 128 + self._signal if self._signal is not None else 0

    def __enter__(self) -> Self:
        for number in ASKED:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go_of_terminal()
        # The kernel and the shell each report a closed terminal; that is no impatience.
        if self._signal is not None and number != signal.SIGHUP:
            raise Interrupted(number)
        if self._signal is None:
            self._signal = number


def _let_go_of_terminal() -> None:
    """Say nothing more where nobody listens: each word to a closed terminal would be an error."""
    poll = select.poll()
    for handle in (1, 2):
        poll.register(handle, 0)
    for handle, _ in poll.poll(0):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        os.close(nowhere)
