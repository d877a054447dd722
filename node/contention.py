"""Contention of one host: its hardware threads and its memory bandwidth.

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

Pure: no clock; the caller says how far time went. Sums use numpy's pairwise
reduction and never BLAS, whose result depends on the processor it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEVER_NS = (1 << 63) - 1
_NO_CAP = float("inf")
_DONE_NS = 0.5
_CLOSE = 1e-7
_NARROW = 1e-12
_MOST_STEPS = 200
_HIGHEST_UTILISATION = 1.0 - 1e-9
_sum = np.add.reduce


@dataclass(frozen=True, slots=True)
class PhaseLoad:
    """What a running phase costs its core per instruction.

    ``core_ns`` is c, ``miss`` is m (DRAM latencies per instruction),
    ``traffic_bytes`` the bytes per instruction on the memory channels,
    ``cap_per_ns`` the highest rate in instructions per nanosecond, 0 for none.
    """

    core_ns: float
    miss: float
    traffic_bytes: float
    cap_per_ns: float = 0.0


_NOTHING = PhaseLoad(1.0, 0.0, 0.0)


class PhaseAccount(NamedTuple):
    """What one phase has used when it ends or is interrupted.

    ``loaded_ns`` is vCPU time lost to latency above L0, ``core_wait_ns`` time in
    which the phase wanted a thread and had none.
    """

    instructions: float
    remaining: float
    elapsed_ns: int
    loaded_ns: float
    core_wait_ns: float


class Contention:
    """The phases that run on one host, advanced together.

    Phases sit in slots of parallel arrays; a free slot holds an endless phase
    without load, so that no step needs a mask.
    """

    def __init__(self, threads: int, bandwidth_bytes_per_s: float, latency_ns: float, loaded_factor: float) -> None:
        self.latency_ns = latency_ns
        """DRAM latency under the present load."""
        self.utilisation = 0.0
        """Share of the memory bandwidth in use."""
        self.running = 0
        self.busy_bytes = 0.0
        """Bytes moved over the channels since the start."""
        self._idle_latency_ns = latency_ns
        self._factor = loaded_factor
        self._threads = float(threads)
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.busy_thread_ns = 0.0
        """Thread time used by phases that have ended or were stopped."""
        self._bandwidth = bandwidth_bytes_per_s * 1e-9
        self._now_ns = 0
        self._capped = 0
        self._overcommitted = False
        self._factor_now: Floats = np.empty(())
        """Where an array's factor goes: of a plain float numpy would make such an array at every call."""
        self._free: list[int] = []
        self._vacant: set[int] = set()
        self._loads: list[PhaseLoad] = []
        self._started: list[int] = []
        self._total: list[float] = []
        self._grow(8)

    def _grow(self, slots: int) -> None:
        old = getattr(self, "_core", None)
        size = 0 if old is None else len(old)
        fresh = {
            "_core": 1.0, "_miss": 0.0, "_traffic": 0.0, "_weight": 0.0, "_cap": np.inf, "_remaining": np.inf,
            "_span": 1.0, "_rate": 1.0, "_loaded": 0.0, "_share": 1.0,
        }  # fmt: skip
        for name, value in fresh.items():
            array = np.full(slots, value)
            if old is not None:
                array[:size] = getattr(self, name)
            setattr(self, name, array)
        self._scratch: Floats = np.empty(slots)
        self._pull: Floats = np.empty((2, slots))
        self._slopes, self._demands = self._pull
        self._loads.extend([_NOTHING] * (slots - size))
        self._started.extend([0] * (slots - size))
        self._total.extend([0.0] * (slots - size))
        self._free.extend(range(slots - 1, size - 1, -1))

    _core: Floats
    _miss: Floats
    _traffic: Floats
    _weight: Floats
    _cap: Floats
    _remaining: Floats
    _span: Floats
    _rate: Floats
    _loaded: Floats
    _share: Floats

    def start(self, load: PhaseLoad, instructions: float) -> int:
        """Let a phase run from the present time; returns its slot. Call ``solve`` afterwards."""
        if not self._free:
            self._grow(2 * len(self._core))
        slot = self._free.pop()
        self._vacant.discard(slot)
        self._loads[slot] = load
        self._core[slot] = load.core_ns
        self._miss[slot] = load.miss
        self._traffic[slot] = load.traffic_bytes
        self._weight[slot] = load.traffic_bytes * load.miss
        # As ``_set_rates`` would: so the next solution begins with rates that are set.
        span = load.miss * self.latency_ns + load.core_ns
        cap = load.cap_per_ns or _NO_CAP
        self._span[slot] = span
        self._rate[slot] = min(1.0 / span, cap)
        self._cap[slot] = cap
        self._remaining[slot] = instructions
        self._loaded[slot] = 0.0
        if load.cap_per_ns:
            self._capped += 1
        self._started[slot] = self._now_ns
        self._total[slot] = instructions
        self.running += 1
        return slot

    def stop(self, slot: int) -> PhaseAccount:
        """Take a phase out, finished or not. Call ``solve`` afterwards."""
        load = self._loads[slot]
        remaining = max(0.0, self._remaining.item(slot))
        done = self._total[slot] - remaining
        loaded = self._loaded.item(slot) * load.miss
        elapsed = self._now_ns - self._started[slot]
        busy = done * (load.core_ns + load.miss * self._idle_latency_ns) + loaded
        wanted = busy
        if load.cap_per_ns:
            wanted = max(busy, done / load.cap_per_ns)
            self._capped -= 1
        self.busy_thread_ns += busy
        self._remaining[slot] = np.inf
        self._vacant.add(slot)
        self.running -= 1
        self._free.append(slot)
        return PhaseAccount(done, remaining, elapsed, loaded, max(0.0, elapsed - wanted))

    def rate_per_ns(self, slot: int) -> float:
        """Instructions that a phase retires in a nanosecond, as last solved."""
        return self._rate.item(slot)

    def done(self, slot: int) -> float:
        """Instructions that a running phase has retired up to the time of the last ``advance``."""
        return self._total[slot] - max(0.0, self._remaining.item(slot))

    def _clear_vacant(self) -> None:
        """Slots that nobody took again hold an endless phase without load."""
        for slot in self._vacant:
            self._core[slot] = self._span[slot] = self._rate[slot] = 1.0
            self._miss[slot] = self._traffic[slot] = self._weight[slot] = 0.0
            self._cap[slot] = np.inf
        self._vacant.clear()

    def advance(self, now_ns: int) -> None:
        """Let every phase run on at its rate until ``now_ns``."""
        step = now_ns - self._now_ns
        if step == 0:
            return
        self._now_ns = now_ns
        factor, work = self._factor_now, self._scratch
        factor[()] = step
        np.multiply(self._rate, factor, work)
        np.subtract(self._remaining, work, self._remaining)
        excess = self.latency_ns - self._idle_latency_ns
        if excess:
            factor[()] = excess
            np.multiply(work, factor, work)
            np.add(self._loaded, work, self._loaded)
        self.busy_bytes += self.utilisation * self._bandwidth * step

    def solve(self) -> None:
        """Find rates and latency for the phases that now run."""
        if self._vacant:
            self._clear_vacant()
        if self.running > self._threads:
            self._solve_overcommitted()
            return
        if self._overcommitted:
            self._share.fill(1.0)
            self._overcommitted = False
            self._set_rates(self.utilisation)
        self._solve_latency()

    def _solve_latency(self) -> None:
        """Begins and ends with the rates of the present utilisation set."""
        low, high = 0.0, _HIGHEST_UTILISATION
        u = self.utilisation
        for _ in range(_MOST_STEPS):
            gap, slope = self._excess_demand(u)
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
            self._set_rates(u)
            if found:
                break
        self.utilisation = u

    def _set_rates(self, u: float) -> None:
        """Latency, nanoseconds per instruction and rates at utilisation ``u``."""
        self.latency_ns = latency = self._idle_latency_ns * (1.0 + self._factor * u / (1.0 - u))
        span, rate, factor = self._span, self._rate, self._factor_now
        factor[()] = latency
        np.multiply(self._miss, factor, span)
        np.add(span, self._core, span)
        np.divide(self._share, span, rate)
        if self._capped:
            np.minimum(rate, self._cap, out=rate)

    def _excess_demand(self, u: float) -> tuple[float, float]:
        """Demand at utilisation ``u``, whose rates are set, less ``u``, and minus its slope."""
        rate, slopes = self._rate, self._slopes
        np.multiply(rate, self._weight, slopes)
        np.divide(slopes, self._span, slopes)
        if self._capped:
            slopes[rate == self._cap] = 0.0
        np.multiply(rate, self._traffic, self._demands)
        slope, demand = _sum(self._pull, 1).tolist()
        slope = slope * self._idle_latency_ns * self._factor / ((1.0 - u) * (1.0 - u))
        return demand / self._bandwidth - u, slope / self._bandwidth + 1.0

    def _solve_overcommitted(self) -> None:
        """More phases than threads: alternate between latency and max-min shares until both stand still."""
        self._overcommitted = True
        used = self._weight_of_running()
        for _ in range(_MOST_STEPS):
            before = self.latency_ns
            wanted = np.where(used, np.minimum(1.0, self._cap * (self._core + self._miss * self.latency_ns)), 0.0)
            level = _water_level(wanted[used], self._threads)
            self._share[:] = np.where(used, np.minimum(wanted, level), 1.0)
            np.maximum(self._share, 1e-12, out=self._share)
            self._set_rates(self.utilisation)
            self._solve_latency()
            if abs(self.latency_ns - before) <= 1e-9 * before:
                break

    def _weight_of_running(self) -> NDArray[np.bool_]:
        running: NDArray[np.bool_] = self._remaining != np.inf
        return running

    def next_completion_ns(self) -> int:
        """When the first phase ends if nothing changes, ``NEVER_NS`` if none runs."""
        if not self.running:
            return NEVER_NS
        left = np.divide(self._remaining, self._rate, self._scratch)
        first = left.item(left.argmin())
        return self._now_ns + max(1, -int(-first // 1))

    def completed(self) -> list[int]:
        """The slots of the phases that are done at the present time, in ascending order."""
        left = np.divide(self._remaining, self._rate, self._scratch)
        done: list[int] = (left <= _DONE_NS).nonzero()[0].tolist()
        return done


def _water_level(wanted: Floats, capacity: float) -> float:
    """The level at which the sum of min(wanted, level) fills the capacity."""
    total = float(_sum(wanted))
    if total <= capacity:
        return float(wanted.max()) if len(wanted) else 1.0
    ordered = np.sort(wanted)
    below = np.concatenate(([0.0], np.cumsum(ordered)[:-1]))
    levels = (capacity - below) / np.arange(len(ordered), 0, -1)
    fits = levels <= ordered
    return float(levels[fits.argmax()])
