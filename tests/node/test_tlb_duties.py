"""Stale translations: what a poke into a table changes only after a miss, and who owes the flushes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from paged_guests import LONG, MEMORY_SPA, MIB, PAE, PAGE, ROOT, A, C, D, G, P, PagedGuest, W, new_board, paged_guest

from node import operations as op
from node.generation import Generation
from node.host_instructions import VMEXIT_INVALID
from node.operations import FaultKind
from node.physical_port import PhysicalPort
from node.platform import Protection
from node.tlb import TlbControl
from node.vmsa import read_field
from psp.system_bus import RmpEntry

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
GVA, GPA = 0x7F12_3456_7000, 0x20_0000
ENTRIES = 64


def buffered(generation: Generation, *areas: dict[str, int], **more: object) -> PagedGuest:
    """A guest with a page whose translations are remembered, and another page beside it in memory."""
    one = paged_guest(generation, *areas, tlb=ENTRIES, **more)  # type: ignore[arg-type]
    private = C if one.private else 0
    one.map(GVA, GPA | P | W | private)
    assert one.guest(op.Write(GPA, b"here"), op.Write(GPA + PAGE, b"there")) == (None, None)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    return one


def flush(one: PagedGuest, vcpu: int = 0) -> None:
    """VMRUN with TLB_CONTROL for the guest's ASID."""
    vmcb = one.board.vmcb(one.vm, vcpu)
    again = op.VmcbWrite(one.vm, vcpu, vmcb.asid, vmcb.generation.name, vmcb.save_area_spa, tlb_control=3)
    assert one.host(again, op.VmRun(one.vm, vcpu)) == (None, 0)


def nested_entry(one: PagedGuest, gpa: int) -> int:
    """Where the nested entry of a 4 KiB page below 1 GiB lies: through the tables' bytes."""
    table = one.board.nested_table(one.vm).root
    assert table is not None
    for shift in (39, 30, 21):
        word = int.from_bytes(one.board.dram.read(table + (gpa >> shift & 511) * 8, 8), "little")
        table = word & 0x000F_FFFF_FFFF_F000
    return table + (gpa >> 12 & 511) * 8


LEAF = P | W | 4 | A | D


def by_store(one: PagedGuest, at: int, entry: bytes) -> None:
    assert one.host(op.HostWrite(at, entry)) == (None,)


def by_dimm(one: PagedGuest, at: int, entry: bytes) -> None:
    PhysicalPort(one.board.dram).poke(at, entry)


