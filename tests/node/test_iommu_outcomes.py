"""What becomes of a device's access: by the state of its page under SNP, by its mapping, and by whose key it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from iommu_boards import (
    DOMAIN,
    IOVA,
    REQUESTER,
    SLOT,
    TABLES,
    TARGET,
    Driver,
    attached,
    brought_up,
    do,
    events,
    host,
    load,
    store,
    switched_on,
)

from node import operations as op
from node.board import Board
from node.device_table import DeviceTableEntry
from node.iommu_events import FLAG_PERMISSION, FLAG_PRESENT, FLAG_WRITE, EventCode, IommuEvent
from node.iommu_page_table import leaf, table_pointer
from node.iommu_switches import IommuSwitches
from node.memory_controller import HOST_KEY
from node.platform import HostMode, Platform, Protection
from node.rmp import GuestCore
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

WRITTEN = b"from the device!"
OLD = bytes(range(16))
ABORTED = op.Fault(op.FaultKind.DMA_ABORTED, IOVA)


def in_dram(board: Board, spa: int = TARGET, length: int = 16) -> bytes:
    return board.dram.read(spa, length)


def with_page(board: Board, entry: RmpEntry, *, validated: bool = False) -> None:
    """A page of a state, written first while it was the host's."""
    assert board.rmp is not None
    board.dram.write(TARGET, OLD)
    size = LARGE_PAGE_BYTES if entry.large else PAGE_BYTES
    if entry.vmsa or (entry.immutable and not entry.assigned):
        board.rmp.set_entry(TARGET, entry)
    else:
        assert host(board, op.RmpUpdate(TARGET, size, entry)) == (0,)
    if validated:
        board.rmp.pvalidate(TARGET, entry.gpa, GuestCore(entry.asid), size, large=entry.large, validate=True)


STATES = {
    "Hypervisor": (RmpEntry(), False, True),
    "HV-Fixed": (RmpEntry(immutable=True), False, True),
    "Guest-Invalid": (RmpEntry(assigned=True, gpa=0x5000, asid=9), False, False),
    "Guest-Valid": (RmpEntry(assigned=True, gpa=0x5000, asid=9), True, False),
    "Guest-Valid of 2 MiB": (RmpEntry(assigned=True, large=True, gpa=LARGE_PAGE_BYTES, asid=9), True, False),
    "Pre-Guest": (RmpEntry(assigned=True, immutable=True, gpa=0x5000, asid=9), False, False),
    "Firmware": (RmpEntry(assigned=True, immutable=True), False, False),
    "Reclaim": (RmpEntry(assigned=True), False, False),
    "Context": (RmpEntry(assigned=True, immutable=True, vmsa=True), False, False),
}
"""(entry, validated, whether a device may write there): the sheet's section 5."""


@pytest.fixture(params=["Milan", "Genoa", "Turin"])
def product(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("state", STATES)
def test_under_snp_a_device_reaches_only_pages_of_the_hypervisor(product: str, state: str) -> None:
    board = brought_up(product)
    attached(board)
    entry, validated, allowed = STATES[state]
    with_page(board, entry, validated=validated)
    assert load(board) == (OLD if allowed else ABORTED)
    store(board)
    assert in_dram(board) == (WRITTEN if allowed else OLD)
    told = [] if allowed else [
        IommuEvent(EventCode.RMP_PAGE_FAULT, REQUESTER, 0, 0, IOVA),
        IommuEvent(EventCode.RMP_PAGE_FAULT, REQUESTER, FLAG_WRITE, 0, IOVA),
    ]  # fmt: skip
    assert events(board) == told


@pytest.mark.parametrize("whole", [True, False])
def test_a_large_mapping_needs_all_of_its_2_mib_to_be_the_hypervisor_s(whole: bool) -> None:
    board = brought_up()
    board.iommu.switches = IommuSwitches(large_mappings_whole=whole)
    board.dram.write(TABLES + 8, leaf(TARGET).to_bytes(8, "little"))
    do(board, Driver().write_entry(REQUESTER, DeviceTableEntry(levels=2, root=TABLES, domain=DOMAIN)))
    iova = LARGE_PAGE_BYTES
    board.dram.write(TARGET, OLD)
    assert load(board, iova) == OLD
    far = TARGET + 300 * PAGE_BYTES
    assert host(board, op.RmpUpdate(far, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=9))) == (0,)
    assert load(board, iova) == (op.Fault(ABORTED.kind, iova) if whole else OLD)
    assert isinstance(load(board, iova + 300 * PAGE_BYTES), op.Fault)


