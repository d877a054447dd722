"""SNP_PAGE_SET_STATE: pages that are firmware's become the host's for good, or none of them does.

Buffer and checks are those of the firmware that AMD has published (AMD-ASPFW, Genoa).
"""

from __future__ import annotations

import struct

import pytest
from toy_machine import GUEST_PAGE, RMP_SPA, UNCOVERED, Machine, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.page_state import PageState, page_state
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LIST, AT = 0x10_0000, 0x40_0000
FIRMWARE = RmpEntry(assigned=True, immutable=True)
SIZE = 0x10


def listed(*ranges: tuple[int, int], count: int | None = None, reserved: int = 0, rest: int = 0) -> bytes:
    head = struct.pack("<II", len(ranges) if count is None else count, reserved)
    return head + b"".join(struct.pack("<QII", base, pages, rest) for base, pages in ranges)


def given(*ranges: tuple[int, int]) -> Machine:
    machine = up(legacy=False)
    for spa, pages in ranges:
        machine.bus.rmp_set_pages(spa, pages * PAGE_BYTES, FIRMWARE)
    return machine


def set_state(machine: Machine, data: bytes, address: int = LIST, length: int = SIZE, reserved: int = 0) -> int:
    if address == LIST:
        machine.bus.write(LIST, data)
    return machine.call(SnpCommand.PAGE_SET_STATE, struct.pack("<IIQ", length, reserved, address))


def states(machine: Machine, *pages: int) -> list[PageState]:
    return [page_state(machine.bus.rmp_entry(page)) for page in pages]


def test_the_buffer_has_the_published_layout() -> None:
    assert buffers.SnpPageSetState.SIZE == SIZE
    assert buffers.SnpPageSetState(SIZE, 0, LIST).pack() == struct.pack("<IIQ", SIZE, 0, LIST)


def test_firmware_pages_become_fixed_until_shutdown() -> None:
    machine = given((AT, 512), (AT + 2 * LARGE_PAGE_BYTES, 3))
    assert set_state(machine, listed((AT, 512), (AT + 2 * LARGE_PAGE_BYTES, 3))) == Status.SUCCESS
    fixed, free = PageState.HV_FIXED, PageState.HYPERVISOR
    last = AT + 2 * LARGE_PAGE_BYTES + 2 * PAGE_BYTES
    assert states(machine, AT, AT + 511 * PAGE_BYTES, last, last + PAGE_BYTES) == [fixed, fixed, fixed, free]
    assert machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(AT).pack()) == Status.INVALID_PAGE_STATE
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(8).pack()) == Status.SUCCESS
    assert states(machine, AT, last) == [free, free]


def test_a_range_named_twice_and_one_without_pages_are_as_good() -> None:
    machine = given((AT, 4))
    assert set_state(machine, listed((AT, 4), (AT, 2), (AT + LARGE_PAGE_BYTES, 0))) == Status.SUCCESS
    assert states(machine, AT, AT + 3 * PAGE_BYTES) == [PageState.HV_FIXED] * 2
    assert set_state(given(), listed()) == Status.SUCCESS


def test_the_rmp_itself_is_left_out() -> None:
    base = RMP_SPA // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    pages = (RMP_SPA - base) // PAGE_BYTES
    machine = given((base, pages)) if pages else given()
    before = states(machine, RMP_SPA)
    assert set_state(machine, listed((base, pages + 1))) == Status.SUCCESS
    assert states(machine, RMP_SPA) == before


OTHERS = {
    "the host's": RmpEntry(),
    "reclaimed": RmpEntry(assigned=True),
    "fixed already": RmpEntry(immutable=True),
    "a context": RmpEntry(assigned=True, immutable=True, vmsa=True),
    "metadata": RmpEntry(assigned=True, immutable=True, gpa=0x1000),
    "a guest's": RmpEntry(assigned=True, immutable=True, asid=2),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_where_one_page_is_not_firmwares_none_is_changed(kind: str) -> None:
    machine = given((AT, 4))
    machine.bus.rmp_set(AT + 3 * PAGE_BYTES, OTHERS[kind])
    before = dict(machine.bus.rmp)
    assert set_state(machine, listed((AT, 4))) == Status.INVALID_PAGE_STATE
    assert machine.bus.rmp == before


WRONG = {
    "length": ({"length": SIZE - 1}, listed((AT, 1)), Status.INVALID_LENGTH),
    "longer": ({"length": SIZE + 8}, listed((AT, 1)), Status.INVALID_LENGTH),
    "reserved": ({"reserved": 1}, listed((AT, 1)), Status.INVALID_PARAM),
    "list off its page": ({"address": LIST + 8}, b"", Status.INVALID_PARAM),
    "list out of memory": ({"address": 1 << 50}, b"", Status.INVALID_ADDRESS),
    "base between 2 MiB": ({}, listed((AT + PAGE_BYTES, 1)), Status.INVALID_PARAM),
    "reserved field of the list": ({}, listed((AT, 1), reserved=1), Status.INVALID_PARAM),
    "reserved field of a range": ({}, listed((AT, 1), rest=1), Status.INVALID_PARAM),
    "more than fit a page": ({}, listed(count=256), Status.INVALID_PARAM),
    "above memory": ({}, listed((1 << 46, 1)), Status.INVALID_ADDRESS),
    "far above it": ({}, listed(((1 << 64) - LARGE_PAGE_BYTES, 0xFFFF_FFFF)), Status.INVALID_ADDRESS),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_has_its_status_and_changes_nothing(case: str) -> None:
    machine = given((AT, 2))
    how, data, status = WRONG[case]
    assert set_state(machine, data, **how) == status
    assert states(machine, AT, AT + PAGE_BYTES) == [PageState.FIRMWARE] * 2


def test_it_needs_snp_to_be_up() -> None:
    assert set_state(up(snp=False), listed((AT, 1))) == Status.INVALID_PLATFORM_STATE


def test_a_guests_pages_are_not_taken_from_it() -> None:
    machine = snp_guest(up(legacy=False))
    assert set_state(machine, listed((GUEST_PAGE // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES, 512))) in (
        Status.INVALID_PAGE_STATE, Status.INVALID_ADDRESS,
    )  # fmt: skip


def test_a_page_of_2_mib_is_not_one_that_was_lent() -> None:
    machine = given()
    machine.bus.rmp_set(AT, RmpEntry(assigned=True, immutable=True, large=True))
    before = dict(machine.bus.rmp)
    assert set_state(machine, listed((AT, 512))) == Status.INVALID_PAGE_STATE
    assert machine.bus.rmp == before


def test_memory_without_an_entry_is_no_address() -> None:
    machine = given()
    base = UNCOVERED // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    machine.bus.rmp_set_pages(base, UNCOVERED - base, FIRMWARE)
    pages = (UNCOVERED - base) // PAGE_BYTES
    assert set_state(machine, listed((base, pages + 1))) == Status.INVALID_ADDRESS
    assert set_state(machine, listed((base, pages))) == Status.SUCCESS