def by_alias(one: PagedGuest, at: int, entry: bytes) -> None:
    PhysicalPort(one.board.dram).alias(52 * MIB, PAGE, at // PAGE * PAGE)
    assert one.host(op.HostWrite(52 * MIB + at % PAGE, entry)) == (None,)


def by_dma(one: PagedGuest, at: int, entry: bytes) -> None:
    assert one.host(op.DeviceWrite(3, at, entry)) == (None,)


Poke = Callable[[PagedGuest, int, bytes], None]


@pytest.mark.parametrize("poke", [by_store, by_dimm, by_alias, by_dma])
@pytest.mark.parametrize("generation", [PLAIN, SEV, ES])
def test_a_poke_of_a_nested_table_is_seen_after_a_miss_and_not_before(generation: Generation, poke: Poke) -> None:
    one = buffered(generation)
    poke(one, nested_entry(one, GPA), (MEMORY_SPA + GPA + PAGE | LEAF).to_bytes(8, "little"))
    assert one.guest(op.VirtualRead(GVA, 5), op.Read(GPA, 4)) == (b"here" + bytes_after(one), b"here")
    flush(one)
    assert one.guest(op.VirtualRead(GVA, 5), op.Read(GPA, 5)) == (b"there", b"there")


def bytes_after(one: PagedGuest) -> bytes:
    """The fifth byte of the page at GPA, by the other translation that leads there."""
    answer = one.do(op.Read(GPA + 4, 1))
    assert isinstance(answer, bytes)
    return answer


@pytest.mark.parametrize("poke", [by_store, by_dimm, by_alias, by_dma])
def test_a_poke_of_a_guests_own_table_is_seen_after_a_miss_and_not_before(poke: Poke) -> None:
    one = buffered(PLAIN)
    entry = one.map(GVA, GPA | P | W | A)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    poke(one, MEMORY_SPA + entry, (GPA + PAGE | P | W | A).to_bytes(8, "little"))
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    assert one.guest(op.InvalidatePage(GVA), op.VirtualRead(GVA, 5)) == (None, b"there")


@pytest.mark.parametrize("generation", [SEV, ES])
def test_a_replayed_table_of_an_encrypted_guest_is_seen_after_a_miss_and_not_before(generation: Generation) -> None:
    """The host knows no key, but it has the ciphertext that lay there before."""
    one = buffered(generation)
    entry = one.map(GVA, GPA | P | W | C | A)
    at = (MEMORY_SPA + entry) // PAGE * PAGE
    (old,) = one.host(op.HostRead(at, PAGE))
    assert isinstance(old, bytes)
    one.map(GVA, GPA + PAGE | P | W | C | A)
    assert one.guest(op.InvalidatePage(GVA), op.VirtualRead(GVA, 5)) == (None, b"there")
    assert one.host(op.HostWrite(at, old)) == (None,)
    assert one.do(op.VirtualRead(GVA, 5)) == b"there"
    flush(one)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"


def test_without_buffers_every_access_walks() -> None:
    one = paged_guest(PLAIN)
    assert one.board.tlb is None
    entry = one.map(GVA, GPA | P | W)
    assert one.do(op.Write(GPA + PAGE, b"there")) is None
    one.do(op.VirtualRead(GVA, 4))
    by_dimm(one, MEMORY_SPA + entry, (GPA + PAGE | P | W).to_bytes(8, "little"))
    assert one.do(op.VirtualRead(GVA, 5)) == b"there"


def test_what_is_remembered_is_not_walked_again() -> None:
    one = buffered(SNP)
    tlb = one.board.tlb
    assert tlb is not None
    misses = tlb.misses
    assert one.do(op.VirtualRead(GVA + 8, 4)) == one.do(op.VirtualRead(GVA + 8, 4))
    assert tlb.misses == misses
    # A store needs D set, so it walks once more; the next does not.
    entry = one.word(one.map(GVA, GPA | P | W | C | A))
    assert not entry & D
    assert one.guest(op.VirtualWrite(GVA, b"x"), op.VirtualWrite(GVA, b"y")) == (None, None)


def test_a_store_through_a_remembered_load_sets_dirty() -> None:
    one = buffered(SEV)
    leaf = one.map(GVA, GPA | P | W | C)
    assert one.do(op.InvalidatePage(GVA)) is None
    one.do(op.VirtualRead(GVA, 1))
    assert one.word(leaf) & (A | D) == A
    assert one.do(op.VirtualWrite(GVA, b"x")) is None
    assert one.word(leaf) & (A | D) == A | D


@pytest.mark.parametrize("size", [1, 3])
def test_buffers_of_any_size_give_the_same_answers(size: int) -> None:
    small, none = paged_guest(SNP, tlb=size), paged_guest(SNP)
    for one in (small, none):
        for number in range(4):
            one.map(GVA + number * PAGE, GPA + number * PAGE | P | W | C)
    data = bytes(range(256)) * 64
    for one in (small, none):
        assert one.guest(op.VirtualWrite(GVA, data[: 4 * PAGE]), op.VirtualRead(GVA, 4 * PAGE))[1] == data[: 4 * PAGE]
    assert small.do(op.Read(GPA, 4 * PAGE)) == none.do(op.Read(GPA, 4 * PAGE))


# RMP entries.


def test_rmpupdate_takes_a_page_away_from_those_who_remember_it() -> None:
    one = buffered(SNP)
    assert one.host(op.RmpUpdate(MEMORY_SPA + GPA, PAGE, RmpEntry())) == (0,)
    answer = one.do(op.VirtualRead(GVA, 1))
    assert answer == op.Fault(FaultKind.RMP_FAULT, GPA, 0x5_8000_0005)


def test_pvalidate_rescinds_what_is_remembered() -> None:
    one = buffered(SNP)
    assert one.do(op.PValidate(GPA, PAGE, large=False, validate=False)) == op.PValidateResult(0, unchanged=False)
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.PAGE_NOT_VALIDATED, GPA)


def test_rmpadjust_takes_a_right_from_another_vcpu_that_remembers_it() -> None:
    one = buffered(SNP, LONG, {**LONG, "VMPL": 1})
    for gpa in (*range(ROOT, ROOT + 4 * PAGE, PAGE), GPA):
        assert one.do(op.RmpAdjust(gpa, PAGE, large=False, target=1, permissions=3)) == 0
    assert one.do(op.VirtualRead(GVA, 4), vcpu=1) == b"here"
    assert one.do(op.RmpAdjust(GPA, PAGE, large=False, target=1, permissions=0)) == 0
    assert one.do(op.VirtualRead(GVA, 4), vcpu=1) == op.Fault(FaultKind.RMP_FAULT, GPA, 0x15_8000_0005)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"


