"""Whatever a host writes into registers, rings and tables of the IOMMU: the documented event, and bounded work."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iommu_boards import (
    DOMAIN,
    IOVA,
    REQUESTER,
    TABLES,
    TARGET,
    Driver,
    attached,
    brought_up,
    do,
    events,
    host,
    load,
    switched_on,
)

from node import operations as op
from node.board import Board
from node.core_msrs import Msr
from node.device_port import SLOTS
from node.device_table import ENTRY_BYTES, DeviceTableEntry
from node.host_bring_up import bring_up_steps, refusal
from node.iommu_commands import completion_wait, invalidate_all, invalidate_device, parse_command
from node.iommu_driver import (
    COMMANDS,
    COMMANDS_BYTES,
    DEVICE_TABLE,
    EVENTS,
    EVENTS_BYTES,
    SEMAPHORE,
    read_register,
    write_register,
)
from node.iommu_events import FLAG_RESERVED, EventCode, IommuEvent
from node.iommu_page_table import table_pointer
from node.iommu_registers import (
    COMMAND_ENABLE,
    COMMANDS_RUN,
    EVENT_LOG_ENABLE,
    EVENT_LOG_RUNS,
    EVENT_OVERFLOW,
    IOMMU_ENABLE,
    MMIO_BASE,
    MMIO_BYTES,
    Register,
    ring_register,
    table_register,
)
from node.platform import Platform
from psp.system_bus import PAGE_BYTES, RmpEntry

ON = IOMMU_ENABLE | EVENT_LOG_ENABLE | COMMAND_ENABLE
GUEST_S = RmpEntry(assigned=True, gpa=0x5000, asid=9)


def register(board: Board, which: Register) -> int:
    (value,) = host(board, read_register(which))
    assert isinstance(value, int)
    return value


def ring(board: Board, *commands: bytes) -> None:
    """Lay commands at the ring's start and let the IOMMU run them."""
    host(board, op.HostWrite(COMMANDS, b"".join(commands)), write_register(Register.COMMAND_TAIL, 16 * len(commands)))


# Commands.


def command(code: int, low: int = 0, high: int = 0, second: int = 0) -> bytes:
    return struct.pack("<IIQ", low, high | code << 28, second)


