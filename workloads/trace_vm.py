"""One virtual machine of a trace: when it comes and goes, its size, and its CPU over time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class CpuFragments:
    """CPU use of a machine, piece after piece from its arrival: ``duration_ms`` at a mean of ``usage_mhz``.

    Arrays, because a trace has millions of them.
    """

    duration_ms: NDArray[np.int64]
    usage_mhz: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert len(self.duration_ms) == len(self.usage_mhz)
        self.duration_ms.flags.writeable = False
        self.usage_mhz.flags.writeable = False

    def __len__(self) -> int:
        return len(self.duration_ms)

    @property
    def total_ms(self) -> int:
        """Time that the fragments cover."""
        return int(self.duration_ms.sum())

    def between(self, start_ms: int, stop_ms: int) -> CpuFragments:
        """The part from ``start_ms`` to ``stop_ms`` after arrival."""
        ends = np.cumsum(self.duration_ms)
        begins = np.maximum(ends - self.duration_ms, start_ms)
        lengths = np.minimum(ends, stop_ms) - begins
        kept = lengths > 0
        return CpuFragments(lengths[kept], self.usage_mhz[kept])

    def scaled(self, factor: float) -> CpuFragments:
        """The same with time stretched; pieces that vanish are left out, their sum does not drift."""
        ends = np.rint(np.cumsum(self.duration_ms) * factor).astype(np.int64)
        lengths = np.diff(ends, prepend=np.int64(0))
        kept = lengths > 0
        return CpuFragments(lengths[kept], self.usage_mhz[kept])


@dataclass(frozen=True, slots=True, eq=False)
class TraceVm:
    """A machine of a trace. ``arrival_ns`` counts from the first arrival of the trace.

    ``capacity_mhz`` is what all its vCPUs may use together. Where the fragments
    end before ``duration_ns``, the machine is idle for the rest.
    """

    name: str
    arrival_ns: int
    duration_ns: int
    vcpus: int
    memory_bytes: int
    fragments: CpuFragments
    capacity_mhz: float

    def window(self, start_ns: int, length_ns: int) -> TraceVm | None:
        """The part of the machine's life in a window of the trace, timed from its start; None if there is none."""
        begin = max(self.arrival_ns, start_ns)
        end = min(self.arrival_ns + self.duration_ns, start_ns + length_ns)
        if begin >= end:
            return None
        inside = ((begin - self.arrival_ns) // NS_PER_MS, -(-(end - self.arrival_ns) // NS_PER_MS))
        return replace(
            self, arrival_ns=begin - start_ns, duration_ns=end - begin, fragments=self.fragments.between(*inside)
        )

    def scaled(self, factor: float) -> TraceVm:
        """The machine with its time stretched by ``factor``; its CPU use stays as high, for longer or shorter."""
        return replace(
            self,
            arrival_ns=round(self.arrival_ns * factor),
            duration_ns=max(1, round(self.duration_ns * factor)),
            fragments=self.fragments.scaled(factor),
        )