def test_firmware_changes_entries_that_are_remembered() -> None:
    one = buffered(SNP)
    assert one.board.rmp is not None
    one.board.rmp.set_entry(MEMORY_SPA + GPA, RmpEntry(assigned=True, immutable=True, gpa=GPA, asid=1, validated=True))
    answer = one.do(op.VirtualRead(GVA, 1))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT


def test_a_page_becomes_assigned_under_a_shared_translation() -> None:
    one = buffered(PLAIN)
    page = MEMORY_SPA + GPA
    assert one.do(op.VirtualWrite(GVA, b"mine")) is None
    assert one.host(op.RmpUpdate(page, PAGE, RmpEntry(assigned=True, asid=7))) == (0,)
    answer = one.do(op.VirtualWrite(GVA, b"evil"))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT


def test_entries_that_are_bytes_drop_what_is_remembered_too() -> None:
    one = buffered(SNP)
    rmp = one.board.rmp
    assert rmp is not None
    one.host(op.HostRead(rmp.layout.entry_spa((MEMORY_SPA + GPA) // PAGE), 16))
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    assert one.do(op.PValidate(GPA, PAGE, large=False, validate=False)) == op.PValidateResult(0, unchanged=False)
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.PAGE_NOT_VALIDATED, GPA)


def test_a_raw_poke_of_an_rmp_entry_is_seen_after_a_miss_and_not_before() -> None:
    one = buffered(SNP)
    rmp = one.board.rmp
    assert rmp is not None
    PhysicalPort(one.board.dram).poke(rmp.layout.entry_spa((MEMORY_SPA + GPA) // PAGE), bytes(16))
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    flush(one)
    answer = one.do(op.VirtualRead(GVA, 4))
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT


# What the guest flushes.


def test_a_new_cr3_forgets_all_but_global_pages() -> None:
    one = buffered(SEV, {**LONG, "CR4": PAE | 1 << 7})
    one.map(GVA + PAGE, GPA | P | W | G | C)
    assert one.do(op.VirtualRead(GVA + PAGE, 4)) == b"here"
    for gva in (GVA, GVA + PAGE):
        one.map(gva, GPA + PAGE | P | W | G | C)
    assert one.guest(op.VirtualRead(GVA, 4), op.VirtualRead(GVA + PAGE, 4)) == (b"here", b"here")
    assert one.do(op.WriteControl("CR3", ROOT)) is None
    assert one.guest(op.VirtualRead(GVA, 5), op.VirtualRead(GVA + PAGE, 4)) == (b"there", b"here")
    assert one.do(op.WriteControl("CR4", PAE)) is None
    assert one.do(op.VirtualRead(GVA + PAGE, 5)) == b"there"


# What the hypervisor owes, and what SNP's hardware does itself (row 22: TLB poisoning).


def poisoned(generation: Generation, *disabled: Protection, control: TlbControl = TlbControl.NOTHING) -> PagedGuest:
    """Two vCPUs of one guest with tables of their own, each with another page at one address.

    The first has run on the thread and its translation lies there; then the second is entered, with ``control``.
    """
    other = 0x13_0000
    one = buffered(generation, LONG, {**LONG, "CR3": other}, disabled=disabled, tlb_control=int(control))
    one.next_table, one.tables = 0x14_0000, {}
    assert one.do(op.Write(other, bytes(PAGE))) is None
    one.map(GVA, GPA + PAGE | P | W | (C if one.private else 0), root=other)
    assert one.host(op.VmRun(one.vm, 0)) == (0,)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    assert one.host(op.VmRun(one.vm, 1)) == (0,)
    return one


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES])
def test_without_a_flush_a_vcpu_uses_what_another_of_the_same_asid_left(generation: Generation) -> None:
    assert poisoned(generation).do(op.VirtualRead(GVA, 4), vcpu=1) == b"here"


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
@pytest.mark.parametrize("control", [TlbControl.ALL, TlbControl.ASID, TlbControl.ASID_NOT_GLOBAL])
def test_with_the_flush_that_the_hypervisor_owes_it_does_not(generation: Generation, control: TlbControl) -> None:
    assert poisoned(generation, control=control).do(op.VirtualRead(GVA, 5), vcpu=1) == b"there"


def test_the_hardware_flushes_for_snp_guests_whatever_the_hypervisor_says() -> None:
    one = poisoned(SNP)
    assert one.do(op.VirtualRead(GVA, 5), vcpu=1) == b"there"
    assert one.host(op.VmRun(one.vm, 0)) == (0,)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"


def test_with_tlb_ids_not_enforced_snp_is_as_open_as_sev() -> None:
    assert poisoned(SNP, Protection.TLB_ID).do(op.VirtualRead(GVA, 4), vcpu=1) == b"here"


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_a_vcpu_that_comes_back_to_a_thread_finds_what_it_left_unless_the_hardware_looks(
    generation: Generation,
) -> None:
    one = buffered(generation)
    assert one.host(op.VmPreempt(one.vm, 0), op.VmRun(one.vm, 0, core=1)) == (None, 0)
    one.map(GVA, GPA + PAGE | P | W | C)
    # INVLPG reaches the thread it runs on, and no other.
    assert one.guest(op.InvalidatePage(GVA), op.VirtualRead(GVA, 5)) == (None, b"there")
    assert one.host(op.VmPreempt(one.vm, 0), op.VmRun(one.vm, 0, core=0)) == (None, 0)
    assert one.do(op.VirtualRead(GVA, 5)) == (b"there" if generation is SNP else b"here" + bytes_after(one))


def test_a_vcpu_that_stays_on_its_thread_keeps_its_translations() -> None:
    one = buffered(SNP)
    tlb = one.board.tlb
    assert tlb is not None
    assert one.host(op.VmRun(one.vm, 0)) == (0,)
    one.do(op.VirtualRead(GVA, 4))
    misses = tlb.misses
    area = one.board.save_areas.load(one.board.vmcb(one.vm, 0))
    before = [read_field(area, name) for name in ("PCPU_ID", "TLB_ID")]
    assert one.host(op.VmRun(one.vm, 0)) == (0,)
    assert one.do(op.VirtualRead(GVA, 4)) == b"here"
    assert tlb.misses == misses
    area = one.board.save_areas.load(one.board.vmcb(one.vm, 0))
    assert [read_field(area, name) for name in ("PCPU_ID", "TLB_ID")] == before


@pytest.mark.parametrize("generation", [PLAIN, SEV, SNP])
def test_guests_of_other_asids_share_no_translation(generation: Generation) -> None:
    board = new_board(tlb=ENTRIES)
    guests = [paged_guest(generation, board=board, asid=asid) for asid in (1, 2)]
    for number, one in enumerate(guests):
        one.map(GVA, GPA | P | W | (C if one.private else 0))
        assert one.do(op.VirtualWrite(GVA, bytes([65 + number]) * 4)) is None
    assert [one.do(op.VirtualRead(GVA, 4)) for one in guests] == [b"AAAA", b"BBBB"]


def with_the_same_asid(one: PagedGuest, generation: Generation, gpa: int) -> op.Answer:
    """What a VM of another kind loads that its host gives the guest's ASID and hardware thread, and nested tables."""
    vmcb = one.board.vmcb(one.vm, 0)
    root = one.board.nested_table(one.vm).root
    assert root is not None
    block = op.VmcbWrite("other", 0, vmcb.asid, generation.name, 40 * MIB, nested_cr3=root)
    assert one.host(block) == (None,)
    other = one.board.vmcb("other", 0)
    assert (other.core, other.vmpl, other.rmp_checked) == (vmcb.core, 0, generation is SNP)
    (answer,) = one.board.execute_guest(other, (op.Read(gpa, 4),))
    return answer


@pytest.mark.parametrize("generation", [SEV, ES])
def test_what_passed_for_the_owner_of_a_page_has_not_passed_for_a_guest_that_only_shares_its_asid(
    generation: Generation,
) -> None:
    one = buffered(SNP)
    assert one.do(op.Read(GPA, 4)) == b"here"
    answer = with_the_same_asid(one, generation, GPA)
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.RMP_FAULT
    # Nor has what the RMP does not own passed for one that may use only what is its own.
    rmp = one.board.rmp
    assert rmp is not None
    rmp.set_entry(MEMORY_SPA + GPA, RmpEntry())
    assert isinstance(with_the_same_asid(one, generation, GPA), bytes)
    again = one.do(op.Read(GPA, 4))
    assert isinstance(again, op.Fault)
    assert again.kind is FaultKind.RMP_FAULT


@pytest.mark.parametrize(("control", "core"), [(2, 0), (4, 0), (255, 0), (-1, 0), (0, -1), (0, 1 << 20)])
def test_a_control_block_that_vmrun_cannot_follow_is_refused(control: int, core: int) -> None:
    one = paged_guest(SEV)
    area = one.board.vmcb(one.vm, 0).save_area_spa
    asid = one.board.vmcb(one.vm, 0).asid
    vmcb = op.VmcbWrite(one.vm, 0, asid, SEV.name, area, tlb_control=control)
    assert one.host(vmcb, op.VmRun(one.vm, 0, core=core)) == (None, VMEXIT_INVALID)
