"""What a few loads come to side by side where nothing but their caps holds them: found once for all hosts alike.

The same few meet again and again, as a machine's phases end and begin and as streams come and go, and their traffic is
then the same at every latency. So a host follows which mix of loads it has, one step for each that comes or goes, and
finds there what it would compute. Where many meet, what they cost depends on their neighbours, or their traffic holds
them back, nothing is kept: such a host would pay for each step, and compute all the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.contention import PhaseLoad

NO_CAP = float("inf")
HIGHEST_UTILISATION = 1.0 - 1e-9
ROUNDING = 1e-9
_MOST_LOADS = 4
_MOST_KNOWN = 1 << 10
_NEVER = -1.0
Loads = tuple[tuple["PhaseLoad", int], ...]


def capped_to(cap: float, core_ns: float, miss: float) -> float:
    """The DRAM latency up to which nothing but its cap holds a load; a little less, lest rounding decide."""
    spare_ns = (1.0 - ROUNDING) / cap - core_ns
    if spare_ns <= 0.0:
        return _NEVER
    return spare_ns / miss if miss > 0.0 else NO_CAP


class LoadMix(dict[tuple["PhaseLoad", int], "LoadMix | None"]):
    """So many of each load, in the order in which they came.

    As a mapping: the mix that it becomes with so many more of a load, or fewer where that is below 0; None where
    nothing is kept of that.
    """

    __slots__ = ("_family", "_loads", "capped_to_ns", "latency_ns", "utilisation")

    def __init__(self, family: MixFamily, loads: Loads) -> None:
        self._family = family
        self._loads = loads
        demand, lowest = 0.0, NO_CAP
        for load, count in loads:
            cap = load.cap_per_ns or NO_CAP
            lowest = min(lowest, capped_to(cap, load.core_ns, load.miss))
            demand += count * cap * load.traffic_bytes
        self.utilisation = u = demand / family.bytes_per_ns
        """Of the memory's bandwidth, at their caps."""
        self.latency_ns = family.latency_ns
        """The DRAM latency at that."""
        if u < HIGHEST_UTILISATION:
            self.latency_ns *= 1.0 + family.factor * u / (1.0 - u)
        self.capped_to_ns = lowest if u < HIGHEST_UTILISATION and self.latency_ns < lowest else _NEVER
        """The latency up to which caps alone hold all of them, below 0 where they themselves make it higher."""

    def __missing__(self, change: tuple[PhaseLoad, int]) -> LoadMix | None:
        load, more = change
        family = self._family
        if load.misses is not None or load.owner is not None:
            return None
        counts = dict(self._loads)
        counts[load] = counts.get(load, 0) + more
        if not counts[load]:
            del counts[load]
        if len(counts) > _MOST_LOADS or sum(counts.values()) > family.roomy:
            return None
        found = family.find(tuple(counts.items()))
        kept = self[change] = found if found.capped_to_ns >= 0.0 else None
        return kept


class MixFamily:
    """The mixes of hosts that are alike.

    ``roomy`` is how many run there each with a core of its own, the rest the bandwidth of their memory, its latency
    without load, and how that grows.
    """

    def __init__(self, roomy: int, bytes_per_ns: float, latency_ns: float, factor: float) -> None:
        self.roomy = roomy
        self.bytes_per_ns = bytes_per_ns
        self.latency_ns = latency_ns
        self.factor = factor
        self._known: dict[Loads, LoadMix] = {}
        self.none = self.find(())
        """Where nobody runs."""

    def find(self, loads: Loads) -> LoadMix:
        """The mix of such loads."""
        known = self._known
        found = known.get(loads)
        if found is None:
            if len(known) > _MOST_KNOWN:
                for one in known.values():
                    one.clear()  # Hosts that are there go on from it.
                known.clear()
                known[()] = self.none
            found = known[loads] = LoadMix(self, loads)
        return found


@lru_cache(maxsize=64)
def mix_family(roomy: int, bytes_per_ns: float, latency_ns: float, factor: float) -> MixFamily:
    """That of such hosts."""
    return MixFamily(roomy, bytes_per_ns, latency_ns, factor)
