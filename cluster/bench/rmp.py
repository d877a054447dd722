"""``sevfleet bench rmp``: the RMP in bulk, and what it takes of this machine's memory."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from cluster.figure import Figure
from node.dram import Dram
from node.rmp import GuestCore, ReverseMapTable
from node.rmp_entry import ALL_PERMISSIONS, ASID, ASID_SHIFT, ASSIGNED, ENTRY_BYTES, IMMUTABLE, VALIDATED
from node.rmp_layout import RmpLayout, at_end_of_memory
from psp.system_bus import PAGE_BYTES, RmpEntry

GIB = 1 << 30
RANGE_BYTES = 64 * GIB
_MEMORY_BYTES = 66 * GIB
_UNTOUCHED_BYTES = 16 * GIB
_LONE_ENTRIES = 1 << 14
_ASID = 1
_CORE = GuestCore(_ASID)
_POKE_PAGES = 1 << 18
_ANOTHER = np.uint64(ASSIGNED | _ASID + 1 << ASID_SHIFT)
_FIRMWARE = np.uint64(ASSIGNED | IMMUTABLE)


def run() -> Iterator[Figure]:
    """Seconds of RMPUPDATE and PVALIDATE of 64 GiB, and bytes of real memory behind entries."""
    rmp, dram = _table()
    yield Figure("64 GiB in 2 MiB entries, RMPUPDATE and PVALIDATE", _seconds(partial(_in_2_mib, rmp)), "s")
    rmp, dram = _table()
    dram.read(rmp.layout.entry_spa(0), RANGE_BYTES // PAGE_BYTES * ENTRY_BYTES)
    yield Figure("the same in a table that somebody looked at", _seconds(partial(_in_2_mib, rmp)), "s")
    for segmented in (False, True):
        rmp, dram = _table(segmented)
        mix(rmp, dram, RANGE_BYTES)
        name = "segmented" if segmented else "flat"
        taken = _seconds(partial(each_4_kib, rmp, RANGE_BYTES))
        yield Figure(f"64 GiB in mixed 4 KiB entries, a code per page, {name}", taken, "s")
        pages = RANGE_BYTES // PAGE_BYTES
        yield Figure(f"real memory per 4 KiB entry, {name}", dram.resident_bytes / pages, "byte")
    yield Figure("real memory per 4 KiB entry with no neighbour, nobody looked", _lone_entry_bytes(), "byte")
    yield Figure("real memory of an untouched 16 GiB guest's entries", _untouched_bytes(), "byte")


def mix(rmp: ReverseMapTable, dram: Dram, length: int) -> None:
    """Lay entries of every kind, at random, over the table's bytes: the hypervisor's, guests' and firmware's."""
    random = np.random.default_rng(1)
    for first in range(0, length // PAGE_BYTES, _POKE_PAGES):
        pages = np.arange(first, first + _POKE_PAGES, dtype=np.uint64)
        kinds = random.integers(0, 5, len(pages))
        words = np.zeros((len(pages), 2), np.uint64)
        own = np.uint64(ASSIGNED | _ASID << ASID_SHIFT) | pages << np.uint64(12)
        nothing = np.zeros(len(pages), np.uint64)
        low = np.stack([nothing, own, own | np.uint64(VALIDATED), nothing | _ANOTHER, nothing | _FIRMWARE])
        words[:, 0] = np.take_along_axis(low, kinds[None], axis=0)[0]
        words[:, 1] = ALL_PERMISSIONS * (words[:, 0] & np.uint64(ASID) != 0)
        for low_page, high_page, spa in rmp.layout.stretches(first, first + _POKE_PAGES):
            dram.write(spa, words[low_page - first : high_page - first].tobytes())


def each_4_kib(rmp: ReverseMapTable, length: int) -> None:
    """RMPUPDATE and PVALIDATE every page, with what became of each."""
    for codes in (
        rmp.rmpupdate_each(0, length, RmpEntry(assigned=True, asid=_ASID)),
        rmp.pvalidate_each(0, 0, _CORE, length, large=False, validate=True),
    ):
        assert len(codes) == length // PAGE_BYTES  # type: ignore[arg-type]  # a code for each


def _table(segmented: bool = False) -> tuple[ReverseMapTable, Dram]:
    layout: RmpLayout = at_end_of_memory(_MEMORY_BYTES, segmented=segmented)
    dram = Dram(_MEMORY_BYTES)
    return ReverseMapTable(dram, layout), dram


def _in_2_mib(rmp: ReverseMapTable) -> None:
    assert not rmp.rmpupdate(0, RANGE_BYTES, RmpEntry(assigned=True, large=True, asid=_ASID))
    assert not rmp.pvalidate(0, 0, _CORE, RANGE_BYTES, large=True, validate=True)[0]


def _lone_entry_bytes() -> float:
    def give(rmp: ReverseMapTable) -> None:
        for page in range(0, 2 * _LONE_ENTRIES, 2):
            rmp.rmpupdate(page * PAGE_BYTES, PAGE_BYTES, RmpEntry(assigned=True, asid=_ASID, gpa=page * PAGE_BYTES))

    return _held_bytes(give) / _LONE_ENTRIES


def _untouched_bytes() -> float:
    def give(rmp: ReverseMapTable) -> None:
        rmp.rmpupdate(0, _UNTOUCHED_BYTES, RmpEntry(assigned=True, large=True, asid=_ASID))
        rmp.pvalidate(0, 0, _CORE, _UNTOUCHED_BYTES, large=True, validate=True)

    return _held_bytes(give)


def _held_bytes(give: Callable[[ReverseMapTable], None]) -> float:
    rmp, dram = _table()
    gc.collect()
    tracemalloc.start()
    give(rmp)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return float(held + dram.resident_bytes)


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
