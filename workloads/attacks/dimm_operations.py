"""What somebody can do who holds the memory modules. Addresses are system-physical."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DimmDump:
    """Copy all of DRAM that somebody ever wrote. Answer: ``Runs``."""


@dataclass(frozen=True, slots=True)
class DimmWrite:
    """Change bytes where they lie. Answer: None."""

    spa: int
    data: bytes


DimmOperation = DimmDump | DimmWrite
