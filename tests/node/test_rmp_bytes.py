"""The bytes of the RMP in DRAM are what counts: reading them shows what was done, writing them does it."""

from __future__ import annotations

import struct

import pytest
from rmp_tables import SEGMENT_PAGES, flat_rmp, segmented_rmp

from node.dram import Dram
from node.rmp import GuestCore, NotValidated, ReverseMapTable, RmpCode, RmpFault
from node.rmp_layout import at_end_of_memory
from node.rmp_switches import RmpSwitches
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

OWNER, THIEF = GuestCore(1), GuestCore(2)
MIB = 1 << 20
PLACES = {"flat": (flat_rmp, 0), "second segment": (segmented_rmp, SEGMENT_PAGES * PAGE_BYTES)}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[ReverseMapTable, Dram, int]:
    """An RMP, its memory, and the start of 4 MiB that it covers."""
    make, spa = PLACES[request.param]
    rmp, dram = make(64 * MIB) if make is flat_rmp else make()
    return rmp, dram, spa


def words_at(rmp: ReverseMapTable, dram: Dram, spa: int) -> tuple[int, int]:
    low, high = struct.unpack("<2Q", dram.read(rmp.layout.entry_spa(spa // PAGE_BYTES), 16))
    return low, high


def poke(rmp: ReverseMapTable, dram: Dram, spa: int, low: int, high: int = 0xF) -> None:
    dram.write(rmp.layout.entry_spa(spa // PAGE_BYTES), struct.pack("<2Q", low, high))


def give(rmp: ReverseMapTable, spa: int, length: int, *, large: bool = False, gpa: int = 0) -> None:
    entry = RmpEntry(assigned=True, large=large, gpa=gpa, asid=1)
    assert rmp.rmpupdate(spa, length, entry) is RmpCode.SUCCESS
    assert rmp.pvalidate(spa, gpa, OWNER, length, large, validate=True) == (RmpCode.SUCCESS, False)


def test_bytes_show_what_the_instructions_did(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    give(rmp, base, LARGE_PAGE_BYTES, large=True, gpa=4 * MIB)
    give(rmp, base + LARGE_PAGE_BYTES + PAGE_BYTES, 3 * PAGE_BYTES, gpa=0x7000)
    # ASSIGNED, PAGE_SIZE, the GPA in its place, ASID at bit 51, VALIDATED at bit 62; nothing in the covered slots.
    assert words_at(rmp, dram, base) == (1 | 2 | 4 * MIB | 1 << 51 | 1 << 62, 0xF)
    assert words_at(rmp, dram, base + PAGE_BYTES) == (0, 0)
    # Three assigned pages are counted at bit 3 of the region's first entry, which is the hypervisor's own.
    assert words_at(rmp, dram, base + LARGE_PAGE_BYTES) == (3 << 3, 0)
    second = base + LARGE_PAGE_BYTES + 2 * PAGE_BYTES
    assert words_at(rmp, dram, second) == (1 | 0x8000 | 1 << 51 | 1 << 62, 0xF)
    # What was looked at is kept up.
    assert rmp.psmash(base) is RmpCode.SUCCESS
    assert words_at(rmp, dram, base) == (1 | 511 << 3 | 4 * MIB | 1 << 51 | 1 << 62, 0xF)
    assert words_at(rmp, dram, base + 5 * PAGE_BYTES) == (1 | 4 * MIB + 0x5000 | 1 << 51 | 1 << 62, 0xF)
    assert rmp.rmpupdate(second, PAGE_BYTES, RmpEntry()) is RmpCode.SUCCESS
    assert words_at(rmp, dram, second) == (0, 0)
    assert words_at(rmp, dram, base + LARGE_PAGE_BYTES) == (2 << 3, 0)
    assert rmp.rmpadjust(base, 4 * MIB, OWNER, PAGE_BYTES, False, 2, 0b0011, vmsa=True) is RmpCode.SUCCESS
    assert words_at(rmp, dram, base) == (1 | 511 << 3 | 4 * MIB | 1 << 51 | 3 << 61, 0x3_000F)


@pytest.mark.parametrize("seen", [False, True])
def test_a_poke_changes_the_next_check(place: tuple[ReverseMapTable, Dram, int], seen: bool) -> None:
    rmp, dram, base = place
    give(rmp, base, LARGE_PAGE_BYTES, gpa=4 * MIB)
    if seen:
        words_at(rmp, dram, base)
    rmp.check_guest_private(base, 4 * MIB, 1, PAGE_BYTES)
    own = 1 | 4 * MIB | 1 << 51 | 1 << 62
    poke(rmp, dram, base, own + (1 << 51))  # ownership stolen
    rmp.check_guest_private(base, 4 * MIB, 2, PAGE_BYTES)
    with pytest.raises(RmpFault):
        rmp.check_guest_private(base, 4 * MIB, 1, PAGE_BYTES)
    poke(rmp, dram, base, own & ~(1 << 62))
    with pytest.raises(NotValidated):
        rmp.check_guest_private(base, 4 * MIB, 1, PAGE_BYTES)
    poke(rmp, dram, base, 0, 0)
    rmp.check_host_write(base, PAGE_BYTES)
    with pytest.raises(RmpFault):
        rmp.check_host_write(base + PAGE_BYTES, PAGE_BYTES)
    rmp.check_guest_private(base + PAGE_BYTES, 4 * MIB + PAGE_BYTES, 1, 100 * PAGE_BYTES)
    poke(rmp, dram, base, own, high=0xE)  # VMPL0 may read no more
    with pytest.raises(RmpFault):
        rmp.check_guest_private(base, 4 * MIB, 1, 8)


def test_a_poke_sets_validated_that_no_guest_asked_for(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    rmp.rmpupdate(base, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x1000, asid=1))
    poke(rmp, dram, base, words_at(rmp, dram, base)[0] | 1 << 62)
    rmp.check_guest_private(base, 0x1000, 1, PAGE_BYTES)
    assert rmp.pvalidate(base, 0x1000, OWNER, PAGE_BYTES, False, validate=True) == (RmpCode.SUCCESS, True)


def test_a_poke_clears_immutable_and_frees_the_firmwares_page(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    assert rmp.rmpupdate(base, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)) is RmpCode.SUCCESS
    assert rmp.rmpupdate(base, PAGE_BYTES, RmpEntry()) is RmpCode.FAIL_PERMISSION
    poke(rmp, dram, base, 1, 0)
    assert rmp.rmpupdate(base, PAGE_BYTES, RmpEntry()) is RmpCode.SUCCESS


def test_an_entry_that_another_processor_holds_is_in_use(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    locked, page = 1 << 63, base + 9 * PAGE_BYTES
    # Not immutable comes first, overlap after it (rmp.md, 4.3).
    for low, code in ((0, RmpCode.FAIL_INUSE), (1, RmpCode.FAIL_INUSE), (0b101, RmpCode.FAIL_PERMISSION)):
        poke(rmp, dram, page, low | locked, 0)
        before = words_at(rmp, dram, page)
        assert rmp.rmpupdate(page, PAGE_BYTES, RmpEntry(assigned=True, asid=1)) is code
        assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1)) is code
        assert words_at(rmp, dram, page) == before
    poke(rmp, dram, page, 0, 0)
    assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1)) is RmpCode.SUCCESS
    low, high = words_at(rmp, dram, base)
    poke(rmp, dram, base, low | locked, high)
    assert rmp.psmash(base) is RmpCode.FAIL_INUSE
    assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, RmpEntry(large=True)) is RmpCode.FAIL_INUSE
    assert rmp.rmpupdate(base + PAGE_BYTES, PAGE_BYTES, RmpEntry()) is RmpCode.FAIL_INUSE
    assert words_at(rmp, dram, base) == (low | locked, high)


def test_one_byte_is_enough(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    give(rmp, base, 64 * PAGE_BYTES)
    dram.write(rmp.layout.entry_spa(base // PAGE_BYTES + 7), bytes([0]))  # ASSIGNED and GPA[50:12] share no byte
    rmp.check_host_write(base + 7 * PAGE_BYTES, PAGE_BYTES)
    with pytest.raises(RmpFault):
        rmp.check_host_write(base + 6 * PAGE_BYTES, PAGE_BYTES)


@pytest.mark.parametrize("length", [PAGE_BYTES, 8 * PAGE_BYTES])
def test_a_locked_entry_is_in_use(place: tuple[ReverseMapTable, Dram, int], length: int) -> None:
    rmp, dram, base = place
    poke(rmp, dram, base, 1 << 63, 0)
    entry = RmpEntry(assigned=True, asid=1)
    assert rmp.rmpupdate(base, length, entry) is RmpCode.FAIL_INUSE
    assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, RmpEntry(assigned=True, large=True, asid=1)) is RmpCode.FAIL_INUSE
    poke(rmp, dram, base, 1 << 63 | 3 | 1 << 51)
    assert rmp.psmash(base) is RmpCode.FAIL_INUSE
    assert words_at(rmp, dram, base)[0] == 1 << 63 | 3 | 1 << 51
    # A 4 KiB page under it is in use as well, before it overlaps.
    assert rmp.rmpupdate(base + 3 * PAGE_BYTES, length, entry) is RmpCode.FAIL_INUSE
    poke(rmp, dram, base, 3 | 1 << 51)
    assert rmp.rmpupdate(base + 3 * PAGE_BYTES, length, entry) is RmpCode.FAIL_OVERLAP


def test_the_count_is_what_keeps_2_mib_from_covering_a_guests_4_kib(place: tuple[ReverseMapTable, Dram, int]) -> None:
    rmp, dram, base = place
    victim = base + 9 * PAGE_BYTES
    give(rmp, victim, PAGE_BYTES, gpa=0x9000)
    whole = RmpEntry(assigned=True, large=True, asid=2)
    assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, whole) is RmpCode.FAIL_OVERLAP
    poke(rmp, dram, base, 0, 0)
    assert rmp.rmpupdate(base, LARGE_PAGE_BYTES, whole) is RmpCode.SUCCESS
    assert rmp.entry(victim) == RmpEntry(True, True, False, 0x9000, 2, vmpl_permissions=(0xF, 0, 0, 0))


def test_switches_say_what_the_count_counts() -> None:
    for skips, counted in ((True, 511), (False, 0)):  # 512 does not fit nine bits
        rmp, dram = flat_rmp(4 * MIB, RmpSwitches(count_skips_first=skips))
        give(rmp, 0, LARGE_PAGE_BYTES)
        assert words_at(rmp, dram, 0)[0] >> 3 & 0x1FF == counted


def test_counters_lie_in_the_bookkeeping() -> None:
    rmp, dram = flat_rmp(4 * MIB)
    give(rmp, 0, LARGE_PAGE_BYTES, large=True)
    give(rmp, LARGE_PAGE_BYTES, PAGE_BYTES, gpa=8 * MIB)
    at = rmp.layout.base + 8
    assert int.from_bytes(dram.read(at, 8), "little") == 513
    rmp.rmpupdate(LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry())
    assert int.from_bytes(dram.read(at, 8), "little") == 512
    dram.write(at, bytes(8))
    assert rmp.pages_of_asid(1) == 0
    rmp.rmpupdate(0, LARGE_PAGE_BYTES, RmpEntry(large=True))
    assert rmp.pages_of_asid(1) == 0


def test_setting_up_zeroes_the_table_and_takes_its_pages() -> None:
    for segmented in (False, True):
        dram = Dram(64 * MIB)
        rmp = ReverseMapTable(dram, at_end_of_memory(64 * MIB, segmented=segmented))
        poke(rmp, dram, 0, 1 | 1 << 51)
        rmp.initialise()
        assert rmp.entry(0) == RmpEntry()
        assert words_at(rmp, dram, 0) == (0, 0)
        for spa, length in rmp.layout.ranges():
            for page in (spa, spa + length - PAGE_BYTES):
                assert rmp.rmpupdate(page // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, RmpEntry()) is RmpCode.FAIL_PERMISSION
                with pytest.raises(RmpFault):
                    rmp.check_host_write(page, 8)


@pytest.mark.parametrize("looked", [False, True])
def test_many_small_entries_mean_what_each_alone_would(looked: bool) -> None:
    rmp, dram = flat_rmp(64 * MIB)
    pages = range(0, 2400, 2)
    for page in pages:
        give(rmp, page * PAGE_BYTES, PAGE_BYTES, gpa=page * 0x3000)
    if looked:
        dram.read(rmp.layout.entry_spa(0), 2400 * 16)
    assert (dram.resident_bytes > 0) == looked
    for page in pages:
        assert rmp.entry(page * PAGE_BYTES).gpa == page * 0x3000
        rmp.check_host_write((page + 1) * PAGE_BYTES, PAGE_BYTES)
        rmp.check_guest_private(page * PAGE_BYTES, page * 0x3000, 1, PAGE_BYTES)
    assert rmp.pages_of_asid(1) == len(pages)


@pytest.mark.parametrize("seen", [False, True])
def test_a_code_for_each_page_is_what_one_by_one_would_give(seen: bool) -> None:
    def prepared() -> tuple[ReverseMapTable, Dram]:
        rmp, dram = flat_rmp(8 * MIB)
        give(rmp, 0, 3 * PAGE_BYTES)
        rmp.rmpupdate(5 * PAGE_BYTES, PAGE_BYTES, RmpEntry(assigned=True, immutable=True))
        rmp.rmpupdate(7 * PAGE_BYTES, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x7000, asid=2))
        give(rmp, LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, large=True, gpa=LARGE_PAGE_BYTES)
        rmp.checks.enter(9 * PAGE_BYTES)
        if seen:
            dram.read(rmp.layout.entry_spa(0), 8192)
        return rmp, dram

    bulk, _ = prepared()
    single, _ = prepared()
    length = 3 * LARGE_PAGE_BYTES - 7 * PAGE_BYTES
    codes = bulk.rmpupdate_each(0, length, RmpEntry(assigned=True, asid=1))
    assert not isinstance(codes, RmpCode)
    assert codes.tolist() == [
        int(single.rmpupdate(at, PAGE_BYTES, RmpEntry(assigned=True, gpa=at, asid=1)))
        for at in range(0, length, PAGE_BYTES)
    ]
    assert {0, 2, 3, 4} <= set(codes.tolist())
    outcomes = bulk.pvalidate_each(0, 0, OWNER, length, large=False, validate=True)
    assert not isinstance(outcomes, RmpCode)
    for page, outcome in enumerate(outcomes.tolist()):
        at = page * PAGE_BYTES
        try:
            code, same = single.pvalidate(at, at, OWNER, PAGE_BYTES, False, validate=True)
            assert outcome == (0xFF if same else code)
        except RmpFault as fault:
            assert outcome == (0x81 if fault.error >> 35 & 1 else 0x80)
        assert bulk.entry(at) == single.entry(at)
    assert bulk.pages_of_asid(1) == single.pages_of_asid(1)
    assert bulk.pages_of_asid(2) == single.pages_of_asid(2)
