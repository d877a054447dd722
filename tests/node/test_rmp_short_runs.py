"""Instructions on ranges of short runs: a code and an entry for each page as one by one, and as on bytes."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from rmp_tables import flat_rmp

from node.dram import Dram
from node.rmp import GuestCore, ReverseMapTable, RmpFault
from node.rmp_faults import PageOutcome, RmpCode
from node.rmp_switches import RmpSwitches
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

PAGES, LARGE_PAGES = 1600, 512
"""Not whole 2 MiB pages; ``FIRST`` is none's border either."""
FIRST, LAST = 37, 1500
OWNER = GuestCore(1)


def table(seed: int, *, keeps: bool, skips: bool, looked: bool) -> tuple[ReverseMapTable, Dram]:
    """Entries of every state, at random, and one large page among them."""
    random = Random(seed)
    rmp, dram = flat_rmp(8 << 20, RmpSwitches(immutable_keeps_validated=keeps, count_skips_first=skips))
    rmp.set_entry(LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1, gpa=LARGE_PAGE_BYTES, validated=True))
    for page in [*range(LARGE_PAGES), *range(2 * LARGE_PAGES, PAGES)]:
        asid = random.choice([0, 0, 1, 1, 1, 2])
        gpa = (page + random.choice([0, 0, 0, 1])) * PAGE_BYTES if asid else 0
        fixed = random.random() < 0.2
        if asid or random.random() < 0.2:
            own = RmpEntry(
                True, False, fixed, gpa, asid, random.random() < 0.1, bool(asid) and random.random() < 0.5,
                (15, random.randrange(4), 0, 0) if asid else (0, 0, 0, 0),
            )  # fmt: skip
            rmp.set_entry(page * PAGE_BYTES, own)
    if looked:
        dram.read(rmp.layout.entry_spa(0), 2048 * 16)
    return rmp, dram


def entries(rmp: ReverseMapTable) -> list[RmpEntry]:
    return [rmp.entry(page * PAGE_BYTES) for page in range(2048)]


def update_one(rmp: ReverseMapTable, page: int, entry: RmpEntry) -> int:
    return int(rmp.rmpupdate(page * PAGE_BYTES, PAGE_BYTES, entry))


def accept_one(rmp: ReverseMapTable, page: int) -> int:
    at = page * PAGE_BYTES
    try:
        code, same = rmp.pvalidate(at, at, OWNER, PAGE_BYTES, large=False, validate=True)
    except RmpFault as fault:
        return PageOutcome.NPF_SIZEM if fault.error >> 35 & 1 else PageOutcome.NPF
    return PageOutcome.UNCHANGED if same else int(code)


@pytest.mark.parametrize("asked", ["owned", "immutable", "free"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_range_is_what_one_by_one_would_be(seed: int, asked: str) -> None:
    keeps, skips = seed == 1, asked != "immutable"
    bulk, dram = table(seed, keeps=keeps, skips=skips, looked=False)
    looked, _ = table(seed, keeps=keeps, skips=skips, looked=True)
    single, single_dram = table(seed, keeps=keeps, skips=skips, looked=False)
    assert len(bulk) > 700
    pages = range(FIRST, LAST)
    for rmp in (bulk, looked, single):
        rmp.checks.enter(100 * PAGE_BYTES)

    def wanted(page: int) -> RmpEntry:
        gpa = page * PAGE_BYTES
        return RmpEntry() if asked == "free" else RmpEntry(
            assigned=True, immutable=asked == "immutable", asid=1, gpa=gpa)  # fmt: skip

    alone = [update_one(single, page, wanted(page)) for page in pages]
    assert {0, 2, 4} <= set(alone) <= {0, 2, 3, 4}
    for rmp in (bulk, looked):
        codes = rmp.rmpupdate_each(FIRST * PAGE_BYTES, len(pages) * PAGE_BYTES, wanted(FIRST))
        assert isinstance(codes, np.ndarray)
        assert codes.tolist() == alone
    assert entries(bulk) == entries(single) == entries(looked)
    alone = [accept_one(single, page) for page in pages]
    for rmp in (bulk, looked):
        at = FIRST * PAGE_BYTES
        codes = rmp.pvalidate_each(at, at, OWNER, len(pages) * PAGE_BYTES, large=False, validate=True)
        assert isinstance(codes, np.ndarray)
        assert codes.tolist() == alone
    assert entries(bulk) == entries(single) == entries(looked)
    for asid in (1, 2):
        assert bulk.pages_of_asid(asid) == single.pages_of_asid(asid) == looked.pages_of_asid(asid)
    assert not dram.resident_bytes
    assert len(bulk) == len(single)
    # Whoever looks now finds the same bytes, counts of sub-pages included.
    for first, length in bulk.layout.ranges():
        assert dram.read(first, length) == single_dram.read(first, length)


@pytest.mark.parametrize("looked", [False, True])
def test_a_range_stops_at_the_first_page_that_fails(looked: bool) -> None:
    rmp, _ = table(3, keeps=True, skips=True, looked=looked)
    single, _ = table(3, keeps=True, skips=True, looked=False)
    entry = RmpEntry(assigned=True, asid=1, gpa=0)
    code = rmp.rmpupdate(0, LARGE_PAGE_BYTES, entry)
    assert code is RmpCode.FAIL_PERMISSION
    for page in range(LARGE_PAGES):
        if update_one(single, page, RmpEntry(assigned=True, asid=1, gpa=page * PAGE_BYTES)):
            break
    assert 0 < page < LARGE_PAGES - 1
    assert entries(rmp) == entries(single)


@pytest.mark.parametrize("looked", [False, True])
def test_2_mib_over_short_runs_has_a_code_for_each_large_page(looked: bool) -> None:
    rmp, dram = table(4, keeps=True, skips=True, looked=False)
    for page in range(LARGE_PAGES):
        rmp.set_entry(page * PAGE_BYTES, RmpEntry())
    rmp.set_entry(1599 * PAGE_BYTES, RmpEntry(assigned=True, asid=1))
    for page in range(2 * LARGE_PAGES, 3 * LARGE_PAGES):
        rmp.set_entry(page * PAGE_BYTES, RmpEntry(assigned=page % 5 == 0, asid=2 * (page % 5 == 0)))
    if looked:
        dram.read(rmp.layout.entry_spa(0), 2048 * 16)
    before = entries(rmp)
    codes = rmp.rmpupdate_each(0, 4 * LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1))
    assert not isinstance(codes, RmpCode)
    # Free; the guest's large page; 4 KiB pages of another guest; and of any state, some of which are firmware's.
    assert codes.tolist()[:3] == [0, 0, 4]
    assert codes.tolist()[3] in (2, 4)
    assert entries(rmp)[2 * LARGE_PAGES :] == before[2 * LARGE_PAGES :]
    assert rmp.entry(5 * PAGE_BYTES) == RmpEntry(True, True, False, 5 * PAGE_BYTES, 1, False, False, (15, 0, 0, 0))