ILLEGAL = {
    **{f"code {code}": command(code) for code in (0, 6, 7, *range(9, 16))},
    "COMPLETION_WAIT with a reserved bit": command(1, high=1 << 20),
    "INVALIDATE_DEVTAB_ENTRY with a long device": command(2, low=1 << 16),
    "INVALIDATE_DEVTAB_ENTRY with an operand": command(2, second=1),
    "INVALIDATE_IOMMU_PAGES with a PASID": command(3, low=1),
    "INVALIDATE_IOMMU_PAGES with a long domain": command(3, high=1 << 16),
    "INVALIDATE_IOMMU_PAGES of guest addresses": command(3, second=1 << 2),
    "INVALIDATE_IOMMU_PAGES with a reserved bit": command(3, second=1 << 5),
    "INVALIDATE_IOMMU_ALL with an operand": command(8, low=1),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_an_illegal_command_stops_the_ring_where_it_lies(case: str) -> None:
    board = brought_up()
    ring(board, invalidate_all(), ILLEGAL[case], completion_wait(SEMAPHORE, 1))
    assert events(board) == [IommuEvent(EventCode.ILLEGAL_COMMAND, address=COMMANDS + 16)]
    assert register(board, Register.COMMAND_HEAD) == 16
    assert not register(board, Register.STATUS) & COMMANDS_RUN
    assert host(board, op.HostRead(SEMAPHORE, 8)) == (bytes(8),)
    # It stays stopped until the host has put the command right and starts it again.
    host(board, write_register(Register.COMMAND_TAIL, 48))
    assert events(board) == []
    host(board, op.HostWrite(COMMANDS + 16, invalidate_all()))
    host(board, write_register(Register.CONTROL, ON & ~COMMAND_ENABLE), write_register(Register.CONTROL, ON))
    assert host(board, op.HostRead(SEMAPHORE, 8)) == ((1).to_bytes(8, "little"),)
    assert register(board, Register.COMMAND_HEAD) == 48


@pytest.mark.parametrize("legal", [command(4, 5, 7, 9), command(5, 5)])
def test_commands_about_what_is_not_kept_pass(legal: bytes) -> None:
    board = brought_up()
    ring(board, legal, completion_wait(SEMAPHORE, 7))
    assert host(board, op.HostRead(SEMAPHORE, 8)) == ((7).to_bytes(8, "little"),)
    assert events(board) == []


@pytest.mark.parametrize("tail", [COMMANDS_BYTES, COMMANDS_BYTES + 16, 0x7FFF0])
def test_a_tail_outside_of_the_ring_is_a_hardware_error_and_runs_nothing(tail: int) -> None:
    board = brought_up()
    head = register(board, Register.COMMAND_HEAD)
    host(board, write_register(Register.COMMAND_TAIL, tail))
    assert events(board) == [IommuEvent(EventCode.COMMAND_HW_ERROR, address=COMMANDS + head)]
    assert not register(board, Register.STATUS) & COMMANDS_RUN


def test_a_head_outside_of_the_ring_is_a_hardware_error() -> None:
    board = brought_up()
    host(board, write_register(Register.COMMAND_HEAD, 0x7FFF0), write_register(Register.COMMAND_TAIL, 16))
    assert events(board) == [IommuEvent(EventCode.COMMAND_HW_ERROR, address=COMMANDS + 0x7FFF0)]


def test_pointers_and_bases_have_no_low_bits() -> None:
    board = switched_on()
    for which, value in ((Register.COMMAND_TAIL, 0xFFF0), (Register.EVENT_HEAD, 0xFFF0), (Register.EVENT_BASE, 0x3000)):
        host(board, write_register(which, value | 0xF))
        assert register(board, which) == value


@pytest.mark.parametrize("base", [1 << 40, (1 << 52) - PAGE_BYTES])
def test_a_command_ring_beyond_memory_is_a_hardware_error(base: int) -> None:
    board = brought_up("Rome")
    host(board, write_register(Register.COMMAND_BASE, ring_register(base, COMMANDS_BYTES)))
    host(board, write_register(Register.COMMAND_TAIL, 16))
    assert events(board) == [IommuEvent(EventCode.COMMAND_HW_ERROR, address=base)]


@pytest.mark.parametrize("where", [SEMAPHORE + PAGE_BYTES, SEMAPHORE - 8, TARGET, EVENTS + 8, 1 << 40])
def test_under_snp_completion_is_stored_only_where_firmware_knows_of_it(where: int) -> None:
    board = brought_up()
    if where == TARGET:
        assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, GUEST_S)) == (0,)
    ring(board, completion_wait(where, 0x6666))
    assert events(board) == [IommuEvent(EventCode.COMMAND_HW_ERROR, address=where)]
    if where < board.dram.size_bytes:
        assert board.dram.read(where, 8) != (0x6666).to_bytes(8, "little")


def test_a_host_that_names_no_page_for_completion_words_has_none_stored() -> None:
    board = switched_on()
    (syscfg,) = host(board, op.ReadMsr(0, Msr.SYSCFG))
    assert isinstance(syscfg, int)
    for step in bring_up_steps(board.product, 1 << 16, syscfg):
        if step.name == "SNP_INIT_EX":
            host(board, write_register(Register.COMPLETION_BASE, 0), write_register(Register.COMPLETION_LIMIT, 0))
        assert refusal(step, host(board, *step.batch)) == ""
    host(board, op.HostWrite(0, b"the host's own  "))
    ring(board, completion_wait(0, 0x6666))
    assert events(board) == [IommuEvent(EventCode.COMMAND_HW_ERROR, address=0)]
    assert host(board, op.HostRead(0, 16)) == (b"the host's own  ",)


def test_a_command_ring_that_a_guest_owns_is_not_read() -> None:
    board = brought_up()
    assert host(board, op.RmpUpdate(COMMANDS, PAGE_BYTES, GUEST_S)) == (0,)
    host(board, write_register(Register.COMMAND_TAIL, 16))
    assert events(board) == [IommuEvent(EventCode.RMP_HW_ERROR, address=COMMANDS)]


# The device table.

