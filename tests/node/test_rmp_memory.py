"""What the RMP takes of this machine's memory: at most 24 bytes for each 4 KiB entry in use, whatever came before.

As long as nobody looks at the table; its bytes are pages of the DIMM then, of 16 bytes an entry.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random

import pytest

from node.dram import Dram
from node.rmp import GuestCore, ReverseMapTable
from node.rmp_entry import decoded
from node.rmp_layout import at_end_of_memory
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

MOST_PER_ENTRY = 24
MEMORY_BYTES = 64 << 30
CORE, LARGE_PAGES = GuestCore(1), LARGE_PAGE_BYTES // PAGE_BYTES


def give(rmp: ReverseMapTable, page: int, pages: int = 1, gpa: int | None = None) -> None:
    own = RmpEntry(assigned=True, asid=1, gpa=(page if gpa is None else gpa) * PAGE_BYTES)
    assert not rmp.rmpupdate(page * PAGE_BYTES, pages * PAGE_BYTES, own)


def take(rmp: ReverseMapTable, page: int) -> None:
    assert not rmp.rmpupdate(page * PAGE_BYTES, PAGE_BYTES, RmpEntry())


def accept(rmp: ReverseMapTable, page: int, pages: int = 1, gpa: int | None = None) -> None:
    at = (page if gpa is None else gpa) * PAGE_BYTES
    assert not rmp.pvalidate(page * PAGE_BYTES, at, CORE, pages * PAGE_BYTES, large=False, validate=True)[0]


def runs_of_eleven(rmp: ReverseMapTable) -> int:
    """Each with rights of its own for VMPL1, over 2 MiB after 2 MiB."""
    for page in range(0, 11 * 300, 11):
        give(rmp, page, 11)
        accept(rmp, page, 11)
        at = page * PAGE_BYTES
        assert not rmp.rmpadjust(at, at, CORE, 11 * PAGE_BYTES, False, 1, page // 11 % 2 + 1, False)
    return 11 * 300


def isolated(rmp: ReverseMapTable) -> int:
    """One page of eleven."""
    for page in range(0, 11 * 800, 11):
        give(rmp, page)
        accept(rmp, page)
    return 800


def one_in_a_large_page(rmp: ReverseMapTable) -> int:
    for page in range(0, LARGE_PAGES * 800, LARGE_PAGES):
        give(rmp, page)
    return 800


def backwards(rmp: ReverseMapTable) -> int:
    for page in range(1600, 0, -2):
        give(rmp, page)
    return 800


def none_follows_its_neighbour(rmp: ReverseMapTable) -> int:
    """Every page in use, at the reverse of its address, in no order."""
    pages = list(range(800))
    Random(1).shuffle(pages)
    for page in pages:
        give(rmp, page, gpa=799 - page)
        if page % 3:
            accept(rmp, page, gpa=799 - page)
    return 800


def most_given_back(rmp: ReverseMapTable) -> int:
    """One by one, in no order, until few are left of many."""
    pages = [2 * page for page in range(1400)]
    for page in pages:
        give(rmp, page)
    Random(1).shuffle(pages)
    for page in pages[:800]:
        take(rmp, page)
    return 600


def taken_out_of_smashed_pages(rmp: ReverseMapTable) -> int:
    """Of each second page of 512 the owner changes."""
    whole = 4 * LARGE_PAGE_BYTES
    assert not rmp.rmpupdate(0, whole, RmpEntry(assigned=True, large=True, asid=1))
    for block in range(4):
        assert not rmp.psmash(block * LARGE_PAGE_BYTES)
    for page in range(0, 4 * LARGE_PAGES, 2):
        other = RmpEntry(assigned=True, immutable=page % 4 == 0, asid=2, gpa=page * PAGE_BYTES)
        assert not rmp.rmpupdate(page * PAGE_BYTES, PAGE_BYTES, other)
    return 4 * LARGE_PAGES


def in_bulk_over_mixed(rmp: ReverseMapTable) -> int:
    """A range with a code for each page, over entries of which some stay what they were."""
    for page in range(0, 800, 3):
        give(rmp, page, gpa=page + page % 2)
        rmp.rmpupdate((page + 1) * PAGE_BYTES, PAGE_BYTES, RmpEntry(assigned=True, immutable=True))
    rmp.rmpupdate_each(0, 800 * PAGE_BYTES, RmpEntry(assigned=True, asid=1))
    rmp.pvalidate_each(0, 0, CORE, 800 * PAGE_BYTES, large=False, validate=True)
    return 800


STATES = (
    runs_of_eleven, isolated, one_in_a_large_page, backwards, none_follows_its_neighbour, most_given_back,
    taken_out_of_smashed_pages, in_bulk_over_mixed,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def others_aside() -> None:
    """What other tests left is collected once, and not looked through again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def counted() -> Iterator[Callable[[], int]]:
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def held() -> int:
        # The last thousand entries that any table of the process decoded, however large it is, are no part of it.
        decoded.cache_clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    yield held
    tracemalloc.stop()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_an_entry_in_use_takes_24_bytes_at_most(state, counted) -> None:
    dram = Dram(MEMORY_BYTES)
    rmp = ReverseMapTable(dram, at_end_of_memory(MEMORY_BYTES, segmented=state is isolated))
    empty = counted()
    in_use = state(rmp)
    held = counted() - empty
    assert dram.resident_bytes == 0
    assert held <= MOST_PER_ENTRY * in_use
    assert held >= 16 * len(rmp), "expected each run to hold the words of its entry"


def test_a_full_table_that_somebody_looked_at_takes_16_bytes_an_entry() -> None:
    dram = Dram(1 << 30)
    rmp = ReverseMapTable(dram, at_end_of_memory(1 << 30, segmented=False))
    entries = none_follows_its_neighbour(rmp) // LARGE_PAGES * LARGE_PAGES
    dram.read(rmp.layout.entry_spa(0), entries * 16)
    assert dram.resident_bytes == entries * 16
    assert len(rmp) - 1 <= 800 - entries + 1


def test_an_untouched_guest_of_16_gib_takes_next_to_nothing(counted) -> None:
    dram = Dram(MEMORY_BYTES)
    rmp = ReverseMapTable(dram, at_end_of_memory(MEMORY_BYTES, segmented=False))
    length = 16 << 30
    assert not rmp.rmpupdate(0, length, RmpEntry(assigned=True, large=True, asid=1))
    assert not rmp.pvalidate(0, 0, CORE, length, large=True, validate=True)[0]
    assert counted() + dram.resident_bytes < 64 << 10
