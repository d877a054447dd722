"""What phases of one host share beside its memory: cores between their two threads, and caches between cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.product import Product


@dataclass(frozen=True, slots=True)
class CoreSharing:
    """A host's cores and caches.

    ``smt_gain`` is what both threads of a core retire together, as a multiple of one alone. The scheduler
    gives every core one phase before any gets a second, as Linux does, lets them take turns in that, and spreads
    phases over core complexes.
    """

    cores: int
    smt_gain: float
    complexes: int
    llc_bytes: int
    """Of each complex."""

    @classmethod
    def of(cls, product: Product, costs: Mapping[str, float]) -> CoreSharing:
        """Those of a product."""
        cores = product.sockets * product.cores
        complexes = max(1, cores // product.cores_per_complex)
        return cls(cores, costs["smt.gain_factor"], complexes, product.llc_bytes_per_complex)

    def slowing(self, busy: float) -> float:
        """By how much longer an instruction stays in its pipeline, on average, while so many threads are busy."""
        if busy <= self.cores:
            return 0.0
        paired = min(1.0, 2.0 * (busy - self.cores) / busy)
        # Each of two threads on a core goes at gain / 2 of its speed alone, and all take turns in being alone.
        return 1.0 / (1.0 - paired + paired * self.smt_gain / 2.0) - 1.0
