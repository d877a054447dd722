"""A guest's loads and stores of a card: what the nested tables, the RMP and the fence make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from card_laboratory import CARDS, MMIO_GPA, NotingPort, accept, give_back, map_page, port_of, with_noting_ports
from rmp_laboratory import GUEST_SPA, Laboratory, page_of

from node import operations as op
from node.generation import Generation
from node.platform import Platform
from node.rmp_faults import ERROR_ENC, ERROR_RMP, ERROR_VMPL, ERROR_WRITE
from node.vmexit import ExitCode
from psp.system_bus import PAGE_BYTES

LOAD, STORE = op.MmioLoad(MMIO_GPA, private=True), op.MmioStore(MMIO_GPA, 7, private=True)
SHARED_LOAD, SHARED_STORE = op.MmioLoad(MMIO_GPA), op.MmioStore(MMIO_GPA, 7)


@pytest.fixture(scope="module")
def made() -> Laboratory:
    """Both guests see the first page of the first card at the same address."""
    lab = with_noting_ports()
    for vm in ("one", "two"):
        map_page(lab, port_of(lab).window.base, vm)
    return lab


@pytest.fixture
def lab(made: Laboratory) -> Iterator[Laboratory]:
    port = port_of(made)
    port.seen.clear()
    port.registers.clear()
    yield made
    give_back(made, port.window.base)
    for vm in ("one", "two"):
        map_page(made, port.window.base, vm)


def port(lab: Laboratory) -> NotingPort:
    return port_of(lab)


def fault(lab: Laboratory, one: op.GuestOperation, vm: str = "one", vmpl: int = 0) -> op.Fault:
    (answer,) = lab.guest(vm, one, vmpl=vmpl)
    assert isinstance(answer, op.Fault)
    assert port(lab).seen == []
    return answer


def test_a_validated_page_is_reached_in_private_with_the_t_bit_and_without_an_exit(lab: Laboratory) -> None:
    base = port(lab).window.base
    accept(lab, base)
    assert lab.guest("one", STORE, LOAD) == (None, 7)
    assert port(lab).seen == [("store", base, True), ("load", base, True)]
    assert lab.board.exit_work == []


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_each_width_loads_so_many_bytes(lab: Laboratory, length: int) -> None:
    base = port(lab).window.base
    accept(lab, base)
    port(lab).registers[base + 8] = 0x0807_0605_0403_0201
    (found,) = lab.guest("one", op.MmioLoad(MMIO_GPA + 8, length, private=True))
    assert found == 0x0807_0605_0403_0201 & (1 << 8 * length) - 1


@pytest.mark.parametrize("one", [LOAD, STORE])
def test_a_page_that_firmware_has_not_validated_is_vc_404(lab: Laboratory, one: op.GuestOperation) -> None:
    accept(lab, port(lab).window.base, validated=False)
    assert fault(lab, one).kind is op.FaultKind.PAGE_NOT_VALIDATED


@pytest.mark.parametrize("one", [LOAD, STORE])
@pytest.mark.parametrize(("asid", "gpa"), [(2, MMIO_GPA), (1, MMIO_GPA + PAGE_BYTES), (0, 0)])
def test_a_page_that_is_another_s_or_at_another_address_is_refused(
    lab: Laboratory, one: op.GuestOperation, asid: int, gpa: int
) -> None:
    if asid:
        accept(lab, port(lab).window.base, asid, gpa)
    found = fault(lab, one)
    wanted = ERROR_RMP | ERROR_ENC | (ERROR_WRITE if one is STORE else 0)
    assert (found.kind, found.address, found.error & wanted) == (op.FaultKind.RMP_FAULT, MMIO_GPA, wanted)


def test_remapped_to_another_page_of_the_card_it_is_not_the_page_that_was_validated(lab: Laboratory) -> None:
    """Row 79: the hypervisor cannot swap two pages of a BAR, nor put memory in their place."""
    base = port(lab).window.base
    accept(lab, base)
    accept(lab, base + PAGE_BYTES, gpa=MMIO_GPA + PAGE_BYTES)
    for spa in (base + PAGE_BYTES, port_of(lab, 9).window.base, GUEST_SPA):
        map_page(lab, spa)
        assert fault(lab, LOAD).kind is op.FaultKind.RMP_FAULT
    give_back(lab, base + PAGE_BYTES)


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_vmpl_needs_the_right_that_vmpl0_gave_it(lab: Laboratory, vmpl: int) -> None:
    base = port(lab).window.base
    accept(lab, base)
    assert fault(lab, LOAD, vmpl=vmpl).error & ERROR_VMPL
    assert lab.guest("one", op.RmpAdjust(MMIO_GPA, PAGE_BYTES, large=False, target=vmpl, permissions=1)) == (0,)
    assert lab.guest("one", LOAD, vmpl=vmpl) == (0,)
    port(lab).seen.clear()
    assert fault(lab, STORE, vmpl=vmpl).error & ERROR_VMPL


def test_without_the_c_bit_it_goes_without_t_and_stores_only_to_what_is_the_hypervisor_s(lab: Laboratory) -> None:
    base = port(lab).window.base
    assert lab.guest("one", SHARED_STORE, SHARED_LOAD) == (None, 7)
    assert port(lab).seen == [("store", base, False), ("load", base, False)]
    port(lab).seen.clear()
    accept(lab, base)
    assert fault(lab, SHARED_STORE).kind is op.FaultKind.RMP_FAULT
    # A load passes as one of memory does; that the card refuses it is the card's.
    lab.guest("one", SHARED_LOAD)
    assert port(lab).seen == [("load", base, False)]


@pytest.mark.parametrize("private", [False, True])
def test_a_fenced_guest_reads_ones_and_its_stores_are_lost(lab: Laboratory, private: bool) -> None:
    base, dma = port(lab).window.base, lab.board.trusted_dma
    assert dma is not None
    if private:
        accept(lab, base)
    port(lab).registers[base] = 5
    dma.fences.error(1)
    one = op.MmioStore(MMIO_GPA, 7, private=private)
    assert lab.guest("one", one, op.MmioLoad(MMIO_GPA, 2, private=private)) == (None, 0xFFFF)
    assert (port(lab).seen, port(lab).registers[base]) == ([], 5)
    assert lab.guest("two", SHARED_LOAD) == (5,)  # the fence is of one ASID
    assert dma.fences.clear(1)
    assert lab.guest("one", op.MmioLoad(MMIO_GPA, private=private)) == (5,)


def test_where_nothing_is_mapped_a_private_access_faults_and_another_is_vc(lab: Laboratory) -> None:
    assert lab.host(op.NestedUnmap("one", MMIO_GPA, PAGE_BYTES)) == (None,)
    for one in (LOAD, STORE):
        found = fault(lab, one)
        assert (found.kind, bool(found.error & ERROR_ENC)) == (op.FaultKind.NESTED_PAGE_FAULT, True)
    for one in (SHARED_LOAD, SHARED_STORE):
        found = fault(lab, one)
        assert (found.kind, found.error) == (op.FaultKind.VMM_COMMUNICATION, ExitCode.NESTED_PAGE_FAULT)


@pytest.mark.parametrize(
    "one",
    [
        op.MmioLoad(MMIO_GPA + 2, private=True), op.MmioLoad(MMIO_GPA + 4, 8, private=True),
        op.MmioLoad(MMIO_GPA, 3, private=True), op.MmioStore(MMIO_GPA, 1 << 32, private=True),
        op.MmioStore(MMIO_GPA, -1, private=True), op.MmioLoad(MMIO_GPA + PAGE_BYTES - 4, 8, private=True),
        op.MmioLoad(0),
    ],
)  # fmt: skip
def test_what_is_no_access_to_a_register_is_gp_or_faults(lab: Laboratory, one: op.GuestOperation) -> None:
    accept(lab, port(lab).window.base)
    fault(lab, one)


def test_poked_into_the_table_in_memory_an_entry_counts_as_if_an_instruction_had_made_it(lab: Laboratory) -> None:
    """The entry of an MMIO page is 16 bytes in DRAM like any other; Validated is bit 62, the ASID in bits 60:51."""
    base, rmp = port(lab).window.base, lab.board.rmp
    assert rmp is not None
    accept(lab, base)
    at = rmp.layout.entry_spa(base // PAGE_BYTES)
    entry = lab.board.dram.read(at, 16)
    low = int.from_bytes(entry[:8], "little")
    assert (low & 1, low >> 51 & 0x3FF, low >> 62 & 1) == (1, 1, 1)
    lab.board.dram.write(at, (low & ~(1 << 62)).to_bytes(8, "little"))
    assert fault(lab, LOAD).kind is op.FaultKind.PAGE_NOT_VALIDATED
    lab.board.dram.write(at, (low & ~(0x3FF << 51) | 2 << 51).to_bytes(8, "little"))
    assert fault(lab, LOAD).kind is op.FaultKind.RMP_FAULT
    assert lab.guest("two", LOAD) == (0,)
    lab.board.dram.write(at, entry)


def test_the_host_stores_to_no_assigned_page_and_may_load(lab: Laboratory) -> None:
    base = port(lab).window.base
    assert lab.host(op.MmioWrite(base, 3, 4), op.MmioRead(base, 4)) == (None, 3)
    accept(lab, base)
    port(lab).seen.clear()
    refused, loaded = lab.host(op.MmioWrite(base, 9, 4), op.MmioRead(base, 4))
    assert isinstance(refused, op.Fault)
    assert (refused.kind, refused.error) == (op.FaultKind.RMP_FAULT, 0x8000_0003)
    assert (loaded, port(lab).seen) == (3, [("load", base, False)])


def test_a_guest_without_snp_reaches_a_card_in_the_clear_alone(lab: Laboratory) -> None:
    base = port(lab).window.base
    lab.host(op.NestedFrames("old", 5 << 20, 64 << 10), op.NestedMap("old", MMIO_GPA, base, PAGE_BYTES, large=False))
    lab.host(op.VmcbWrite("old", 0, 200, Generation.SEV.name, GUEST_SPA))
    assert lab.guest("old", STORE, LOAD) == (None, 0xFFFF_FFFF)
    assert port(lab).seen == []
    assert lab.guest("old", SHARED_STORE, SHARED_LOAD) == (None, 7)
    assert {tee for *_, tee in port(lab).seen} == {False}


def test_mmio_cannot_be_assigned_where_it_has_no_entries_nor_out_of_step(lab: Laboratory) -> None:
    port_1, port_9 = port(lab).window, port_of(lab, 9).window
    beyond = (port_9.end + (1 << 30)) // (1 << 30) * (1 << 30)
    assert lab.host(op.RmpUpdate(beyond, PAGE_BYTES, page_of(MMIO_GPA))) == (1,)
    assert lab.host(op.RmpUpdate(port_1.base + 8, PAGE_BYTES, page_of(MMIO_GPA))) == (1,)
    assert lab.host(op.RmpUpdate(port_1.base, PAGE_BYTES, replace(page_of(MMIO_GPA), gpa=1))) == (1,)


def test_what_a_core_remembers_of_a_page_is_gone_when_the_page_is_taken() -> None:
    lab = with_noting_ports(platform=Platform(cards=CARDS, tlb_entries=8))
    base = port(lab).window.base
    map_page(lab, base)
    accept(lab, base)
    assert lab.guest("one", STORE, LOAD, LOAD) == (None, 7, 7)
    port(lab).seen.clear()
    give_back(lab, base)
    assert fault(lab, LOAD).kind is op.FaultKind.RMP_FAULT
