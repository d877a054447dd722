"""Integrity values of SEV-ES save areas: what hardware keeps of a vCPU's registers besides the page itself.

The page lies in ordinary memory, encrypted with the guest's key; the value lies in the
trusted memory region, which the host gave up at INIT and only hardware reaches
(``spec/firmware/vmsa-ghcb.md`` section 2). So only the newest save at an address has a
value that fits. How the value is worked out and where in the region it lies is not
published: here a hash of the page as hardware wrote it, in a table of sets of slots
whose bytes in DRAM are all there is. A set that is full takes no more, and VMRUN refuses.
"""

from __future__ import annotations

import struct
from hashlib import sha256

import numpy as np

from node.dram import Dram
from psp.system_bus import PAGE_BYTES

_SLOT = struct.Struct("<QII32s16x")
"""SPA, ASID, 1 where there is a value, value."""
_SLOTS_OF_SET = 16
_SET_BYTES = _SLOT.size * _SLOTS_OF_SET


class SaveAreaSeals:
    """One value for each (ASID, SPA) that a save area was written to, while there is a region for it."""

    def __init__(self, dram: Dram) -> None:
        self._dram = dram
        self._base = 0
        self._length = 0

    def take_region(self, spa: int, length: int) -> None:
        """Keep values here from now on; what lies there goes."""
        self.give_back_region()
        self._base, self._length = spa, length
        self._dram.release(spa, length)

    def give_back_region(self) -> None:
        """Every value goes."""
        self._dram.release(self._base, self._length)
        self._base = self._length = 0

    def seal(self, asid: int, spa: int, page: bytes) -> None:
        """Keep the value of a page that hardware writes; the one before it is void."""
        free = None
        for at, slot in self._set_of(asid, spa):
            if slot[:2] == (spa, asid) and slot[2]:
                free = at
                break
            if not slot[2] and free is None:
                free = at
        if free is not None:
            self._dram.write(free, _SLOT.pack(spa, asid, 1, sha256(page).digest()))

    def fits(self, asid: int, spa: int, page: bytes) -> bool:
        """Whether a page is the one that hardware wrote there last; False where it never wrote one."""
        sealed = (spa, asid, 1, sha256(page).digest())
        return any(slot == sealed for _, slot in self._set_of(asid, spa))

    def forget(self, asid: int) -> None:
        """The key of an ASID is gone, and what was written through it with it."""
        words = self._dram.words(self._base, self._length) if self._length else None
        if words is None:
            return
        slots = words.reshape(-1, _SLOT.size // words.itemsize)
        gone = np.flatnonzero((slots[:, 1] & np.uint64(0xFFFF_FFFF)) == asid)
        slots[gone] = 0
        slots_of_page = PAGE_BYTES // _SLOT.size
        for page in np.unique(gone // slots_of_page).tolist():
            if not slots[page * slots_of_page : (page + 1) * slots_of_page].any():
                self._dram.release(self._base + page * PAGE_BYTES, PAGE_BYTES)  # as if never written

    def _set_of(self, asid: int, spa: int) -> list[tuple[int, tuple[int, int, int, bytes]]]:
        """(SPA, fields) of the slots where a value may be; none without a region."""
        sets = self._length // _SET_BYTES
        if not sets:
            return []
        start = self._base + (spa // PAGE_BYTES + asid) % sets * _SET_BYTES
        data = self._dram.read(start, _SET_BYTES)
        return [(start + _SLOT.size * at, slot) for at, slot in enumerate(_SLOT.iter_unpack(data))]
