"""Which migrations may be under way at once: so many for each host, so many for the whole fleet.

First come, first served, but one that waits for a busy host does not hold up
those behind it that need others. Each waiting one stands in the line of what
it waits for, so that a place that becomes free is given away without a look at
the rest; in its line the oldest goes first, so none waits for ever.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

_FLEET = ""
"""The line of those for whom only the fleet's limit is in the way; no host has this name."""
_Waiting = tuple[int, int, str, str]
"""How many came before it, its number, source and destination."""


@dataclass(slots=True)
class Admission:
    """``per_host`` counts a host's departures and arrivals together; 0 means no limit."""

    per_host: int
    per_fleet: int
    _active: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _total: int = 0
    _lines: dict[str, list[_Waiting]] = field(default_factory=dict)
    """A heap of each line that somebody stands in."""
    _came: int = 0

    def ask(self, number: int, source: str, destination: str) -> bool:
        """Whether a migration may begin now; if not it stands in line, and ``release`` will name it."""
        self._came += 1
        return self._try((self._came, number, source, destination))

    def release(self, source: str, destination: str) -> list[int]:
        """One is over; those that may begin now, oldest first, already counted in."""
        active, lines = self._active, self._lines
        self._total -= 1
        active[source] -= 1
        active[destination] -= 1
        admitted: list[int] = []
        while lines:
            # Whoever is tried in vain stands in a line where nothing is free: none comes after a younger one.
            first, line_of = None, ""
            for key in (_FLEET, source, destination):
                if key in lines and self._free(key):
                    oldest = lines[key][0]
                    if first is None or oldest < first:
                        first, line_of = oldest, key
            if first is None:
                break
            line = lines[line_of]
            heappop(line)
            if not line:
                del lines[line_of]
            if self._try(first):
                admitted.append(first[1])
        return admitted

    def forget(self, number: int) -> None:
        """One that stands in line is not wanted any more."""
        for key, line in self._lines.items():
            for entry in line:
                if entry[1] == number:
                    line.remove(entry)
                    heapify(line)
                    if not line:
                        del self._lines[key]
                    return

    def _free(self, key: str) -> bool:
        if key == _FLEET:
            return not self.per_fleet or self._total < self.per_fleet
        return not self.per_host or self._active[key] < self.per_host

    def _try(self, entry: _Waiting) -> bool:
        _, _, source, destination = entry
        active, most = self._active, self.per_host
        if most and active[source] >= most:
            key = source
        elif most and active[destination] >= most:
            key = destination
        elif self.per_fleet and self._total >= self.per_fleet:
            key = _FLEET
        else:
            self._total += 1
            active[source] += 1
            active[destination] += 1
            return True
        heappush(self._lines.setdefault(key, []), entry)
        return False
