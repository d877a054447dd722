"""Which migrations may be under way at once: so many for each host, so many for the whole fleet.

First come, first served, but one that waits for a busy host does not hold up
those behind it that need others. Each waiting one stands in the line of what
it waits for, so that a place that becomes free is given away without a look at
the rest; in its line the oldest goes first, so none waits for ever.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

_FLEET = ""
"""The line of those for whom only the fleet's limit is in the way; no host has this name."""


@dataclass(slots=True)
class Admission:
    """``per_host`` counts a host's departures and arrivals together; 0 means no limit."""

    per_host: int
    per_fleet: int
    _active: dict[str, int] = field(default_factory=dict)
    _total: int = 0
    _lines: dict[str, list[tuple[int, int, str, str]]] = field(default_factory=dict)
    """Of those that somebody stands in, though one that emptied since is there until somebody looks."""
    _came: int = 0

    def ask(self, number: int, source: str, destination: str) -> bool:
        """Whether a migration may begin now; if not it stands in line, and ``release`` will name it."""
        self._came += 1
        return self._try((self._came, number, source, destination))

    def release(self, source: str, destination: str) -> list[int]:
        """One is over; those that may begin now, oldest first, already counted in."""
        self._total -= 1
        for host in (source, destination):
            self._active[host] -= 1
        lines = self._lines
        if not lines:
            return []
        admitted: list[tuple[int, int]] = []
        keys = [key for key in (_FLEET, source, destination) if key in lines]
        while waiting := [(lines[key][0], key) for key in keys if lines[key] and self._free(key)]:
            first, key = min(waiting)
            heapq.heappop(lines[key])
            if self._try(first):
                admitted.append(first[:2])
        for key in keys:
            if not lines[key]:
                del lines[key]
        return [number for _, number in sorted(admitted)]

    def forget(self, number: int) -> None:
        """One that stands in line is not wanted any more."""
        for line in self._lines.values():
            for entry in line:
                if entry[1] == number:
                    line.remove(entry)
                    heapq.heapify(line)
                    return

    def _free(self, key: str) -> bool:
        if key == _FLEET:
            return not self.per_fleet or self._total < self.per_fleet
        return not self.per_host or self._active.get(key, 0) < self.per_host

    def _try(self, entry: tuple[int, int, str, str]) -> bool:
        _, _, source, destination = entry
        active, most = self._active, self.per_host
        at_source, at_destination = active.get(source, 0), active.get(destination, 0)
        if most and at_source >= most:
            key = source
        elif most and at_destination >= most:
            key = destination
        elif self.per_fleet and self._total >= self.per_fleet:
            key = _FLEET
        else:
            self._total += 1
            active[source], active[destination] = at_source + 1, at_destination + 1
            return True
        heapq.heappush(self._lines.setdefault(key, []), entry)
        return False
