"""A host's virtual time: the only file of the floor that knows an event loop.

After every action the host settles: whatever the action changed in what runs is
shared out anew once, not once for each change.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

import simpy
from simpy.events import NORMAL


class _Alarm:
    """What is called at a time: no more of SimPy's ``Timeout`` than its loop looks at, and a third of the price."""

    __slots__ = ("callbacks",)
    _ok = True

    def __init__(self, action: Callable[[Any], None]) -> None:
        self.callbacks: list[Callable[[Any], None]] | None = [action]


class Clock:
    """Integer nanoseconds over a SimPy environment of the host's own."""

    def __init__(self) -> None:
        self.env = simpy.Environment(initial_time=0)
        self.settle: Callable[[], None] = lambda: None
        """Called after each action."""

    @property
    def now_ns(self) -> int:
        """The present time."""
        # SimPy's own property says the same at the price of one more call. Every delay is a whole number.
        return self.env._now  # type: ignore[return-value]  # noqa: SLF001

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Call ``action`` when ``delay_ns`` have passed, and settle."""

        def fire(_: object) -> None:
            action()
            self.settle()

        self.wake(delay_ns, fire)

    def wake(self, delay_ns: int, action: Callable[[Any], None]) -> None:
        """Call ``action``, which settles itself, when ``delay_ns`` have passed."""
        if delay_ns < 0:
            raise ValueError(f"delay_ns: expected at least 0, got {delay_ns}")
        env = self.env
        # As ``Environment.schedule`` does it for an event.
        heappush(env._queue, (env._now + delay_ns, NORMAL, next(env._eid), _Alarm(action)))  # type: ignore[misc]  # noqa: SLF001