def test_a_page_that_changes_hands_is_out_of_reach_at_once_though_its_translation_is_remembered() -> None:
    board = brought_up()
    attached(board)
    board.dram.write(TARGET, OLD)
    assert load(board) == OLD
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=9))) == (0,)
    assert load(board) == ABORTED
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry())) == (0,)
    assert load(board) == OLD


def test_by_a_switch_a_refused_read_answers_with_ones() -> None:
    board = brought_up()
    board.iommu.switches = IommuSwitches(aborted_reads_are_ones=True)
    attached(board)
    with_page(board, *STATES["Guest-Valid"][:1], validated=True)
    assert load(board) == b"\xff" * 16
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]


def test_by_a_switch_devices_without_an_entry_pass_untranslated_and_still_not_by_the_rmp() -> None:
    board = brought_up()
    board.iommu.switches = IommuSwitches(invalid_entry_blocks=False)
    store(board, TARGET)
    assert in_dram(board) == WRITTEN
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=9))) == (0,)
    store(board, TARGET, b"something else..")
    assert in_dram(board) == WRITTEN
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]


def test_the_rmp_itself_is_out_of_a_device_s_reach(product: str) -> None:
    board = brought_up(product)
    assert board.rmp is not None
    base = board.rmp.layout.base
    attached(board, [(IOVA, base)])
    before = in_dram(board, base, 4096)
    store(board)
    assert in_dram(board, base, 4096) == before
    assert load(board) == ABORTED
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT] * 2


def test_reads_give_ciphertext_where_the_switch_says_that_only_writes_are_checked() -> None:
    board = brought_up()
    assert board.rmp is not None
    board.rmp.checks._switches = replace(board.rmp.switches, dma_reads_checked=False)
    attached(board)
    with_page(board, *STATES["Guest-Valid"][:1], validated=True)
    assert load(board) == OLD
    store(board)
    assert in_dram(board) == OLD


def test_the_knocked_out_check_lets_a_device_write_a_guest_s_page_and_nothing_else() -> None:
    board = brought_up("Milan", Platform(disabled=frozenset({Protection.IOMMU_CHECK})))
    attached(board)
    with_page(board, *STATES["Guest-Valid"][:1], validated=True)
    store(board)
    assert in_dram(board) == WRITTEN
    assert events(board) == []
    # The host's own stores are still refused, and a device still needs a mapping.
    (answer,) = host(board, op.HostWrite(TARGET, b"x"))
    assert isinstance(answer, op.Fault)
    assert isinstance(load(board, IOVA + PAGE_BYTES), op.Fault)


MAPPINGS = {
    "no entry for the device": (None, 0),
    "V clear": (DeviceTableEntry(valid=False), 0),
    "TV clear": (DeviceTableEntry(translates=False), 0),
    "IR clear": (DeviceTableEntry(read=False), FLAG_PRESENT | FLAG_PERMISSION),
}


