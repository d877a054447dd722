"""A host's virtual time: the only file of the floor that knows an event loop.

After every action the host settles: whatever the action changed in what runs is
shared out anew once, not once for each change.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any, Protocol

import simpy
from simpy.events import NORMAL


class Due(Protocol):
    """What SimPy's loop needs of an event; ``_ok`` says that it did not fail, and ``callbacks`` take the event."""

    callbacks: tuple[Callable[[Any], None], ...]
    _ok: bool


class _Due:
    """One that nobody waits for, and its action."""

    __slots__ = ("action", "callbacks")
    _ok = True

    def __init__(self, callbacks: tuple[Callable[[_Due], None], ...], action: Callable[[], None]) -> None:
        self.callbacks = callbacks
        self.action = action


class Clock(simpy.Environment):
    """Integer nanoseconds: a SimPy environment, and what a host asks of one."""

    __slots__ = ("_now",)
    now_ns: int
    """The present time."""

    def __init__(self) -> None:
        super().__init__(initial_time=0)
        self.settle: Callable[[], None] = lambda: None
        """Called after each action that left something unsettled."""
        self.unsettled = False
        """Whether it has anything to do."""
        self._fires = (self._fire,)

    @property
    def env(self) -> simpy.Environment:
        """The same as whoever steps through it knows it."""
        return self

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Call ``action`` when ``delay_ns`` have passed, and settle. Raises ValueError for a time in the past."""
        if delay_ns < 0:
            raise ValueError(f"delay_ns: expected none below 0, got {delay_ns}")
        # As ``plan`` does, a call less.
        due = _Due(self._fires, action)
        heappush(self._queue, (self.now_ns + delay_ns, NORMAL, next(self._eid), due))  # type: ignore[misc]

    def _fire(self, due: _Due) -> None:
        due.action()
        if self.unsettled:
            self.settle()

    def wake(self, delay_ns: int, action: Callable[[object], None]) -> None:
        """Call ``action``, which settles itself, when ``delay_ns`` have passed. Raises ValueError as ``after``."""
        self.plan(delay_ns, _Due((action,), _nothing))

    def plan(self, delay_ns: int, due: Due) -> None:
        """Have an event happen, which settles itself, when ``delay_ns`` have passed. Raises ValueError as ``after``."""
        if delay_ns < 0:
            raise ValueError(f"delay_ns: expected none below 0, got {delay_ns}")
        # What a Timeout does, without its general case: every batch of every vCPU comes by here.
        heappush(self._queue, (self.now_ns + delay_ns, NORMAL, next(self._eid), due))  # type: ignore[misc]


# SimPy keeps the time in ``_now``, and every host asks for it all the time: one slot by two names is no call.
Clock.now_ns = Clock._now  # type: ignore[assignment, misc]  # noqa: SLF001


def _nothing() -> None:
    pass
