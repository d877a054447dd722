"""Counter-based random numbers: a pure function of seed, entity, purpose and counter.

No generator carries state, so neither the order of calls nor where an entity
runs can change a draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CounterRandom:
    """The random numbers of one scenario seed.

    >>> CounterRandom(1).integer("host-0", "asid", 7) == CounterRandom(1).integer("host-0", "asid", 7)
    True
    """

    seed: int

    def octets(self, entity: str, purpose: str, counter: int, length: int) -> bytes:
        """``length`` bytes for one counter value."""
        label = f"{self.seed}\0{entity}\0{purpose}\0{counter}".encode()
        return hashlib.shake_128(label).digest(length)

    def integer(self, entity: str, purpose: str, counter: int) -> int:
        """A uniform 64-bit integer."""
        return int.from_bytes(self.octets(entity, purpose, counter, 8), "little")

    def uniform(self, entity: str, purpose: str, counter: int) -> float:
        """A uniform number in [0, 1) with 53 random bits."""
        # As from ``integer``, without the calls: fleets draw by the thousand.
        label = f"{self.seed}\0{entity}\0{purpose}\0{counter}".encode()
        return (int.from_bytes(hashlib.shake_128(label).digest(8), "little") >> 11) / (1 << 53)