@pytest.mark.parametrize("case", MAPPINGS)
def test_a_read_that_the_device_table_forbids_is_a_page_fault(product: str, case: str) -> None:
    board = brought_up(product)
    driver = attached(board)
    entry, flags = MAPPINGS[case]
    known = board.iommu._entry(REQUESTER, 0)
    wanted = DeviceTableEntry(valid=False, translates=False, read=False, write=False) if entry is None else entry
    wanted = replace(wanted, levels=known.levels, root=known.root, domain=known.domain)
    do(board, driver.write_entry(REQUESTER, wanted))
    assert load(board) == ABORTED
    assert events(board) == [IommuEvent(EventCode.IO_PAGE_FAULT, REQUESTER, flags, DOMAIN, IOVA)]


@pytest.mark.parametrize(("read", "write"), [(True, False), (False, True), (False, False)])
def test_pages_permit_reads_and_writes_each_by_itself(read: bool, write: bool) -> None:
    board = brought_up()
    attached(board, read=read, write=write)
    board.dram.write(TARGET, OLD)
    assert load(board) == (OLD if read else ABORTED)
    store(board)
    assert in_dram(board) == (WRITTEN if write else OLD)
    refused = [flags for allowed, flags in ((read, 0), (write, FLAG_WRITE)) if not allowed]
    assert [(one.code, one.flags) for one in events(board)] == [
        (EventCode.IO_PAGE_FAULT, FLAG_PRESENT | FLAG_PERMISSION | flags) for flags in refused
    ]


@pytest.mark.parametrize(("product", "snp"), [("Milan", True), ("Turin", True), ("Rome", False), ("Naples", False)])
def test_addresses_pass_untranslated_only_where_there_is_no_snp(product: str, snp: bool) -> None:
    board = brought_up(product)
    do(board, Driver().write_entry(REQUESTER, DeviceTableEntry(domain=DOMAIN)))
    board.dram.write(TARGET, OLD)
    answer = load(board, TARGET)
    store(board, TARGET)
    assert (answer, in_dram(board)) == ((op.Fault(ABORTED.kind, TARGET), OLD) if snp else (OLD, WRITTEN))
    told = [EventCode.ILLEGAL_DEV_TABLE_ENTRY] * 2 if snp else []
    assert [one.code for one in events(board)] == told


def test_before_snp_is_on_a_device_may_write_anywhere() -> None:
    board = brought_up("Rome")
    attached(board)
    store(board)
    assert in_dram(board) == WRITTEN


def test_a_transfer_is_refused_page_by_page() -> None:
    board = brought_up()
    attached(board, [(IOVA, TARGET), (IOVA + 2 * PAGE_BYTES, TARGET + 2 * PAGE_BYTES)])
    store(board, IOVA, b"a" * 3 * PAGE_BYTES)
    assert [in_dram(board, TARGET + at * PAGE_BYTES, 1) for at in range(3)] == [b"a", b"\0", b"a"]
    assert load(board, IOVA + PAGE_BYTES - 8, 16) == op.Fault(ABORTED.kind, IOVA + PAGE_BYTES)
    assert [one.address for one in events(board)] == [IOVA + PAGE_BYTES] * 2


def test_another_slot_is_another_device() -> None:
    board = brought_up()
    attached(board)
    assert load(board, slot=SLOT + 1) == ABORTED
    (told,) = events(board)
    assert told.device == REQUESTER + 8


@pytest.mark.parametrize("slot", [-1, 8, 1 << 60])
def test_an_empty_slot_answers_nothing(slot: int) -> None:
    board = brought_up()
    assert load(board, slot=slot) == ABORTED
    store(board, slot=slot)
    assert events(board) == []


@pytest.mark.parametrize("iova", [-1, (1 << 64) - 8, 1 << 64, 1 << 80])
def test_an_address_that_no_request_can_carry_is_refused(iova: int) -> None:
    board = brought_up()
    answer = load(board, iova)
    assert isinstance(answer, op.Fault)
    store(board, iova)


def test_where_no_memory_answers_the_read_fails_and_the_iommu_says_nothing() -> None:
    board = brought_up()
    attached(board, [(IOVA, 1 << 40)])
    assert load(board) == ABORTED
    store(board)
    assert events(board) == []


