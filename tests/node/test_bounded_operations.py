"""One operation is bounded work whatever its numbers and whatever tables lie in memory, and a store is all or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from iommu_boards import attached, brought_up
from paged_guests import FRAMES_SPA, LONG, MEMORY_SPA, MIB, PAGE, A, C, D, P, PagedGuest, U, W, new_board, paged_guest

from node import operations as op
from node.generation import Generation
from node.nested_page_table import MOST_WALKS
from node.operations import Fault, FaultKind
from node.platform import Platform

SEV, SNP, PLAIN = Generation.SEV, Generation.SEV_SNP, Generation.PLAIN
END = 64 * MIB
"""Of a test board's memory."""
TABLE, LEAF = P | W | U | A | D, P | W | U | A | D
OWN_ROOT = 40 * MIB
"""Where a test writes nested tables by itself."""


def own_tables(guest: PagedGuest, pages: dict[int, int], c_bit: int = 0) -> None:
    """Nested tables that the hypervisor wrote itself: pages of the first 2 MiB, by number."""
    for level in range(3):
        word = OWN_ROOT + (level + 1) * PAGE | TABLE
        assert guest.host(op.HostWrite(OWN_ROOT + level * PAGE, word.to_bytes(8, "little"))) == (None,)
    for number, spa in pages.items():
        word = spa | LEAF | c_bit
        at = OWN_ROOT + 3 * PAGE + number * 8
        assert guest.host(op.HostWrite(at, word.to_bytes(8, "little"))) == (None,)
    before = guest.board.vmcb(guest.vm, 0)
    block = op.VmcbWrite(
        guest.vm, 0, before.asid, before.generation.name, before.save_area_spa, nested_cr3=OWN_ROOT
    )
    assert guest.host(block) == (None,)


@pytest.mark.parametrize("tlb", [None, 64])
@pytest.mark.parametrize("generation", [PLAIN, SEV])
def test_a_store_that_ends_outside_of_memory_stores_nothing(generation: Generation, tlb: int | None) -> None:
    guest = paged_guest(generation, LONG, tlb=tlb)
    own_tables(guest, {0: MEMORY_SPA, 1: END, 2: MEMORY_SPA + PAGE})
    private = generation is SEV
    assert guest.do(op.Write(0, b"kept" * 1024, private)) is None
    before = guest.board.dram.read(MEMORY_SPA, 2 * PAGE)
    assert guest.do(op.Write(0, bytes(3 * PAGE), private)) == Fault(FaultKind.MACHINE_CHECK, 0)
    assert guest.board.dram.read(MEMORY_SPA, 2 * PAGE) == before


def test_a_store_by_virtual_address_that_ends_outside_of_memory_stores_nothing() -> None:
    guest = paged_guest(PLAIN, LONG)
    for page in (0, 1):
        guest.map(0x7000_0000 + page * PAGE, 0x2000 + page * PAGE | P | W | U)
    assert guest.do(op.VirtualWrite(0x7000_0000, b"kept" * 2048)) is None
    mapped = guest.board.nested_table(guest.vm)
    assert mapped.map(0x3000, END, PAGE) == 0
    before = guest.board.dram.read(MEMORY_SPA + 0x2000, PAGE)
    answer = guest.do(op.VirtualWrite(0x7000_0000, bytes(2 * PAGE)))
    assert answer == Fault(FaultKind.MACHINE_CHECK, 0x7000_0000)
    assert guest.board.dram.read(MEMORY_SPA + 0x2000, PAGE) == before


def test_a_store_through_two_kinds_of_mapping_one_of_which_has_no_key_stores_nothing() -> None:
    guest = paged_guest(PLAIN, LONG)  # on a host without memory encryption
    own_tables(guest, {0: MEMORY_SPA})
    own_tables(guest, {1: MEMORY_SPA + PAGE}, C)
    assert guest.do(op.Write(0, bytes(2 * PAGE), False)) == Fault(FaultKind.MACHINE_CHECK, 0)
    assert guest.do(op.Write(0, b"kept", False)) is None
    assert guest.do(op.Write(0, bytes(2 * PAGE), False)) == Fault(FaultKind.MACHINE_CHECK, 0)
    assert guest.do(op.Read(0, 4, False)) == b"kept"


