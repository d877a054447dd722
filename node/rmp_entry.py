"""One entry of the RMP as 16 bytes in DRAM, and the 16 bytes that RMPUPDATE and RMPREAD pass.

The raw layout is that of Zen 3 and Zen 4 (AMD PPR; Linux ``struct rmpentry_raw``
and AMD's sev-tool agree). In bulk, entries are two columns of 64-bit words.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from psp.system_bus import PAGE_BYTES, RmpEntry

ENTRY_BYTES = 16


@dataclass(frozen=True, slots=True)
class EntryField:
    """A field of the raw entry: ``word`` 0 is the low 64 bits; ``bit`` its lowest bit there."""

    name: str
    word: int
    bit: int
    width: int

    @property
    def mask(self) -> int:
        """The field's bits in its word."""
        return ((1 << self.width) - 1) << self.bit


ENTRY_FIELDS = (
    EntryField("assigned", 0, 0, 1),
    EntryField("page_size", 0, 1, 1),
    EntryField("immutable", 0, 2, 1),
    EntryField("subpage_count", 0, 3, 9),
    EntryField("gpa", 0, 12, 39),
    EntryField("asid", 0, 51, 10),
    EntryField("vmsa", 0, 61, 1),
    EntryField("validated", 0, 62, 1),
    EntryField("lock", 0, 63, 1),
    EntryField("vmpl0", 1, 0, 8),
    EntryField("vmpl1", 1, 8, 8),
    EntryField("vmpl2", 1, 16, 8),
    EntryField("vmpl3", 1, 24, 8),
)
"""Every field; bits 63:32 of the high word are reserved. GPA[50:12] stands in its own place."""

_BY_NAME = {field.name: field for field in ENTRY_FIELDS}


def mask(name: str) -> int:
    """The bits of a field in its word."""
    return _BY_NAME[name].mask


ASSIGNED, PAGE_SIZE, IMMUTABLE = mask("assigned"), mask("page_size"), mask("immutable")
GPA, ASID, VMSA, VALIDATED, LOCK = mask("gpa"), mask("asid"), mask("vmsa"), mask("validated"), mask("lock")
SUBPAGE_COUNT = mask("subpage_count")
SUBPAGE_SHIFT, ASID_SHIFT = _BY_NAME["subpage_count"].bit, _BY_NAME["asid"].bit

HIGHEST_ASID = ASID >> ASID_SHIFT
GPA_END = 1 << 51
"""What the fields ASID and GPA can hold."""

ALL_PERMISSIONS = 0xF
"""Permission bits of a VMPL: read, write, execute at CPL 3, execute at CPL 0 to 2."""
GUEST_PERMISSIONS = (ALL_PERMISSIONS, 0, 0, 0)
"""VMPL0 may do everything with a page that was just given to a guest, the others nothing."""


def encoded(entry: RmpEntry) -> tuple[int, int]:
    """The two words of an entry, with SUBPAGE_COUNT and LOCK zero."""
    low = (
        (ASSIGNED if entry.assigned else 0)
        | (PAGE_SIZE if entry.large else 0)
        | (IMMUTABLE if entry.immutable else 0)
        | entry.gpa
        | entry.asid << ASID_SHIFT
        | (VMSA if entry.vmsa else 0)
        | (VALIDATED if entry.validated else 0)
    )
    return low, int.from_bytes(bytes(entry.vmpl_permissions), "little")


@lru_cache(maxsize=1024)
def decoded(low: int, high: int, *, large: bool, offset: int = 0) -> RmpEntry:
    """An entry of its two words. ``large`` is the size in force; ``offset`` pages into a 2 MiB entry with an owner."""
    asid = (low & ASID) >> ASID_SHIFT
    permissions = (high & 0xFF, high >> 8 & 0xFF, high >> 16 & 0xFF, high >> 24 & 0xFF)
    gpa = (low & GPA) + (offset * PAGE_BYTES if asid else 0)
    return RmpEntry(
        bool(low & ASSIGNED), large, bool(low & IMMUTABLE), gpa, asid, bool(low & VMSA), bool(low & VALIDATED),
        permissions,
    )  # fmt: skip


_STATE = struct.Struct("<QBBBBI")
_REGION_IN_USE = 2


def state_form(entry: RmpEntry, *, region_in_use: bool = False) -> bytes:
    """What RMPREAD stores, and RMPUPDATE takes without ``region_in_use``, bit 1 of the size byte."""
    size = entry.large | (_REGION_IN_USE if region_in_use else 0)
    return _STATE.pack(entry.gpa, entry.assigned, size, entry.immutable, 0, entry.asid)
