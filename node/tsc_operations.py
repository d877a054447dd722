"""A guest's look at its time-stamp counter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadTsc:
    """RDTSC, which no hypervisor here intercepts. Answer: int, 64 bits, or a Fault."""
