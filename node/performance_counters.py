"""Performance counters of each hardware thread: how often an event happened there, as far as programs here cause it.

Counters run in guests too and are the host's to read. With PMC_VIRTUALIZATION in the guest's SEV_FEATURES they
are swapped at VMRUN and at the exit, so the host's stand still meanwhile. Event numbers are those of AMD's processor
programming references, recollected.
"""

from __future__ import annotations

from enum import IntEnum


class CounterEvent(IntEnum):
    """What is counted."""

    RETIRED_BRANCHES = 0xC2
    RETIRED_TAKEN_BRANCHES = 0xC4


class PerformanceCounters:
    """The host's counters: one for each event and thread, always on."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], int] = {}

    def count(self, thread: int, event: CounterEvent) -> None:
        """An event happened."""
        self._counts[thread, event] = self._counts.get((thread, event), 0) + 1

    def read(self, thread: int, event: int) -> int:
        """How often so far."""
        return self._counts.get((thread, event), 0)
