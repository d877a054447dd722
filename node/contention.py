"""Contention of one host: its hardware threads, its caches and its memory bandwidth.

A running phase retires ``r`` instructions per nanosecond and spends, for each,
``c + m L`` nanoseconds of its vCPU: ``c`` is everything that does not depend on
the host's load (core, page walks, cipher, RMP look-ups, exits), ``m`` the LLC
misses per instruction that are not overlapped, ``L`` the DRAM latency under
load. So ``r = min(cap, s / (c + m L))`` with ``s`` the share of a thread.

Latency under load is ``L(u) = L0 (1 + a u / (1 - u))`` where the utilisation
``u`` is the sum of all phases' traffic over the bandwidth. The right side falls
as ``u`` grows, so there is one solution; it is found by Newton steps inside a
bracket. Threads are shared max-min: a phase that its cap lets rest gives the
rest of its share away.

Where more phases run than there are cores, some share one, and each of those spends
more on what its core executes itself; where they share caches (``cache_shares``) each
misses more often. Both change ``c`` and ``m`` before the equations above are solved.

Phases of the same load run at the same rate, whenever they came. So they are
held together: what a host computes at each change grows with the number of
different loads, which is that of its programs and generations, not of its vCPUs.
A phase is done when what its load has retired since it came is its length.
Threads that run without end are counted with the phases of their load; as long as
they are alone on the host nobody counts, for it follows from their cap. What a few
loads come to at their caps is known to all hosts that are alike (``node.load_mix``).

Pure: no clock; the caller says how far time went. Sums go over the loads in the
order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from math import ceil
from typing import NamedTuple

from node.cache_shares import CacheUser, crowding
from node.core_sharing import CoreSharing
from node.load_mix import HIGHEST_UTILISATION, NO_CAP, ROUNDING, LoadMix, capped_to, mix_family
from node.neighbour_ledger import NeighbourLedger, Owner, Sharer

NEVER_NS = (1 << 63) - 1
_DONE_NS = 0.5
_ENDLESS_NS = 1e17
"""Three years: what takes longer is without end."""
_ENDLESS = 1e18
"""Of whatever no thread does more than a few of in a nanosecond."""
_CLOSE = 1e-7
_NARROW = 1e-12
_MOST_STEPS = 200
_MOST_KNOWN = 1 << 10
_MOST_RESTING = 1 << 8
_LEAST_SHARE = 1e-12
_MOST_RETIRED = float(1 << 43)
"""Above it a load begins to count anew: a sum of weeks would lose single instructions in its rounding."""


_tuple = tuple.__new__
"""Makes a named tuple at half the price of its own constructor: there are two for each phase."""


class PhaseLoad(NamedTuple):
    """What a running phase costs its core per instruction.

    ``core_ns`` is c, ``miss`` is m (DRAM latencies per instruction),
    ``traffic_bytes`` the bytes per instruction on the memory channels,
    ``cap_per_ns`` the highest rate in instructions per nanosecond, 0 for none. ``pipeline_ns`` is the part of c that
    another thread of the core makes longer, ``miss_ns`` the part of it that each exposed miss adds to the latency.
    """

    core_ns: float
    miss: float
    traffic_bytes: float
    cap_per_ns: float = 0.0
    pipeline_ns: float = 0.0
    miss_ns: float = 0.0
    misses: CacheUser | None = None
    """How its misses grow where it shares caches; None where they do not."""
    owner: Owner | None = None
    """Whose it is, where that is asked."""


class PhaseAccount(NamedTuple):
    """What one phase has used when it ends or is interrupted.

    ``loaded_ns`` is vCPU time lost to latency above L0, ``core_wait_ns`` time in
    which the phase wanted a thread and had none, ``smt_ns`` time lost to the other thread of its core, ``llc_ns``
    that of misses, at L0, which it has because it shares its cache.
    """

    instructions: float
    remaining: float
    elapsed_ns: int
    loaded_ns: float
    core_wait_ns: float
    smt_ns: float = 0.0
    llc_ns: float = 0.0


class _Alike:
    """The running phases of one load, and what each of them would have done since the first came."""

    __slots__ = (
        "cap", "capped_to_ns", "count", "crowded", "crowding", "ends", "load", "now", "rate", "retired", "share",
        "slowed", "waited",
    )  # fmt: skip

    def __init__(self, load: PhaseLoad, slowing: float, latency_ns: float) -> None:
        core_ns, miss, traffic_bytes, cap, pipeline_ns, *_ = load
        if slowing:
            core_ns += pipeline_ns * slowing
        cap = cap or NO_CAP
        self.load = load
        self.cap = cap
        self.rate = min(1.0 / (miss * latency_ns + core_ns), cap)
        self.now = core_ns, miss, traffic_bytes
        """c, m and bytes per instruction as they are among the present neighbours."""
        self.capped_to_ns = capped_to(cap, core_ns, miss)
        """The DRAM latency up to which nothing but its cap holds it, with a thread of its own."""
        self.share = self.crowding = 1.0
        """Of a thread; and misses as a multiple of those without neighbours."""
        self.retired = self.waited = 0.0
        """``waited`` is the sum over the instructions retired of the latency above L0, in nanoseconds; a miss without
        neighbours pays it."""
        self.slowed = self.crowded = 0.0
        """Sums over the instructions retired of what the other thread adds, as a multiple of ``pipeline_ns``, and of
        the misses that neighbours add, as a multiple of those without."""
        self.ends: list[tuple[float, int]] = []
        """A heap of (``retired`` at the end, slot)."""
        self.count = 0
        """How many phases there are, and threads without end."""


class _Phase(NamedTuple):
    alike: _Alike
    end: float
    instructions: float
    waited_before: float
    started_ns: int
    slowed_before: float
    crowded_before: float


class Occupied:
    """Threads of one load that run without end: ``alike`` will have retired ``end`` when they would be through."""

    __slots__ = ("alike", "end", "load", "threads")
    alike: _Alike
    end: float

    def __init__(self, load: PhaseLoad, threads: int) -> None:
        self.load = load
        self.threads = threads


class Contention:
    """The phases that run on one host, advanced together."""

    def __init__(
        self, threads: int, bandwidth_bytes_per_s: float, latency_ns: float, loaded_factor: float,
        sharing: CoreSharing | None = None,
    ) -> None:
        self.latency_ns = latency_ns
        """DRAM latency under the present load."""
        self.utilisation = 0.0
        """Share of the memory bandwidth in use."""
        self.busy_bytes = 0.0
        """Bytes moved over the channels since the start."""
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.busy_thread_ns = 0.0
        """Thread time used by phases that have ended or were stopped."""
        self.running = 0
        """Number of phases, and of threads without end."""
        self._idle_latency_ns = latency_ns
        self._factor = loaded_factor
        self._threads = threads
        self._roomy = threads if sharing is None else min(threads, sharing.cores)
        """As many run alone on their cores."""
        self._bandwidth = bandwidth_bytes_per_s * 1e-9
        self._mixes = mix_family(self._roomy, self._bandwidth, latency_ns, loaded_factor)
        self._mix: LoadMix | None = self._mixes.none
        """What runs now; None where nothing is kept of that, until nobody runs."""
        self._at_caps = True
        """Whether nothing but its cap holds any phase, as last solved."""
        self._now_ns = 0
        self._overcommitted = False
        self._sharing = sharing
        """How cores and caches are shared; None where every thread has its own."""
        self._slowing = 0.0
        """By how much more a phase spends in its pipeline now, as a share of that."""
        self._uneven = False
        """Whether any phase's misses are not those it has alone."""
        self.ledger: NeighbourLedger | None = None
        """Who costs whom, where somebody asks for it; loads then name their owners."""
        self._known_shares: dict[tuple[float, tuple[tuple[PhaseLoad, int], ...]], list[float]] = {}
        """How caches were shared among phases that ran together before: the same often meet again."""
        self._crowdable = 0
        """Loads whose misses grow among neighbours."""
        self._neighbourly = False
        """Whether anything of what neighbours change is to be found anew, or was found."""
        self._alone: Occupied | None = None
        """All that runs, at its cap and since the time that was last advanced to, until somebody looks or joins it."""
        self._loads: dict[PhaseLoad, _Alike] = {}
        self._resting: dict[PhaseLoad, _Alike] = {}
        """Loads that nothing has at present, as they are alone: the same come again."""
        self._phases: dict[int, _Phase] = {}
        self._next_slot = 0

    def start(self, load: PhaseLoad, instructions: float) -> int:
        """Let a phase run from the present time; returns its slot, no other phase's ever. Call ``solve`` afterwards."""
        if self._alone is not None:
            self._join(self._alone)
        alike = self._loads.get(load)
        if alike is None:
            alike = self._come(load)
        elif alike.retired > _MOST_RETIRED:
            self._count_anew(alike)
        slot = self._next_slot
        self._next_slot = slot + 1
        end = alike.retired + instructions
        heappush(alike.ends, (end, slot))
        alike.count += 1
        self.running += 1
        if self._mix is not None:
            self._mix = self._mix[load, 1]
        phase = alike, end, instructions, alike.waited, self._now_ns, alike.slowed, alike.crowded
        self._phases[slot] = _tuple(_Phase, phase)
        return slot

    def occupy(self, load: PhaseLoad, threads: int) -> Occupied:
        """Let threads without end run from the present time, whose load has no misses. Call ``solve`` afterwards."""
        occupied = Occupied(load, threads)
        if self._mix is not None:
            self._mix = self._mix[load, threads]
        if self._alone is not None:
            self._join(self._alone)
        if self.running or self._mix is None or self.latency_ns >= self._mix.capped_to_ns:
            self._join(occupied)
        else:
            self._alone = occupied
        self.running += threads
        return occupied

    def _join(self, occupied: Occupied) -> None:
        """Threads without end run beside others, or may do so."""
        load, self._alone = occupied.load, None
        alike = occupied.alike = self._loads.get(load) or self._come(load)
        alike.count += occupied.threads
        occupied.end = alike.retired + _ENDLESS

    def release(self, occupied: Occupied, now_ns: int) -> None:
        """Take these out, once all have run on until ``now_ns``. Call ``solve`` afterwards."""
        load, threads = occupied.load, occupied.threads
        if occupied is self._alone:
            self._alone = None
            step, self._now_ns = now_ns - self._now_ns, now_ns
            self.busy_bytes += self.utilisation * self._bandwidth * step
            left = _ENDLESS - load.cap_per_ns * step
        else:
            self.advance(now_ns)
            alike = occupied.alike
            left = occupied.end - alike.retired
            alike.count -= threads
            if not alike.count:
                self._go(alike)
        self.running -= threads
        if self._mix is not None:
            self._mix = self._mix[load, -threads]
        busy = (_ENDLESS - left) * load.core_ns
        for _ in range(threads):
            self.busy_thread_ns += busy

    def _come(self, load: PhaseLoad) -> _Alike:
        """The first phase of a load is about to run."""
        latency, slowing = self.latency_ns, self._slowing
        alike = None if slowing else self._resting.pop(load, None)
        if alike is None:
            alike = _Alike(load, slowing, latency)
            if len(self._resting) > _MOST_RESTING:
                self._resting.clear()
        else:
            alike.retired = alike.waited = alike.slowed = alike.crowded = 0.0
            if alike.capped_to_ns > latency:
                alike.rate = alike.cap
            else:
                core_ns, miss, _ = alike.now
                alike.rate = min(1.0 / (miss * latency + core_ns), alike.cap)
        self._loads[load] = alike
        if load.misses is not None:
            self._crowdable += 1
            self._neighbourly = True
        return alike

    def _go(self, alike: _Alike) -> None:
        """The last one is out."""
        load = alike.load
        del self._loads[load]
        if load.misses is not None:
            self._crowdable -= 1
        if not self._neighbourly:
            self._resting[load] = alike

    def _count_anew(self, alike: _Alike) -> None:
        alike.ends = [(end - alike.retired, slot) for end, slot in alike.ends]
        for end, slot in alike.ends:
            phase = self._phases[slot]
            self._phases[slot] = phase._replace(
                end=end, waited_before=phase.waited_before - alike.waited,
                slowed_before=phase.slowed_before - alike.slowed, crowded_before=phase.crowded_before - alike.crowded,
            )  # fmt: skip
        alike.retired = alike.waited = alike.slowed = alike.crowded = 0.0

    def stop(self, slot: int) -> PhaseAccount:
        """Take a phase out, finished or not. Call ``solve`` afterwards."""
        alike, end, instructions, waited_before, started_ns, slowed_before, crowded_before = self._phases.pop(slot)
        ends = alike.ends
        core_ns, miss, _, cap, pipeline_ns, miss_ns, _, _ = alike.load
        if ends[0][1] == slot:
            heappop(ends)
        else:
            ends.remove((end, slot))
            heapify(ends)
        self.running -= 1
        if self._mix is not None:
            self._mix = self._mix[alike.load, -1]
        alike.count -= 1
        if not alike.count:
            self._go(alike)
        remaining = end - alike.retired
        if remaining < 0.0:
            remaining = 0.0
        done = instructions - remaining
        idle = self._idle_latency_ns
        loaded = (alike.waited - waited_before) * miss
        elapsed = self._now_ns - started_ns
        smt = (alike.slowed - slowed_before) * pipeline_ns
        llc = (alike.crowded - crowded_before) * miss * (idle + miss_ns)
        busy = done * (core_ns + miss * idle) + loaded + smt + llc
        self.busy_thread_ns += busy
        waited = elapsed - (max(busy, done / cap) if cap else busy)
        if waited < 0.0:
            waited = 0.0
        return _tuple(PhaseAccount, (done, remaining, elapsed, loaded, waited, smt, llc))

    def rate_per_ns(self, slot: int) -> float:
        """Instructions that a phase retires in a nanosecond, as last solved."""
        return self._phases[slot].alike.rate

    def done(self, slot: int) -> float:
        """Instructions that a running phase has retired up to the time of the last ``advance``."""
        phase = self._phases[slot]
        return phase.instructions - max(0.0, phase.end - phase.alike.retired)

    def advance(self, now_ns: int) -> None:
        """Let every phase run on at its rate until ``now_ns``."""
        if self._alone is not None:
            self._join(self._alone)
        step = now_ns - self._now_ns
        self._now_ns = now_ns
        if not (step and (self.running or self.ledger)):
            return  # Where nobody runs nobody moves bytes either.
        excess = self.latency_ns - self._idle_latency_ns
        for alike in self._loads.values():
            work = alike.rate * step
            alike.retired += work
            alike.waited += work * excess
        if self._neighbourly and (self._slowing or self._uneven):
            self._note_sharing(step, excess)
        if self.ledger is not None:
            self.ledger.note([self._sharer(alike, excess) for alike in self._loads.values()], step)
        self.busy_bytes += self.utilisation * self._bandwidth * step

    def _note_sharing(self, step: int, excess: float) -> None:
        for alike in self._loads.values():
            work = alike.rate * step
            alike.slowed += work * self._slowing
            more = work * (alike.crowding - 1.0)
            alike.crowded += more
            alike.waited += more * excess

    def _sharer(self, alike: _Alike, excess: float) -> Sharer:
        load, rate = alike.load, alike.rate
        assert load.owner is not None, "a load without its owner on a host that keeps a ledger"
        used = rate * (alike.now[1] * self.latency_ns + alike.now[0])
        idle_ns = self._idle_latency_ns + load.miss_ns
        waits = 1.0 - max(used, rate / alike.cap)
        return Sharer(
            load.owner, alike.count, rate * alike.now[2], used, rate * alike.now[1] * excess,
            rate * load.pipeline_ns * self._slowing, rate * load.miss * (alike.crowding - 1.0) * idle_ns,
            waits if waits > ROUNDING else 0.0,
        )  # fmt: skip

    def _share(self, sharing: CoreSharing) -> None:
        """Find what each phase now spends and misses, with neighbours on its core and in its caches."""
        loads = self._loads.values()
        slowing = 0.0
        if self.running > sharing.cores:
            idle = self._idle_latency_ns
            busy = sum([one.count * min(1.0, one.cap * (one.load.core_ns + one.load.miss * idle)) for one in loads])
            slowing = sharing.slowing(busy)
        if slowing == self._slowing and not self._uneven and not self._crowdable:
            return
        self._slowing = slowing
        shares = [1.0] * len(loads)
        if self._crowdable and self.running > sharing.complexes:
            who = tuple([(one.load, one.count) for one in loads])
            found = self._known_shares.get((slowing, who))
            if found is None:
                if len(self._known_shares) >= _MOST_KNOWN:
                    self._known_shares.clear()
                found = self._known_shares[slowing, who] = crowding(who, self._idle_latency_ns, slowing, sharing)
            shares = found
        self._uneven = False
        for alike, share in zip(loads, shares, strict=True):
            load = alike.load
            alike.crowding = share
            more = load.miss * (share - 1.0)
            self._uneven = self._uneven or more != 0.0
            core_ns = load.core_ns + load.pipeline_ns * slowing + more * load.miss_ns
            alike.now = (core_ns, load.miss + more, load.traffic_bytes * share)
            alike.capped_to_ns = capped_to(alike.cap, core_ns, load.miss + more)

    def solve(self) -> int:
        """Find rates and latency for the phases that now run; ``next_completion_ns`` with these."""
        mix = self._mix
        if mix is not None and self.latency_ns < mix.capped_to_ns:
            self.latency_ns, self.utilisation = mix.latency_ns, mix.utilisation
            if not self._at_caps:
                for alike in self._loads.values():
                    alike.rate = alike.cap
                self._at_caps = True
            return self.next_completion_ns() if self._phases else NEVER_NS
        if self._neighbourly or self.running > self._roomy:
            if self._solve_among_neighbours():
                return self.next_completion_ns()
        elif not self.running:
            self.latency_ns, self.utilisation, self._mix = self._idle_latency_ns, 0.0, self._mixes.none
            return NEVER_NS
        completion = self._solve_capped()
        if not completion:
            self._solve_latency()
            completion = self.next_completion_ns()
        return completion

    def _solve_among_neighbours(self) -> bool:
        """Find what neighbours change; whether that was all."""
        sharing = self._sharing
        if sharing is not None:
            self._share(sharing)
        over = self.running > self._threads
        if over:
            self._solve_overcommitted()
        elif self._overcommitted:
            for alike in self._loads.values():
                alike.share = 1.0
        self._overcommitted = over
        self._neighbourly = over or self._uneven or self._slowing > 0.0 or self._crowdable > 0
        return over

    def _solve_capped(self) -> int:
        """Solve where caps alone hold everybody: the same traffic comes at any latency at which they still do.

        When the first phase ends, 0 where they do not.
        """
        latency, capped_to, demand, first = self.latency_ns, NO_CAP, 0.0, _ENDLESS_NS
        for alike in self._loads.values():
            if alike.capped_to_ns <= latency:
                return 0
            if alike.capped_to_ns < capped_to:
                capped_to = alike.capped_to_ns
            alike.rate = rate = alike.cap
            demand += alike.count * rate * alike.now[2]
            if alike.ends:
                left = (alike.ends[0][0] - alike.retired) / rate
                if left < first:
                    first = left
        u = demand / self._bandwidth
        if u >= HIGHEST_UTILISATION:
            return 0
        latency = self._idle_latency_ns * (1.0 + self._factor * u / (1.0 - u))
        if latency >= capped_to:
            return 0
        self.latency_ns, self.utilisation, self._at_caps = latency, u, True
        return NEVER_NS if first >= _ENDLESS_NS else self._now_ns + max(1, ceil(first))

    def _solve_latency(self) -> None:
        """Find the utilisation that makes the traffic which makes it, and leave its latency and rates set."""
        low, high = 0.0, HIGHEST_UTILISATION
        u, self._at_caps = self.utilisation, False
        gap, slope = self._set_rates(u)
        for _ in range(_MOST_STEPS):
            if gap > 0:
                low = u
            else:
                high = u
            step = gap / slope
            u += step
            if low <= u <= high:
                # Newton squares the error: the step after one so small would be lost in rounding.
                found = -_CLOSE < step < _CLOSE
            else:
                u = (low + high) / 2
                # Traffic that no latency slows down: the bracket ends at full utilisation.
                found = high - low < _NARROW
            gap, slope = self._set_rates(u)
            if found or not gap:  # Without a gap there is no step.
                break
        self.utilisation = u

    def _set_rates(self, u: float) -> tuple[float, float]:
        """Latency and rates at utilisation ``u``; by how much their traffic exceeds it, and minus that one's slope."""
        idle, factor, bandwidth = self._idle_latency_ns, self._factor, self._bandwidth
        free = 1.0 - u
        self.latency_ns = latency = idle * (1.0 + factor * u / free)
        demand = pull = 0.0
        for alike in self._loads.values():
            core_ns, miss, traffic = alike.now
            span = miss * latency + core_ns
            rate = alike.share / span
            if rate < alike.cap:
                bytes_per_ns = alike.count * rate * traffic
                pull += bytes_per_ns * miss / span
            else:
                rate = alike.cap
                bytes_per_ns = alike.count * rate * traffic
            alike.rate = rate
            demand += bytes_per_ns
        return demand / bandwidth - u, pull * idle * factor / (free * free * bandwidth) + 1.0

    def _solve_overcommitted(self) -> None:
        """More phases than threads: alternate between latency and max-min shares until both stand still."""
        loads = self._loads.values()
        for _ in range(_MOST_STEPS):
            before = self.latency_ns
            wanted = [min(1.0, one.cap * (one.now[0] + one.now[1] * before)) for one in loads]
            counts = [one.count for one in loads]
            level = _water_level(zip(wanted, counts, strict=True), self._threads)
            for alike, most in zip(loads, wanted, strict=True):
                alike.share = max(min(most, level), _LEAST_SHARE)
            self._solve_latency()
            if abs(self.latency_ns - before) <= 1e-9 * before:
                break

    def next_completion_ns(self) -> int:
        """When the first phase ends if nothing changes, ``NEVER_NS`` if none runs but without end."""
        first = _ENDLESS_NS
        for alike in self._loads.values():
            if ends := alike.ends:
                left = (ends[0][0] - alike.retired) / alike.rate
                if left < first:
                    first = left
        return NEVER_NS if first >= _ENDLESS_NS else self._now_ns + max(1, ceil(first))

    def completed(self) -> list[int]:
        """The slots of the phases that are done at the present time, in ascending order; they stay until stopped."""
        done: list[int] = []
        for alike in self._loads.values():
            near = alike.retired + _DONE_NS * alike.rate
            if alike.ends and alike.ends[0][0] <= near:
                done += [slot for end, slot in alike.ends if end <= near]
        done.sort()
        return done


def _water_level(wanted: Iterable[tuple[float, int]], capacity: float) -> float:
    """The level at which the sum of ``count * min(wanted, level)`` over (wanted, count) fills the capacity."""
    ordered = sorted(wanted)
    left = sum(count for _, count in ordered)
    for want, count in ordered:
        if capacity <= want * left:
            return capacity / left
        capacity -= want * count
        left -= count
    return ordered[-1][0]
