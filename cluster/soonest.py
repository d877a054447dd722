"""Times by name, and whose is first: a heap in which what has changed since is passed over when it comes up."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from cluster.entity import NEVER

_SLACK = 64


class Soonest:
    """A time for each name; ``NEVER`` for those that have none."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __getitem__(self, name: str) -> int:
        return self._times.get(name, NEVER)

    def put(self, name: str, time_ns: int) -> None:
        """Give a name this time, or none."""
        times, heap = self._times, self._heap
        if time_ns == NEVER:
            times.pop(name, None)
            return
        if times.get(name) == time_ns:
            return
        times[name] = time_ns
        heappush(heap, (time_ns, name))
        if len(heap) > 2 * len(times) + _SLACK:
            self._heap = [(time, one) for one, time in times.items()]
            heapify(self._heap)

    def first(self) -> tuple[int, str]:
        """The earliest time and its name, of equal times the first name; (``NEVER``, nobody) where there is none."""
        heap, times = self._heap, self._times
        while heap:
            first = heap[0]
            if times.get(first[1]) == first[0]:
                return first
            heappop(heap)
        return NEVER, ""
