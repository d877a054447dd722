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

from node.clock import Clock
from node.contention import Contention, Occupied, PhaseLoad
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

    def __init__(self, clock: Clock, contention: Contention, rates: StreamRates, costs: Mapping[str, float]) -> None:
        self._clock = clock
        self._contention = contention
        self._link, self._each = rates
        self._byte_ns = 1e9 / costs["migration.connection_bytes_per_s"]
        self._traffic = costs["migration.traffic_factor"]
        self._streams: dict[str, Occupied] = {}
        """What each has of the host."""
        self._known: dict[int, tuple[PhaseLoad, int]] = {}
        """What each thread of a stream does, and how many it has, by the number of streams."""

    def begin(self, vm: str) -> None:
        """A VM's stream is under way from now on, to which the host's phases are brought up."""
        streams, contention = self._streams, self._contention
        contention.advance(self._clock.now_ns)
        if self._link and vm not in streams:
            self._clock.unsettled = True
            count = len(streams) + 1
            load, threads = self._known.get(count) or self._shares(count)
            if streams:
                self._share(load, threads)
            own = load if contention.ledger is None else load._replace(owner=Owner(vm, STREAM))
            streams[vm] = contention.occupy(own, threads)

    def end(self, vm: str) -> None:
        """It is over; nothing happens where there is none."""
        occupied = self._streams.pop(vm, None)
        if occupied is not None:
            self._clock.unsettled = True
            self._contention.release(occupied, self._clock.now_ns)
            if count := len(self._streams):
                self._share(*(self._known.get(count) or self._shares(count)))

    def _share(self, load: PhaseLoad, threads: int) -> None:
        """Let those that are under way go at such shares from now on."""
        contention, now_ns = self._contention, self._clock.now_ns
        for vm, occupied in self._streams.items():
            contention.release(occupied, now_ns)
            own = load if contention.ledger is None else load._replace(owner=Owner(vm, STREAM))
            self._streams[vm] = contention.occupy(own, threads)

    def _shares(self, count: int) -> tuple[PhaseLoad, int]:
        """Even shares of the link, for so many streams."""
        rate = min(self._link / count, self._each or self._link)
        threads = max(1, math.ceil(rate * 1e-9 * self._byte_ns))
        self._known[count] = known = PhaseLoad(self._byte_ns, 0.0, self._traffic, rate * 1e-9 / threads), threads
        return known
