"""The #HV doorbell page: where a hypervisor says what waits for a guest with restricted injection.

Shared with the hypervisor, so whatever stands there is its word. Layout and the exit that registers the page: GHCB
specification (56421), as Linux (``struct hvdb``) and coconut-svsm (hv_doorbell.rs) spell them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

VECTOR, FLAGS, NO_EOI_REQUIRED = 0, 1, 2
"""Offsets of the bytes that are used here; those of events for single VMPLs are not."""
PENDING_BYTES = 3
NMI_PENDING, MC_PENDING, NO_FURTHER_SIGNAL = 1 << 0, 1 << 1, 1 << 7
NOWHERE = (1 << 64) - 1
"""In place of a GPA: no page is preferred, or none is registered."""


class DoorbellAction(IntEnum):
    """SW_EXITINFO1 of the exit. The number of CLEAR is recollected."""

    GET_PREFERRED = 0
    SET = 1
    QUERY = 2
    CLEAR = 3


@dataclass(frozen=True, slots=True)
class Doorbell:
    """What stands in the page."""

    vector: int = 0
    """An interrupt that waits; 0 for none."""
    flags: int = 0

    @classmethod
    def of(cls, octets: bytes) -> Self:
        """Out of the page's first bytes."""
        return cls(octets[VECTOR], octets[FLAGS])

    @property
    def nmi(self) -> bool:
        """An NMI waits."""
        return bool(self.flags & NMI_PENDING)

    @property
    def silent(self) -> bool:
        """The guest was told already, and has not looked yet."""
        return bool(self.flags & NO_FURTHER_SIGNAL)
