"""What a program's memory must hold: contents that follow from a key and counters.

Nobody without the key can make other bytes that pass, and the program needs no
memory of what it stored.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.counter_random import CounterRandom
from node.program import Placement

Words = NDArray[np.uint64]

CHECKSUM_BYTES = 16
_shake, _counters = hashlib.shake_128, struct.Struct("<QQ").pack

# SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class KeyedContent:
    """Contents of one vCPU's program. ``key`` is secret from everybody but its VM."""

    key: bytes

    @classmethod
    def of(cls, placement: Placement, program: str) -> KeyedContent:
        """The contents of ``program`` on the vCPU of ``placement``."""
        owner = f"{placement.vm}/{placement.vcpu}"
        return cls(CounterRandom(placement.seed).octets(owner, f"{program} contents", 0, 32))

    def octets(self, purpose: bytes, first: int, second: int, length: int) -> bytes:
        """``length`` bytes for two counters."""
        return _shake(self.key + _counters(first, second) + purpose).digest(length)

    def checksum(self, data: bytes) -> bytes:
        """A keyed digest of ``data``."""
        return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES, key=self.key).digest()

    def draws(self, purpose: bytes, counter: int, count: int) -> Words:
        """``count`` uniform 64-bit words for one counter."""
        return np.frombuffer(self.octets(purpose, counter, 0, 8 * count), dtype="<u8").astype(np.uint64)

    def words(self, numbers: Words, purpose: int = 0) -> Words:
        """One 64-bit word for each number: quick, and scattered rather than secret from a determined reader."""
        salt = np.uint64(int.from_bytes(self.key[8 * purpose : 8 * purpose + 8], "little"))
        mixed = (numbers ^ salt) * _GAMMA
        mixed ^= mixed >> np.uint64(30)
        mixed *= _MIX_1
        mixed ^= mixed >> np.uint64(27)
        mixed *= _MIX_2
        mixed ^= mixed >> np.uint64(31)
        return mixed
