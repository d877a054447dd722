"""What migrations take of their hosts: threads that copy, and bandwidth of the memory that they copy.

A thread moves ``migration.connection_bytes_per_s`` if it has a core to itself; a stream has as many at either end as it
needs. A host knows the rate of its link and what a migration is held to, and not how far both are used: its streams
are taken to share the link evenly from the moment that they begin until they are over. Streams at the pace of a
security processor are left out, for at that they load nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from node.contention import PhaseLoad
from node.cores import Cores
from node.neighbour_ledger import Owner

STREAM = "migration"
"""The phase of a migration's threads, beside those of the machine's own demands."""


class StreamRates(NamedTuple):
    """Bytes a second: of a host's link, and of one migration at most. 0 for no load."""

    link: float = 0.0
    each: float = 0.0


NO_STREAMS = StreamRates()


class MigrationLoads:
    """The streams that begin or end at one host."""

    def __init__(self, cores: Cores, rates: StreamRates, costs: Mapping[str, float]) -> None:
        self._cores = cores
        self._rates = rates
        self._byte_ns = 1e9 / costs["migration.connection_bytes_per_s"]
        self._traffic = costs["migration.traffic_factor"]
        self._slots: dict[str, list[int]] = {}
        self._known: dict[int, tuple[int, PhaseLoad]] = {}
        """Threads of each stream and what each of them does, by the number of streams."""

    def begin(self, vm: str) -> None:
        """A VM's stream is under way from now on."""
        if self._rates.link and vm not in self._slots:
            self._slots[vm] = []
            self._share()

    def end(self, vm: str) -> None:
        """It is over; nothing happens where there is none."""
        slots = self._slots.pop(vm, None)
        if slots is not None:
            self._release(slots)
            if self._slots:
                self._share()

    def _share(self) -> None:
        """Let all streams go at even shares of the link."""
        count = len(self._slots)
        known = self._known.get(count)
        if known is None:
            rate = min(self._rates.link / count, self._rates.each or self._rates.link)
            threads = max(1, math.ceil(rate * 1e-9 * self._byte_ns))
            load = PhaseLoad(self._byte_ns, 0.0, self._traffic, rate * 1e-9 / threads)
            known = self._known[count] = threads, load
        (threads, load), cores = known, self._cores
        for vm, slots in self._slots.items():
            if slots:
                self._release(slots)
            if cores.contention.ledger is not None:
                load = load._replace(owner=Owner(vm, STREAM))
            for _ in range(threads):
                slots.append(cores.occupy(load))

    def _release(self, slots: list[int]) -> None:
        for slot in slots:
            self._cores.release(slot)
        slots.clear()
