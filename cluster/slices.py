"""How many events an entity does before the clock is read again: few where they are dear."""

from __future__ import annotations

CALL_S = 0.25
"""Wall time after which a call ends."""
SLICE_S = 0.05
"""Wall time that a slice should not exceed; one that does makes the next shorter."""
SLICE_EVENTS = 32
"""Most events of a slice. A real host's dearest events take about 5 ms (measured, a launch's pages encrypted and
digested), so that even those that come after cheap ones end a call in time; asking an entity costs little beside 32."""


class Slices:
    """The next slice's ``events``, as those before it took."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events = SLICE_EVENTS

    def learn(self, slice_s: float) -> None:
        """One has taken so long."""
        if slice_s > SLICE_S:
            self.events = max(1, int(self.events * SLICE_S / slice_s))
        else:
            self.events = min(SLICE_EVENTS, 2 * self.events)
