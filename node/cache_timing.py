"""How long loads take: set-associative caches, one of each core's own and one that all share.

Contents are ``data_cache``'s; here are only tags, and who was used last. An attacker
fills a set, lets the victim run, and sees by the time of his own loads whether the
victim used the set too. Replacement is LRU in both, the shared cache is filled by every
miss and takes nothing from the cores (Zen's L3 holds what L2 evicted; prefetchers,
hashed set indices and pseudo-LRU make real measurements noisier).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from node.cost_table import load_cost_table
from node.data_cache import LINE_BYTES, Tag


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """A cache of ``sets`` sets with ``ways`` lines each."""

    sets: int
    ways: int


@dataclass(frozen=True, slots=True)
class TimingParameters:
    """Sizes of Zen 2 and 3: L2 of 512 KiB, 8 ways, and 16 MiB of L3, 16 ways.

    The times are those of the cost table, in whole nanoseconds.
    """

    own_hit_ns: int
    shared_hit_ns: int
    memory_ns: int
    own: CacheGeometry = CacheGeometry(1024, 8)
    shared: CacheGeometry = CacheGeometry(16384, 16)

    @classmethod
    def of(cls, costs: Mapping[str, float]) -> TimingParameters:
        """The usual sizes with the times of a cost table."""
        names = ("cache.own_hit_ns", "cache.shared_hit_ns", "dram.latency_ns")
        own, shared, memory = (round(costs[name]) for name in names)
        return cls(own, shared, memory)


USUAL = TimingParameters.of(load_cost_table())


class _Tags:
    """Tags of one cache."""

    def __init__(self, geometry: CacheGeometry) -> None:
        self._geometry = geometry
        self._sets: dict[int, OrderedDict[Tag, None]] = {}

    def use(self, tag: Tag) -> bool:
        """Use a line, fetching it if need be; whether it was there."""
        here = self._sets.setdefault(tag[0] % self._geometry.sets, OrderedDict())
        if tag in here:
            here.move_to_end(tag)
            return True
        here[tag] = None
        if len(here) > self._geometry.ways:
            here.popitem(last=False)
        return False

    def forget(self, numbers: range) -> None:
        """Hold lines of a range no longer, in any domain; looked for on the shorter side."""
        sets = self._sets
        indices = {one % self._geometry.sets for one in numbers} if len(numbers) < len(sets) else sets
        for held in [sets[index] for index in indices if index in sets]:
            for tag in [one for one in held if one[0] in numbers]:
                del held[tag]

    def forget_all(self) -> None:
        """Hold nothing."""
        self._sets.clear()

    def __len__(self) -> int:
        return sum(map(len, self._sets.values()))


class CacheTiming:
    """The caches of one host by the times that loads take."""

    def __init__(self, parameters: TimingParameters = USUAL) -> None:
        self.parameters = parameters
        self._own: dict[int, _Tags] = {}
        self._shared = _Tags(parameters.shared)

    def __len__(self) -> int:
        """Lines held, those of several caches several times."""
        return len(self._shared) + sum(map(len, self._own.values()))

    def use(self, core: int, spa: int, length: int, domain: int) -> int:
        """A core touches a range. Nanoseconds until the slowest of its lines is there."""
        own = self._own.get(core)
        if own is None:
            own = self._own[core] = _Tags(self.parameters.own)
        slowest = 0
        for number in range(spa // LINE_BYTES, -(-(spa + max(length, 1)) // LINE_BYTES)):
            tag = (number, domain)
            if own.use(tag):
                slowest = max(slowest, self.parameters.own_hit_ns)
                continue
            found = self._shared.use(tag)
            slowest = max(slowest, self.parameters.shared_hit_ns if found else self.parameters.memory_ns)
        return slowest

    def flush(self, spa: int, length: int) -> None:
        """Lines of a range are flushed from everywhere."""
        numbers = range(spa // LINE_BYTES, -(-(spa + length) // LINE_BYTES))
        for tags in (self._shared, *self._own.values()):
            tags.forget(numbers)

    def flush_all(self) -> None:
        """Every cache is empty."""
        for tags in (self._shared, *self._own.values()):
            tags.forget_all()