MALFORMED = {
    **{f"bit {bit}": (1 << bit, FLAG_RESERVED) for bit in (*range(2, 9), *range(52, 61), 63)},
    "Mode 7": (0b111 << 9, 0),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_entry_is_illegal(case: str) -> None:
    board = brought_up()
    driver = attached(board)
    bits, flags = MALFORMED[case]
    at = DEVICE_TABLE + REQUESTER * ENTRY_BYTES
    (low,) = struct.unpack("<Q", board.dram.read(at, 8))
    board.dram.write(at, struct.pack("<Q", low | bits))
    do(board, driver.command(invalidate_device(REQUESTER)))
    assert isinstance(load(board), op.Fault)
    assert events(board) == [IommuEvent(EventCode.ILLEGAL_DEV_TABLE_ENTRY, REQUESTER, flags)]


def test_a_device_table_beyond_memory_is_a_hardware_error() -> None:
    board = brought_up("Rome")
    host(board, write_register(Register.DEVICE_TABLE_BASE, table_register(1 << 40, 4)))
    assert isinstance(load(board), op.Fault)
    spa = (1 << 40) + REQUESTER * ENTRY_BYTES
    assert events(board) == [IommuEvent(EventCode.DEV_TAB_HW_ERROR, REQUESTER, address=spa)]


def test_a_device_beyond_the_table_has_no_entry() -> None:
    board = brought_up("Rome")
    host(board, write_register(Register.DEVICE_TABLE_BASE, table_register(DEVICE_TABLE, 1)))
    assert isinstance(load(board), op.Fault)
    assert events(board) == [IommuEvent(EventCode.ILLEGAL_DEV_TABLE_ENTRY, REQUESTER)]


def test_a_device_table_that_a_guest_owns_is_not_read() -> None:
    board = brought_up()
    attached(board)
    page = DEVICE_TABLE + REQUESTER * ENTRY_BYTES // PAGE_BYTES * PAGE_BYTES
    assert host(board, op.RmpUpdate(page, PAGE_BYTES, GUEST_S)) == (0,)
    assert isinstance(load(board), op.Fault)
    at = DEVICE_TABLE + REQUESTER * ENTRY_BYTES
    assert events(board) == [IommuEvent(EventCode.RMP_HW_ERROR, REQUESTER, address=at)]


# Page tables.


def with_root(board: Board, root: int, levels: int = 3) -> None:
    do(board, Driver().write_entry(REQUESTER, DeviceTableEntry(levels=levels, root=root, domain=DOMAIN)))


def test_a_page_table_beyond_memory_is_a_hardware_error() -> None:
    board = brought_up()
    with_root(board, 1 << 40)
    assert isinstance(load(board, 8 << 30), op.Fault)
    assert events(board) == [IommuEvent(EventCode.PAGE_TAB_HW_ERROR, REQUESTER, address=(1 << 40) + 8 * 8)]


def test_a_page_table_that_a_guest_owns_is_not_read() -> None:
    board = brought_up()
    with_root(board, TABLES)
    assert host(board, op.RmpUpdate(TABLES, PAGE_BYTES, GUEST_S)) == (0,)
    assert isinstance(load(board, 0), op.Fault)
    assert events(board) == [IommuEvent(EventCode.RMP_HW_ERROR, REQUESTER, address=TABLES)]


@pytest.mark.parametrize("below", range(1, 8))
def test_a_table_that_names_itself_ends_the_walk(below: int) -> None:
    board = brought_up()
    board.dram.write(TABLES, table_pointer(TABLES, below).to_bytes(8, "little"))
    with_root(board, TABLES, levels=6)
    assert isinstance(load(board, 0), op.Fault)
    assert [(one.code, bool(one.flags & FLAG_RESERVED)) for one in events(board)] == [(EventCode.IO_PAGE_FAULT, True)]


# The event log.


def faulting(board: Board, times: int) -> None:
    for at in range(times):
        assert isinstance(load(board, IOVA + at * PAGE_BYTES), op.Fault)


def test_a_full_log_says_so_and_stops_until_it_is_started_again() -> None:
    board = brought_up("Rome")
    host(board, write_register(Register.EVENT_BASE, ring_register(EVENTS, 4096)))
    faulting(board, 300)
    status = register(board, Register.STATUS)
    assert status & EVENT_OVERFLOW
    assert not status & EVENT_LOG_RUNS
    assert register(board, Register.EVENT_TAIL) == 4096 - 16
    host(board, write_register(Register.EVENT_HEAD, 4096 - 16))
    faulting(board, 1)
    assert register(board, Register.EVENT_TAIL) == 4096 - 16
    host(board, write_register(Register.STATUS, EVENT_OVERFLOW))
    host(board, write_register(Register.CONTROL, ON & ~EVENT_LOG_ENABLE), write_register(Register.CONTROL, ON))
    faulting(board, 1)
    assert register(board, Register.EVENT_TAIL) == 0
    assert register(board, Register.STATUS) & EVENT_OVERFLOW == 0


def test_records_for_a_log_beyond_memory_are_lost() -> None:
    board = brought_up("Rome")
    host(board, write_register(Register.EVENT_BASE, ring_register(1 << 40, EVENTS_BYTES)))
    faulting(board, 3)
    assert register(board, Register.EVENT_TAIL) == 0


def with_log_of(board: Board, length_bytes: int) -> str:
    """Bring a board up for SNP with an event log of this length; what was refused."""
    for step in bring_up_steps(board.product, 2 << 20, 0):
        refused = refusal(step, host(board, *step.batch))
        if refused:
            return refused
        if step.name == "IOMMU":
            host(board, write_register(Register.EVENT_BASE, ring_register(EVENTS, length_bytes)))
    return ""


PAST = EVENTS + 100 * PAGE_BYTES
"""Where a tail can point to, and a short log does not reach."""


@pytest.mark.parametrize(("product", "lands"), [("Milan", True), ("Genoa", True), ("Turin", False)])
def test_a_record_past_a_short_log_reaches_a_guest_s_page_only_on_family_19h(product: str, lands: bool) -> None:
    board = switched_on(product)
    assert with_log_of(board, 4096) == ""
    assert host(board, op.RmpUpdate(PAST, PAGE_BYTES, GUEST_S)) == (0,)
    host(board, write_register(Register.EVENT_TAIL, PAST - EVENTS))
    faulting(board, 1)
    assert (board.dram.read(PAST, 16) != bytes(16)) is lands


def test_with_its_fix_the_log_reaches_as_far_as_a_tail_and_no_guest_has_a_page_of_it() -> None:
    fixed = Platform(iommu_write_safe=True)
    assert with_log_of(switched_on("Milan", fixed), 4096) == "SNP_INIT_EX: INVALID_CONFIG"
    board = switched_on("Milan", fixed)
    assert with_log_of(board, EVENTS_BYTES) == ""
    assert host(board, op.RmpUpdate(PAST, PAGE_BYTES, GUEST_S)) != (0,)


# Anything at all.

OFFSETS = st.one_of(st.sampled_from(list(Register)), st.integers(0, MMIO_BYTES // 8).map(lambda one: one * 8))
VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, ON, ring_register(COMMANDS, 4096), ring_register(EVENTS, 4096), DEVICE_TABLE, 16, 4096]),
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(OFFSETS, VALUES), max_size=20),
    st.binary(min_size=0, max_size=512),
    st.binary(min_size=0, max_size=96),
    st.booleans(),
)
def test_no_store_to_registers_rings_or_tables_breaks_the_iommu_or_the_rmp(stores, commands, entries, snp) -> None:
    board = brought_up("Milan" if snp else "Rome")
    if snp:
        assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, GUEST_S)) == (0,)
    host(board, op.HostWrite(COMMANDS, commands), op.HostWrite(DEVICE_TABLE + 0x100 * ENTRY_BYTES, entries))
    for offset, value in stores:
        host(board, op.MmioWrite(MMIO_BASE + offset, value))
        for slot in range(SLOTS):
            host(board, op.DeviceWrite(slot, TARGET, b"anything"), op.DeviceRead(slot, TARGET, 8))
    assert board.iommu.memory.enforced is snp
    if snp:
        assert board.dram.read(TARGET, 8) == bytes(8)