# Whose key.

SME, TSME = Platform(mode=HostMode.SME), Platform(mode=HostMode.TSME)


def through_the_host_key(board: Board) -> bytes:
    return board.controller.read(TARGET, 16, HOST_KEY)


@pytest.mark.parametrize("product", ["Naples", "Rome", "Milan", "Turin"])
def test_without_the_c_bit_a_device_sees_bytes_as_they_lie_in_dram(product: str) -> None:
    board = brought_up(product, SME)
    attached(board)
    board.controller.write(TARGET, OLD, HOST_KEY)
    assert load(board) == in_dram(board) != OLD
    store(board)
    assert in_dram(board) == WRITTEN != through_the_host_key(board)


@pytest.mark.parametrize("product", ["Naples", "Rome", "Milan", "Turin"])
def test_the_c_bit_in_the_iommu_entry_has_the_engine_decrypt_and_encrypt(product: str) -> None:
    board = brought_up(product, SME)
    attached(board, c_bit=1 << board.product.c_bit)
    board.controller.write(TARGET, OLD, HOST_KEY)
    assert load(board) == OLD
    store(board)
    assert through_the_host_key(board) == WRITTEN != in_dram(board)


@pytest.mark.parametrize("product", ["Naples", "Rome"])
@pytest.mark.parametrize("enabled", [True, False])
def test_so_does_the_c_bit_in_an_address_that_passes_untranslated(product: str, enabled: bool) -> None:
    board = brought_up(product, SME) if enabled else switched_on(product, SME)
    if enabled:
        do(board, Driver().write_entry(REQUESTER, DeviceTableEntry()))
    c_bit = 1 << board.product.c_bit
    board.controller.write(TARGET, OLD, HOST_KEY)
    assert load(board, TARGET | c_bit) == OLD
    assert load(board, TARGET) == in_dram(board) != OLD
    store(board, TARGET | c_bit)
    assert through_the_host_key(board) == WRITTEN


@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_under_tsme_every_requester_sees_what_the_host_wrote(product: str) -> None:
    board = brought_up(product, TSME)
    attached(board)
    assert host(board, op.HostWrite(TARGET, OLD)) == (None,)
    assert load(board) == OLD != in_dram(board)
    store(board)
    assert host(board, op.HostRead(TARGET, 16)) == (WRITTEN,)


def test_without_sme_the_c_bit_is_an_address_far_beyond_memory() -> None:
    board = brought_up("Rome")
    attached(board, c_bit=1 << board.product.c_bit)
    assert load(board) == ABORTED
    store(board)
    assert in_dram(board) == bytes(16)


def test_the_rmp_is_asked_about_the_page_whatever_the_c_bit_says() -> None:
    board = brought_up("Milan", SME)
    attached(board, c_bit=1 << board.product.c_bit)
    with_page(board, STATES["Guest-Valid"][0], validated=True)
    assert load(board) == ABORTED
    store(board)
    assert in_dram(board) == OLD


def test_tables_may_be_encrypted_as_the_pointers_to_them_say() -> None:
    board = brought_up("Rome", SME)
    c_bit, table = 1 << board.product.c_bit, TABLES + 64 * PAGE_BYTES
    entries = {0: table_pointer(table + PAGE_BYTES | c_bit, 1), PAGE_BYTES + 8: leaf(TARGET)}
    for at, entry in entries.items():
        board.controller.write(table + at, entry.to_bytes(8, "little"), HOST_KEY)
    root = DeviceTableEntry(levels=2, root=table | c_bit, domain=DOMAIN)
    driver = Driver()
    do(board, driver.write_entry(REQUESTER, root))
    board.dram.write(TARGET, OLD)
    assert load(board, PAGE_BYTES) == OLD
    do(board, driver.write_entry(REQUESTER, replace(root, root=table, domain=DOMAIN + 1)))
    assert isinstance(load(board, PAGE_BYTES), op.Fault)
