"""How phases share last-level caches, by their miss curves.

A phase whose cache holds o bytes of its lines misses m(o) = m_inf + (m_0 - m_inf)
exp(-o / k) times an instruction: m_0 without any cache, m_inf with one that holds all
it uses again. Under LRU a user's share of a cache goes with how often it brings lines
in, its misses a second: whoever streams through the cache takes it from whoever
uses it again. Phases are spread over core complexes, so each meets as many others as
there are phases for one complex, and these are like the average of the host's.

Rates are those at idle latency, so shares follow from who runs alone. Source of the
form: sheet of models, section 7; no published figure for a whole fleet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.contention import PhaseLoad
    from node.core_sharing import CoreSharing

_STEPS = 24
"""Of the fixed point; each goes half the way, which damps what two users do to each other."""


@dataclass(frozen=True, slots=True)
class CacheUser:
    """A miss curve: (m_0 - m_inf) / m_inf, and its scale k in bytes."""

    growth: float
    scale_bytes: float

    def misses(self, held_bytes: float) -> float:
        """Misses as a multiple of m_inf, where the cache holds so much."""
        return 1.0 + self.growth * math.exp(-held_bytes / self.scale_bytes)


def crowding(
    phases: Sequence[tuple[PhaseLoad, int]], latency_ns: float, slowing: float, sharing: CoreSharing
) -> list[float]:
    """For each load, of which so many phases run, its misses as a multiple of those it has with a cache alone."""
    here = max(1.0, sum([count for _, count in phases]) / sharing.complexes)
    count_of_all = sum([count for _, count in phases])
    alone = [1.0 if one.misses is None else one.misses.misses(sharing.llc_bytes) for one, _ in phases]
    now = list(alone)
    for _ in range(_STEPS):
        brought = [_misses_per_ns(one, many, latency_ns, slowing) for (one, _), many in zip(phases, now, strict=True)]
        total = sum([rate * count for rate, (_, count) in zip(brought, phases, strict=True)])
        for index, (load, _) in enumerate(phases):
            if load.misses is None:
                continue
            others = (here - 1.0) * (total - brought[index]) / max(1, count_of_all - 1)
            held = sharing.llc_bytes * brought[index] / (brought[index] + others) if brought[index] else 0.0
            now[index] = (now[index] + load.misses.misses(held)) / 2
    return [many / least for many, least in zip(now, alone, strict=True)]


def _misses_per_ns(load: PhaseLoad, crowding_now: float, latency_ns: float, slowing: float) -> float:
    miss = load.miss * crowding_now
    more_ns = load.miss * (crowding_now - 1.0) * load.miss_ns
    rate = 1.0 / (load.core_ns + load.pipeline_ns * slowing + more_ns + miss * latency_ns)
    # Lines brought in: bytes on the channels, of which each is one line's worth.
    return min(rate, load.cap_per_ns or math.inf) * load.traffic_bytes * crowding_now
