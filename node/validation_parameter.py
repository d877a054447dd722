"""RDX of a guest's request about a device's memory: which pages, and whether they are to be the guest's own.

Bits 63:12 first page's address, 11:4 order (2 to the power of it pages), 3 TEE, 2:0 range id. Source:
``spec/tio/tio-overview.md``, section 5 (patches that are not merged).
"""

from __future__ import annotations

from dataclasses import dataclass

from psp.system_bus import PAGE_BYTES

MOST_ORDER = 20
"""4 GiB: more than a device has."""
_RANGE_ID, _TEE, _ORDER_SHIFT, _ORDER = 0b111, 1 << 3, 4, 0xFF
_PAGES = (1 << 52) - PAGE_BYTES


@dataclass(frozen=True, slots=True)
class ValidationParameter:
    """What the word says."""

    gpa: int
    order: int
    range_id: int
    tee: bool

    @property
    def pages(self) -> int:
        """How many."""
        return 1 << self.order

    def pack(self) -> int:
        """The word."""
        return self.gpa | self.order << _ORDER_SHIFT | self.tee * _TEE | self.range_id

    @classmethod
    def parse(cls, word: int) -> ValidationParameter:
        """Whatever a guest said; ``order`` may be more than MOST_ORDER."""
        return cls(word & _PAGES, word >> _ORDER_SHIFT & _ORDER, word & _RANGE_ID, bool(word & _TEE))
