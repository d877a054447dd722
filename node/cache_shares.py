"""How phases share last-level caches, by their miss curves.

A phase whose cache holds o bytes of its lines misses m(o) = m_inf + (m_0 - m_inf)
exp(-o / k) times an instruction: m_0 without any cache, m_inf with one that holds all
it uses again. Under LRU a user's share of a cache goes with how often it brings lines
in, its misses a second: whoever streams through the cache takes it from whoever
uses it again. Phases are spread evenly over core complexes: some have one more than
others. A phase with one companion has it of each kind as often as there are such on
the host; several companions are like the host's average.

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
    whole = sum([count for _, count in phases])
    fewer, more = divmod(whole, sharing.complexes)
    crowded = more * (fewer + 1) / whole
    companies = [(share, size) for share, size in ((1.0 - crowded, fewer - 1), (crowded, fewer)) if share and size > 0]
    alone = [1.0 if one.misses is None else one.misses.misses(sharing.llc_bytes) for one, _ in phases]
    now = list(alone)
    for _ in range(_STEPS if companies else 0):
        brought = [_misses_per_ns(one, many, latency_ns, slowing) for (one, _), many in zip(phases, now, strict=True)]
        for index, (load, _) in enumerate(phases):
            if load.misses is None:
                continue
            counts = [count - (other == index) for other, (_, count) in enumerate(phases)]
            met = list(zip(brought, counts, strict=True))
            left = 1.0 - sum([share for share, _ in companies])
            wanted = left * alone[index] + sum(
                [share * _met(load.misses, brought[index], met, size, sharing.llc_bytes) for share, size in companies]
            )
            now[index] = (now[index] + wanted) / 2
    return [many / least for many, least in zip(now, alone, strict=True)]


def _met(user: CacheUser, own: float, met: Sequence[tuple[float, int]], size: int, llc_bytes: int) -> float:
    """Misses of a user with ``size`` companions, of kinds that bring so many lines in, each so often on the host."""
    others = sum([count for _, count in met])
    if not own:
        return user.misses(0.0)
    if size > 1:
        average = sum([rate * count for rate, count in met]) / others
        return user.misses(llc_bytes * own / (own + size * average))
    return sum([count / others * user.misses(llc_bytes * own / (own + rate)) for rate, count in met])


def _misses_per_ns(load: PhaseLoad, crowding_now: float, latency_ns: float, slowing: float) -> float:
    miss = load.miss * crowding_now
    more_ns = load.miss * (crowding_now - 1.0) * load.miss_ns
    rate = 1.0 / (load.core_ns + load.pipeline_ns * slowing + more_ns + miss * latency_ns)
    # Lines brought in: bytes on the channels, of which each is one line's worth.
    return min(rate, load.cap_per_ns or math.inf) * load.traffic_bytes * crowding_now