@given(st.binary(min_size=16, max_size=16))
def test_any_command_is_parsed_or_illegal(data: bytes) -> None:
    parse_command(data)


@pytest.mark.parametrize("address", [MMIO_BASE - 8, MMIO_BASE + 4, MMIO_BASE + MMIO_BYTES, -8, 0])
def test_where_no_register_is_nothing_answers(address: int) -> None:
    board = switched_on()
    nothing = op.Fault(op.FaultKind.MACHINE_CHECK, address)
    assert host(board, op.MmioRead(address), op.MmioWrite(address, 1)) == (nothing, nothing)


def test_registers_that_are_not_there_read_zero_and_take_nothing() -> None:
    board = switched_on()
    assert host(board, op.MmioWrite(MMIO_BASE + 0x1000, 1), op.MmioRead(MMIO_BASE + 0x1000)) == (None, 0)


@pytest.mark.parametrize("which", [Register.EXTENDED_FEATURE, Register.EXTENDED_FEATURE_2])
def test_features_cannot_be_written(which: Register) -> None:
    board = switched_on()
    before = register(board, which)
    host(board, write_register(which, ~before & (1 << 64) - 1))
    assert register(board, which) == before


def test_a_guest_may_not_touch_any_of_it() -> None:
    board = switched_on("Rome")
    frames = op.NestedFrames("vm", TARGET + 16 * PAGE_BYTES, 16 * PAGE_BYTES)
    host(board, frames, op.NestedMap("vm", 0, TARGET, PAGE_BYTES), op.VmcbWrite("vm", 0, 0, "PLAIN", TARGET))
    batch = (op.MmioWrite(MMIO_BASE, 1), op.WriteMsr(None, 0xC001_0010, 0), op.DeviceWrite(0, 0, b"x"))
    undefined = op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)
    answers = board.execute_guest(board.vmcb("vm", 0), batch)  # type: ignore[arg-type]
    assert answers == (undefined,) * 3
