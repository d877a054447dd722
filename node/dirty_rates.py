"""How fast a VM dirties its memory, as its host sees it: pools of pages and rates.

A demand may name a set of bytes that it writes all over. The host
measures what was written between two looks, as a hypervisor that samples does,
and speaks up only when that is far from what it said before. While nothing
changes it looks less and less often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from node.contention import Contention
from node.guest import Guest
from node.identity_cache import IdentityCache
from node.program import Demand
from node.vcpu import Vcpu, VcpuState
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

LOOK_NS = 100_000_000
"""Least time between two looks; QEMU estimates anew about as often."""
LONGEST_LOOK_NS = 1_600_000_000
TOLERANCE = 0.1
"""Share by which a rate may be off before it is stated anew."""


_COMPUTING = VcpuState.COMPUTING
_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""


class Pool(NamedTuple):
    """Bytes that are written all over, and how many a second."""

    working_set_bytes: int
    write_bytes_per_s: float


class Reads(NamedTuple):
    """What a VM reads all over, in whole pages touched for the first time or again."""

    of_pools: tuple[float, ...] = ()
    """Bytes a second of each pool that it writes; empty for a VM that reads nothing that matters."""
    beside: tuple[tuple[int, float], ...] = ()
    """Bytes that nobody writes and that are read all over, and how many a second."""


NO_READS = Reads()


def pools_of(bodies: tuple[tuple[int, float], ...]) -> tuple[Pool, ...]:
    """Pools that a host's message tells as plain tuples."""
    return tuple([_new(Pool, (size, rate)) for size, rate in bodies])


class DirtyRates:
    """The pools of one VM: for each vCPU, those of its demands that write a set of one size are one pool.

    It is watched from ``since_ns`` on: the present time, or when it slept, having done nothing on its host before.
    """

    def __init__(
        self, vcpus: Sequence[Vcpu], demands: tuple[tuple[Demand, ...], ...], contention: Contention, since_ns: int,
        *, slept: bool = False,
    ) -> None:  # fmt: skip
        self._contention = contention
        self._pools: list[tuple[Vcpu, int, Mapping[int, float]]] = []
        """vCPU, working set, and bytes written per instruction by number of the demand."""
        for vcpu, of_one in zip(vcpus, demands, strict=True):
            for size, rates in _written_sets(of_one):
                self._pools.append((vcpu, size, rates))
        self._looked_ns = since_ns
        self._before = [0.0] * len(self._pools) if slept else self._written()
        self.stated = pools_at_rest(demands) if slept else self._present()
        """What was stated last."""

    def _present(self) -> tuple[Pool, ...]:
        """Bytes a second written at this very moment."""
        pools: list[Pool] = []
        for vcpu, size, rates in self._pools:
            rate = 0.0
            if vcpu.state is _COMPUTING:
                rate = self._contention.rate_per_ns(vcpu.slot) * 1e9 * rates.get(vcpu.registers.r14, 0.0)
            pools.append(_new(Pool, (size, rate)))
        return tuple(pools)

    def reads(self, guest: Guest) -> Reads:
        """What the VM reads at this very moment: a page, or what one of its TLB entries maps, for each TLB miss.

        A vCPU that sleeps just now reads nothing: unlike what is written, this is no mean.
        """
        places = {(vcpu.index, size): at for at, (vcpu, size, _) in enumerate(self._pools)}
        of_pools, beside = [0.0] * len(self._pools), []
        for vcpu, demands in zip(guest.vcpus, guest.software.demands, strict=True):
            if vcpu.state is not _COMPUTING or not (demand := demands[vcpu.registers.r14]).read_set_bytes:
                continue
            instructions_per_s = self._contention.rate_per_ns(vcpu.slot) * 1e9
            page_bytes = LARGE_PAGE_BYTES if demand.large_pages else PAGE_BYTES
            rate = instructions_per_s * demand.tlb_misses_per_kilo_instruction / 1000.0 * page_bytes
            written = 0 if demand.reads_apart else min(demand.written_set_bytes, demand.read_set_bytes)
            if written:
                of_pools[places[vcpu.index, demand.written_set_bytes]] += rate * written / demand.read_set_bytes
            if only_read := demand.read_set_bytes - written:
                beside.append((only_read, rate * only_read / demand.read_set_bytes))
        return Reads(tuple(of_pools), tuple(beside))

    def is_stale(self) -> bool:
        """Whether the rates of this moment are far from what was stated."""
        return _far(self._present(), self.stated)

    def begin_anew(self, now_ns: int) -> None:
        """What was written so far says nothing of what will be: measure from now on. Nothing is stated."""
        self._looked_ns, self._before = now_ns, self._written()

    def look(self, now_ns: int) -> bool:
        """Measure since the last look; whether that is to be stated anew. In no time nothing is measured."""
        passed_s = (now_ns - self._looked_ns) * 1e-9
        if passed_s <= 0:
            return False
        after = self._written()
        mean = tuple([
            Pool(size, (new - old) / passed_s)
            for (_, size, _), new, old in zip(self._pools, after, self._before, strict=True)
        ])  # fmt: skip
        self._looked_ns, self._before = now_ns, after
        if not _far(mean, self.stated):
            return False
        self.stated = mean
        return True

    def _written(self) -> list[float]:
        """Bytes written so far, by pool. The contention must stand at the present time."""
        figures = []
        for vcpu, _, rates in self._pools:
            written = 0.0
            if vcpu.instructions:
                for number, done in sorted(vcpu.instructions.items()):
                    written += done * rates.get(number, 0.0)
            if vcpu.state is _COMPUTING:
                written += self._contention.done(vcpu.slot) * rates.get(vcpu.registers.r14, 0.0)
            figures.append(written)
        return figures


def pools_at_rest(demands: tuple[tuple[Demand, ...], ...]) -> tuple[Pool, ...]:
    """Those of a VM with these demands all of whose vCPUs sleep."""
    return tuple([_new(Pool, (size, 0.0)) for of_one in demands for size, _ in _written_sets(of_one)])


def _sets_of(demands: tuple[Demand, ...]) -> tuple[tuple[int, Mapping[int, float]], ...]:
    sets: dict[int, dict[int, float]] = {}
    for number, demand in enumerate(demands):
        if demand.written_set_bytes:
            rates = sets.setdefault(demand.written_set_bytes, {})
            rates[number] = demand.written_bytes_per_kilo_instruction / 1000.0
    return tuple(sets.items())


_written_sets = IdentityCache(_sets_of)


def _far(rates: tuple[Pool, ...], stated: tuple[Pool, ...]) -> bool:
    return any(
        abs(new - old) > TOLERANCE * max(new, old) for (_, new), (_, old) in zip(rates, stated, strict=True)
    )  # fmt: skip
