"""How many events an entity does, or acts the control plane, before the clock is read: few where they are dear."""

from __future__ import annotations

CALL_S = 0.25
"""Wall time after which a call ends."""
SLICE_S = 0.05
"""Wall time that a slice should not exceed; one that does makes the next shorter."""
SLICE_EVENTS = 32
"""Most events of a slice. A real host's dearest events take about 5 ms (measured, a launch's pages encrypted and
digested), so that even those that come after cheap ones end a call in time; asking an entity costs little beside 32."""


class Slices:
    """The next slice's ``events``, as those before it took: ``first`` to begin with, ``most`` at most.

    Either is ``SLICE_EVENTS`` where it is 0.
    """

    __slots__ = ("_most", "events")

    def __init__(self, first: int = 0, most: int = 0) -> None:
        self.events, self._most = first or SLICE_EVENTS, most or SLICE_EVENTS

    def learn(self, slice_s: float) -> None:
        """One has taken so long."""
        if slice_s > SLICE_S:
            self.events = max(1, int(self.events * SLICE_S / slice_s))
        else:
            self.events = min(self._most, 2 * self.events)