def test_of_a_guest_whose_key_has_gone_lines_are_stored_to_all_or_none() -> None:
    board = new_board(product="Rome")
    guest = paged_guest(SEV, LONG, board=board)
    cached = paged_guest(SEV, LONG, board=new_board(product="Rome", caches=True))
    for one in (guest, cached):
        asid = one.board.vmcb(one.vm, 0).asid
        own_tables(one, {0: MEMORY_SPA, 1: MEMORY_SPA + 2 * PAGE})
        assert one.do(op.Write(PAGE - 64, b"line" * 16)) is None  # its line stays in the cache, if there is one
        one.board.controller.remove_key(asid)
        assert one.do(op.Write(PAGE - 16, bytes(32))) == Fault(FaultKind.MACHINE_CHECK, PAGE - 16)
    assert cached.do(op.Read(PAGE - 64, 64)) == b"line" * 16


@pytest.mark.parametrize("length", [op.MOST_BYTES + 1, 1 << 40, 1 << 70])
def test_no_load_answers_more_than_the_most(length: int) -> None:
    board = brought_up("Milan", Platform())
    attached(board)
    protection = Fault(FaultKind.GENERAL_PROTECTION, 0x1000)
    assert board.execute_host((op.HostRead(0x1000, length),)) == (protection,)
    assert board.execute_host((op.DeviceRead(3, 0x40_0000, length),)) == (Fault(FaultKind.DMA_ABORTED, 0x40_0000),)
    guest = paged_guest(SNP)
    assert guest.do(op.Read(0x1000, length)) == protection
    assert guest.do(op.VirtualRead(0x1000, length)) == protection
    assert guest.do(op.Fetch(0x1000, length)) == protection


def test_no_store_by_virtual_address_is_longer_than_the_most() -> None:
    answer = paged_guest(SNP).do(op.VirtualWrite(0, bytes(op.MOST_VIRTUAL_BYTES + 1)))
    assert answer == Fault(FaultKind.GENERAL_PROTECTION, 0)


class CountedWalks:
    """How often a board's walker reads an entry or a table."""

    def __init__(self, guest: PagedGuest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        memory = guest.board.walks
        read: Callable[[int, int, int], bytes] = memory.read

        def counted(spa: int, length: int, asid: int) -> bytes:
            self.reads += 1
            return read(spa, length, asid)

        monkeypatch.setattr(memory, "read", counted)


LEVELS = 4


def test_honest_tables_are_walked_once_for_each_of_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = paged_guest(SNP)
    guest.host(op.HostRead(FRAMES_SPA, 8))  # from now on the bytes count
    walks = CountedWalks(guest, monkeypatch)
    assert guest.do(op.PValidate(0, 8 * MIB, large=False)) == op.PValidateResult(0, unchanged=True)
    assert walks.reads <= 8 // 2 * (LEVELS + 1)


def test_hostile_tables_end_an_operation_after_so_many_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = paged_guest(SNP)
    root = MEMORY_SPA - MIB
    entry = (root | TABLE).to_bytes(8, "little") * 512
    before = guest.board.vmcb(guest.vm, 0)
    block = op.VmcbWrite(guest.vm, 0, before.asid, "SEV_SNP", before.save_area_spa, nested_cr3=root)
    assert guest.host(op.HostWrite(root, entry), block) == (None, None)
    monkeypatch.setattr("node.nested_page_table.MOST_WALKS", 100)
    walks = CountedWalks(guest, monkeypatch)
    answer = guest.do(op.PValidate(0, 1 << 40, large=False))
    assert isinstance(answer, Fault)
    assert (answer.kind, answer.address) == (FaultKind.NESTED_PAGE_FAULT, 100 * PAGE)
    assert walks.reads <= 100 * (LEVELS + 1)
    assert (MOST_WALKS - 1) * PAGE == op.MOST_BYTES  # a load that is short enough needs no more, wherever it begins
