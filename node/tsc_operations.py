"""What a guest asks the processor itself: its time-stamp counter, and random numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadTsc:
    """RDTSC, which no hypervisor here intercepts. Answer: int, 64 bits, or a Fault."""


@dataclass(frozen=True, slots=True)
class ReadRandom:
    """RDRAND, which no hypervisor intercepts. Answer: int, 64 bits."""
