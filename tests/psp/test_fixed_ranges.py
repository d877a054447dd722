"""The range list of SNP_INIT_EX: what it names stays the host's until shutdown, as far as it can."""

from __future__ import annotations

import struct

import pytest
from toy_machine import UNCOVERED, Machine, new_machine

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.fixed_ranges import MOST_RANGES
from psp.page_state import PageState, page_state
from psp.status import Status
from psp.system_bus import PAGE_BYTES

LIST, AT = 0x10_0000, 0x40_0000
FLAGS = buffers.SNP_INIT_RMP | buffers.SNP_INIT_LIST


def listed(*ranges: tuple[int, int], count: int | None = None, reserved: int = 0, rest: int = 0) -> bytes:
    head = struct.pack("<II", len(ranges) if count is None else count, reserved)
    return head + b"".join(struct.pack("<QII", base, pages, rest) for base, pages in ranges)


def init(machine: Machine, data: bytes, flags: int = FLAGS, address: int = LIST) -> Status:
    if address == LIST:
        machine.bus.write(LIST, data)
    return machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=flags, range_list_address=address).pack())


def states(machine: Machine, *pages: int) -> list[PageState]:
    return [page_state(machine.bus.rmp_entry(page)) for page in pages]


def test_pages_of_the_list_are_fixed_and_their_neighbours_are_not() -> None:
    machine = new_machine()
    assert init(machine, listed((AT, 2), (AT + 0x8000, 1))) == Status.SUCCESS
    fixed, free = PageState.HV_FIXED, PageState.HYPERVISOR
    seen = states(machine, AT - PAGE_BYTES, AT, AT + PAGE_BYTES, AT + 2 * PAGE_BYTES, AT + 0x8000, AT + 0x9000)
    assert seen == [free, fixed, fixed, free, fixed, free]
    reclaimed = machine.call(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(AT).pack())
    assert reclaimed == Status.INVALID_PAGE_STATE
    shut = machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack())
    assert shut == Status.SUCCESS
    assert states(machine, AT, AT + 0x8000) == [free, free]


def test_what_is_above_memory_or_the_firmwares_own_is_left_out() -> None:
    machine = new_machine()
    placement = machine.bus.rmp_placement()
    assert placement is not None
    (spa, length), *_ = placement.ranges
    before, end = spa - PAGE_BYTES, machine.bus.dram_bytes
    assert init(machine, listed((before, length // PAGE_BYTES + 1), (end, 1 << 20), (1 << 60, 1))) == Status.SUCCESS
    assert states(machine, before) == [PageState.HV_FIXED]
    assert PageState.HV_FIXED not in states(machine, spa, spa + length - PAGE_BYTES)


WRONG = {
    "more than fit a page": (listed(count=MOST_RANGES + 1), Status.INVALID_PARAM),
    "a reserved field of the list": (listed(reserved=1), Status.INVALID_PARAM),
    "a reserved field of a range": (listed((AT, 1), rest=1), Status.INVALID_PARAM),
    "between pages": (listed((AT + 8, 1)), Status.INVALID_PARAM),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_list_is_refused_and_the_platform_stays_down(case: str) -> None:
    machine = new_machine()
    data, status = WRONG[case]
    assert init(machine, data) == status
    assert states(machine, AT) == [PageState.HYPERVISOR]
    assert init(machine, listed((AT, 1))) == Status.SUCCESS


@pytest.mark.parametrize("address", [1 << 50, (1 << 64) - 8])
def test_a_list_that_is_not_in_memory_is_refused(address: int) -> None:
    assert init(new_machine(), b"", address=address) == Status.INVALID_ADDRESS


def test_with_a_table_that_is_kept_there_is_no_list() -> None:
    machine = new_machine()
    assert init(machine, listed()) == Status.SUCCESS
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack()) == Status.SUCCESS
    assert init(machine, listed((AT, 1)), flags=buffers.SNP_INIT_LIST) == Status.INVALID_PARAM
    assert init(machine, b"", flags=0) == Status.SUCCESS


@pytest.mark.parametrize("pages", [(UNCOVERED, 1), (UNCOVERED - 3 * PAGE_BYTES, 4)])
def test_memory_without_an_entry_cannot_be_fixed(pages: tuple[int, int]) -> None:
    machine = new_machine()
    assert init(machine, listed(pages)) == Status.INVALID_PARAM
    assert init(machine, listed((UNCOVERED - 3 * PAGE_BYTES, 3))) == Status.SUCCESS
    assert states(machine, UNCOVERED - PAGE_BYTES) == [PageState.HV_FIXED]
