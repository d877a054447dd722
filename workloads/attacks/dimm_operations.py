"""What somebody can do who holds the memory modules. Addresses are of cells, which SPAs of the same number reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DimmDump:
    """Copy all cells that somebody ever wrote. Answer: ``Runs``."""


@dataclass(frozen=True, slots=True)
class DimmTap:
    """What crossed the bus of some cells last: as much as listening tells, and nothing is changed. Answer: bytes."""

    at: int
    length: int


@dataclass(frozen=True, slots=True)
class DimmPoke:
    """Set cells. Answer: None."""

    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DimmGround:
    """Ground an address line: SPAs with this bit reach the cells of those without, until it is let go. Answer: None."""

    line: int


@dataclass(frozen=True, slots=True)
class DimmUnground:
    """Let an address line go. Answer: None."""

    line: int


DimmOperation = DimmDump | DimmTap | DimmPoke | DimmGround | DimmUnground
