"""What somebody gets out of a security processor: by a glitch of its supply, or by a hole in old firmware."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GlitchChip:
    """Drop the supply at the right moment, so that the chip runs a stranger's code, and read its fuses.

    Source: Buhren et al., "One Glitch to Rule Them All" (CCS 2021). Answer: 32 bytes, or None where it
    has not been done.
    """


@dataclass(frozen=True, slots=True)
class ExtractKeys:
    """Run code on the security processor through a hole in its firmware, and read the keys that firmware can make.

    Source: Buhren et al., "Insecure Until Proven Updated" (CCS 2019). Answer: the private keys of CEK and
    VCEK, 48 bytes each, zeros for one that there is not; None where the firmware has no such hole.
    """


@dataclass(frozen=True, slots=True)
class ReadAsFirmware:
    """Through the same hole: load memory as the firmware can, under any guest's key. Answer: the bytes, or None."""

    spa: int
    length: int
    asid: int


ChipOperation = GlitchChip | ExtractKeys | ReadAsFirmware
