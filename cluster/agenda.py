"""What the control plane has to do at times of its own: one list, for all that do not ask anybody else for a time."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

from cluster.entity import NEVER

Action = Callable[[Any, int], None]
"""Takes what it is about, and the time."""


class Turn(IntEnum):
    """Whose turn it is of those who have something to do at the same time."""

    LATE = 0
    """Answers of hosts that come later than they should: they are heard before those that come in time."""
    TENANTS = 1
    """VMs arrive, and their time is over."""
    UPDATES = 2
    FAULTS = 3
    PLANS = 4
    """Moves are asked for, and called off."""
    NOBODY = 5


class Agenda:
    """Whoever has the same turn comes in the order in which it was entered."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int, Action, Any]] = [(NEVER, Turn.NOBODY, 0, _nothing, None)]
        """A heap of (time, turn, entry, what is done, what it is about); nobody's is there always, to be the first."""
        self._entered = 0

    def enter(self, time_ns: int, turn: Turn, action: Action, about: Any) -> None:
        """Have something done at a time."""
        self._entered += 1
        heappush(self.entries, (time_ns, turn, self._entered, action, about))

    def advance(self, now_ns: int, last: Turn = Turn.PLANS) -> None:
        """Do what is due, also what is entered on the way, up to the last turn."""
        entries = self.entries
        while entries[0][0] <= now_ns and entries[0][1] <= last:
            _, _, _, action, about = heappop(entries)
            action(about, now_ns)


def _nothing(_: Any, __: int) -> None:
    """Nobody has anything to do."""
