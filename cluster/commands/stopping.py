"""Ctrl-C and a polite kill: the first asks the run to end with what it has, the second ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Self

_ASKED: Mapping[int, str] = {signal.SIGINT: "stopped with Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}


class Stopping:
    """Watches for SIGINT and SIGTERM while a ``with`` block lasts."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, signal.Handlers | int | None] = {}

    def requested(self) -> str | None:
        """Who asked for an end; None if nobody did."""
        return _ASKED.get(self._signal) if self._signal is not None else None

    @property
    def exit_code(self) -> int:
        """As a shell reports a program that was stopped so; 0 if nobody asked."""
        return 128 + self._signal if self._signal is not None else 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
