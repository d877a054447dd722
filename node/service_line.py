"""Who is ahead of whom at a server that serves one request at a time, first come, first served.

Kept only where somebody asks who costs whom. A server may be booked ahead: a request that is ready
at a later time holds it until then, and whoever comes behind waits for that too.
"""

from __future__ import annotations

from collections import deque


class ServiceLine:
    """The requests of one server that are not through, each with its end; one that follows another begins there."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, str]] = deque()

    def join(self, who: str, end_ns: float) -> None:
        """Take a place behind all others; ``end_ns`` is when the request is through."""
        if self._ends and self._ends[-1][1] == who:
            self._ends.pop()
        self._ends.append((end_ns, who))

    def ahead(self, now_ns: float, from_ns: float, to_ns: float) -> list[tuple[str, float]]:
        """Of a wait from one time to another, what each of those ahead makes; in the order of their turns.

        ``now_ns`` never falls from call to call: who is through by then is forgotten. The parts add up to the wait,
        of which the last takes what lies behind its end.
        """
        ends = self._ends
        while ends and ends[0][0] <= now_ns:
            ends.popleft()
        found: list[tuple[str, float]] = []
        at = from_ns
        for end_ns, who in ends:
            if at >= to_ns:
                break
            if end_ns > at:
                till = min(end_ns, to_ns)
                found.append((who, till - at))
                at = till
        if found and at < to_ns:
            found[-1] = (found[-1][0], found[-1][1] + to_ns - at)
        return found
