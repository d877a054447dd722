"""Guests that walk their own tables: what is private, what faults, whose fault it is (APM volume 2, 5, 7.10, 15.34)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_guests import (
    LARGE,
    LMA,
    LME,
    LONG,
    MEMORY_BYTES,
    MEMORY_SPA,
    MIB,
    NX,
    NXE,
    PAE,
    PAGE,
    PE,
    PG,
    PS,
    ROOT,
    WP,
    A,
    C,
    D,
    P,
    PagedGuest,
    U,
    W,
    new_board,
    paged_guest,
)

from node import operations as op
from node.generation import Generation
from node.operations import FaultKind
from node.platform import HostMode
from node.vmsa import read_field
from psp.system_bus import RmpEntry

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
ALL, ENCRYPTED = (PLAIN, SEV, ES, SNP), (SEV, ES, SNP)
GVA, GPA = 0x7F12_3456_7000, 0x20_0000
DATA = b"sixteen octets!!" * 4
WALK, FINAL, ENC, RMP = 1 << 33, 1 << 32, 1 << 34, 1 << 31


def in_dram(one: PagedGuest, gpa: int, length: int) -> bytes:
    return one.board.dram.read(MEMORY_SPA + gpa, length)


@pytest.mark.parametrize("generation", ALL)
def test_a_virtual_address_is_the_page_that_the_guests_own_tables_say(generation: Generation) -> None:
    one = paged_guest(generation)
    one.map(GVA, GPA | P | W | (C if one.private else 0))
    one.map(GVA + PAGE, GPA + 5 * PAGE | P | W | (C if one.private else 0))
    assert one.guest(op.VirtualWrite(GVA + PAGE - 8, DATA), op.VirtualRead(GVA + PAGE - 8, 64)) == (None, DATA)
    assert one.guest(op.Read(GPA + PAGE - 8, 8), op.Read(GPA + 5 * PAGE, 56)) == (DATA[:8], DATA[8:])


@pytest.mark.parametrize("generation", ENCRYPTED)
def test_the_c_bit_of_the_leaf_decides_whose_key_a_page_has(generation: Generation) -> None:
    one = paged_guest(generation)
    one.map(GVA, GPA | P | W | C)
    assert one.do(op.VirtualWrite(GVA, DATA)) is None
    assert in_dram(one, GPA, 64) != DATA
    assert one.do(op.Read(GPA, 64)) == DATA
    if generation is SNP:
        one.host(op.RmpUpdate(MEMORY_SPA + GPA, PAGE, RmpEntry()))
    one.map(GVA, GPA | P | W)
    assert one.do(op.VirtualWrite(GVA, DATA)) is None
    assert in_dram(one, GPA, 64) == DATA


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES])
def test_without_the_guests_c_bit_the_nested_entrys_chooses_the_hosts_key_or_none(generation: Generation) -> None:
    one = paged_guest(generation, board=new_board(mode=HostMode.SME))
    one.map(GVA, GPA | P | W)
    spa = MEMORY_SPA + GPA
    for encrypted in (False, True):
        assert one.host(op.NestedMap(one.vm, GPA, spa, PAGE, encrypted=encrypted)) == (None,)
        assert one.guest(op.VirtualWrite(GVA, DATA), op.VirtualRead(GVA, 64)) == (None, DATA)
        clear, secret = one.host(op.HostRead(spa, 64), op.HostRead(spa, 64, encrypted=True))
        assert (clear == DATA, secret == DATA) == (not encrypted, encrypted)


def test_the_c_bit_is_an_address_bit_to_a_guest_without_encryption() -> None:
    one = paged_guest(PLAIN)
    one.map(GVA, GPA | P | W | C)
    # Milan's physical addresses have 48 bits, so bit 51 must be zero.
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.PAGE_FAULT, GVA, 0b1001)


@pytest.mark.parametrize("generation", ENCRYPTED)
@pytest.mark.parametrize("c_bits", [0, C])
def test_tables_and_code_are_private_whatever_the_c_bits_say(generation: Generation, c_bits: int) -> None:
    one = paged_guest(generation, {**LONG, "CR3": ROOT | c_bits})
    at = one.map(GVA, GPA | P)
    for table in list(one.tables):
        one.put(table, one.word(table) | c_bits)
    assert one.do(op.Write(GPA, DATA)) is None
    # Data of the page is shared, for its leaf has no C-bit; code from the same page is private.
    assert one.do(op.VirtualRead(GVA, 64)) == in_dram(one, GPA, 64) != DATA
    assert one.do(op.Fetch(GVA, 64)) == DATA
    # And what lies in DRAM of the tables is ciphertext.
    assert in_dram(one, at, 8) != one.word(at).to_bytes(8, "little")


@pytest.mark.parametrize("generation", ENCRYPTED)
def test_without_paging_everything_is_private(generation: Generation) -> None:
    one = paged_guest(generation, {"CR0": PE})
    assert one.do(op.VirtualWrite(GPA, DATA)) is None
    assert one.guest(op.Read(GPA, 64), op.VirtualRead(GPA, 64), op.Fetch(GPA, 64)) == (DATA,) * 3
    assert in_dram(one, GPA, 64) != DATA


@pytest.mark.parametrize("generation", ENCRYPTED)
@pytest.mark.parametrize("large", [False, True])
def test_in_legacy_mode_everything_is_private(generation: Generation, large: bool) -> None:
    one = paged_guest(generation, {"CR0": PE | PG, "CR4": 1 << 4, "CR3": ROOT})
    gva = 0xC040_0000
    if large:
        one.put(ROOT + (gva >> 22) * 4, 4 * MIB | P | W | PS, size=4)
    else:
        one.put(ROOT + (gva >> 22) * 4, ROOT + PAGE | P | W, size=4)
        one.put(ROOT + PAGE, 4 * MIB | P | W, size=4)
    assert one.do(op.VirtualWrite(gva, DATA)) is None
    assert one.guest(op.Read(4 * MIB, 64), op.VirtualRead(gva, 64)) == (DATA, DATA)
    assert in_dram(one, 4 * MIB, 64) != DATA
    assert one.do(op.VirtualRead(1 << 32, 1)) == op.Fault(FaultKind.GENERAL_PROTECTION, 1 << 32)


@pytest.mark.parametrize("generation", ENCRYPTED)
def test_pae_has_a_c_bit_and_private_code(generation: Generation) -> None:
    one = paged_guest(generation, {"CR0": PE | PG, "CR4": PAE, "CR3": ROOT | 0x60})
    gva = 0xC020_1000
    one.put(ROOT + 0x60 + 3 * 8, ROOT + PAGE | P)
    one.put(ROOT + PAGE + 8, ROOT + 2 * PAGE | P | W)
    one.put(ROOT + 2 * PAGE + 8, GPA | P | W | C)
    one.put(ROOT + 2 * PAGE + 16, GPA | P)
    assert one.do(op.VirtualWrite(gva, DATA)) is None
    assert one.guest(op.VirtualRead(gva, 64), op.Fetch(gva + PAGE, 64)) == (DATA, DATA)
    assert one.do(op.VirtualRead(gva + PAGE, 64)) == in_dram(one, GPA, 64)
    one.put(ROOT + 0x60 + 3 * 8, ROOT + PAGE | P | W)  # bit 1 must be zero at this level
    assert one.do(op.VirtualRead(gva, 1)) == op.Fault(FaultKind.PAGE_FAULT, gva, 0b1001)


def test_pages_of_2_mib_and_1_gib_are_followed() -> None:
    one = paged_guest(SEV)
    one.map(GVA, 2 * MIB | P | W | PS | C, level=2)
    one.map(1 << 40, 0 | P | PS | C, level=3)
    offset = GVA % LARGE
    assert one.do(op.VirtualWrite(GVA, DATA)) is None
    assert one.guest(op.Read(2 * MIB + offset, 64), op.VirtualRead((1 << 40) + 2 * MIB + offset, 64)) == (DATA, DATA)


# Virtual top of memory.

VTOM = 1 << 46
FEATURES = {**LONG, "SEV_FEATURES": 3, "VIRTUAL_TOM": VTOM}


def test_vtom_makes_the_low_half_private_and_shows_it_shared_above() -> None:
    one = paged_guest(SNP, FEATURES)
    one.map(GVA, GPA | P | W)
    one.map(GVA + PAGE, VTOM | GPA + PAGE | P | W)
    one.host(op.RmpUpdate(MEMORY_SPA + GPA + PAGE, PAGE, RmpEntry()))
    assert one.guest(op.VirtualWrite(GVA, DATA), op.VirtualWrite(GVA + PAGE, DATA)) == (None, None)
    assert in_dram(one, GPA, 64) != DATA
    assert one.do(op.Read(GPA, 64)) == DATA
    assert in_dram(one, GPA + PAGE, 64) == DATA


def test_under_vtom_entries_have_no_c_bit() -> None:
    one = paged_guest(SNP, FEATURES)
    one.map(GVA, GPA | P | W | C)
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.PAGE_FAULT, GVA, 0b1001)


# Rights.

USER = {**LONG, "CPL": 3}
NO_WP = {**LONG, "CR0": PG | PE}
SMEP, SMAP = {**LONG, "CR4": PAE | 1 << 20}, {**LONG, "CR4": PAE | 1 << 21}
AC = {**SMAP, "RFLAGS": 1 << 18}
NO_NXE = {**LONG, "EFER": LME | LMA}


@pytest.mark.parametrize(
    ("fields", "flags", "read", "write", "fetch"),
    [
        (LONG, P | W, None, None, None),
        (LONG, P | W | U, None, None, None),
        (LONG, P, None, 0b11, None),
        (LONG, W | U, 0, 0b10, 0b1_0000),
        (LONG, P | W | NX, None, None, 0b1_0001),
        (NO_WP, P, None, None, None),
        (USER, P | W | U, None, None, None),
        (USER, P | W, 0b101, 0b111, 0b1_0101),
        (USER, P | U, None, 0b111, None),
        (USER, P | U | NX, None, 0b111, 0b1_0101),
        ({**USER, "CR0": PG | PE}, P | U, None, 0b111, None),
        (SMEP, P | W | U, None, None, 0b1_0001),
        (SMEP, P | W, None, None, None),
        (SMAP, P | W | U, 0b1, 0b11, None),
        (AC, P | W | U, None, None, None),
        (NO_NXE, P | W | NX, 0b1001, 0b1011, 0b1_1001),
        (LONG, P | W | 1 << 49, 0b1001, 0b1011, 0b1_1001),
    ],
)
def test_a_page_grants_what_its_entries_and_the_control_registers_say(
    fields: dict[str, int], flags: int, read: int | None, write: int | None, fetch: int | None
) -> None:
    for operation, error in (
        (op.VirtualRead(GVA + 5, 1), read), (op.VirtualWrite(GVA + 5, b"x"), write), (op.Fetch(GVA + 5, 1), fetch)
    ):  # fmt: skip
        one = paged_guest(SEV, {**LONG, **fields})
        at = one.map(GVA, GPA | C | flags)
        answer = one.do(operation)
        if error is None:
            assert not isinstance(answer, op.Fault)
        else:
            assert answer == op.Fault(FaultKind.PAGE_FAULT, GVA + 5, error)
            # CR2 is where the hardware leaves the address.
            area = one.board.save_areas.load(one.board.vmcb(one.vm, 0))
            assert read_field(area, "CR2") == GVA + 5
            assert one.word(at) == GPA | C | flags


@pytest.mark.parametrize("level", [4, 3, 2])
@pytest.mark.parametrize(("taken", "error"), [(W, 0b111), (U, 0b101), (P, 0b100)])
def test_a_right_must_be_granted_at_every_level(level: int, taken: int, error: int) -> None:
    one = paged_guest(SEV, USER)
    one.map(GVA, GPA | C | P | W | U)
    above = list(one.tables)[4 - level]
    one.put(above, one.word(above) & ~taken)
    operation: op.GuestOperation = op.VirtualWrite(GVA, b"x") if taken == W else op.VirtualRead(GVA, 1)
    assert one.do(operation) == op.Fault(FaultKind.PAGE_FAULT, GVA, error)


def test_a_walk_marks_what_it_used() -> None:
    one = paged_guest(SNP)
    at = one.map(GVA, GPA | P | W | C)
    assert one.do(op.VirtualRead(GVA, 1)) == one.do(op.Read(GPA, 1))
    assert one.word(at) == GPA | P | W | C | A
    assert all(one.word(table) & A for table in one.tables)
    assert one.do(op.VirtualWrite(GVA, b"x")) is None
    assert one.word(at) == GPA | P | W | C | A | D
    assert not any(one.word(table) & D for table in one.tables)


@pytest.mark.parametrize("gva", [1 << 47, (1 << 64) - (1 << 47) - 1, 1 << 63, -1, 1 << 64])
def test_addresses_that_are_not_canonical_are_a_protection_fault(gva: int) -> None:
    answer = paged_guest(SEV).do(op.VirtualRead(gva, 1))
    assert answer == op.Fault(FaultKind.GENERAL_PROTECTION, gva)


def test_the_highest_half_is_the_kernels() -> None:
    one = paged_guest(SEV)
    gva = 0xFFFF_8000_0000_0000
    one.map(gva, GPA | P | W | C)
    assert one.guest(op.VirtualWrite(gva, DATA), op.VirtualRead(gva, 64)) == (None, DATA)


def test_a_store_over_two_pages_is_all_or_nothing() -> None:
    one = paged_guest(SEV)
    one.map(GVA, GPA | P | W | C)
    one.map(GVA + PAGE, GPA + PAGE | P | C)
    before = one.do(op.Read(GPA, PAGE))
    assert one.do(op.VirtualWrite(GVA + PAGE - 4, b"12345678")) == op.Fault(FaultKind.PAGE_FAULT, GVA + PAGE, 0b11)
    assert one.do(op.Read(GPA, PAGE)) == before


# Nested faults of the guest's walk.


@pytest.mark.parametrize("generation", [SEV, SNP])
@pytest.mark.parametrize("level", [4, 3, 2, 1])
def test_a_table_that_the_hypervisor_takes_away_is_a_nested_fault_during_the_walk(
    generation: Generation, level: int
) -> None:
    one = paged_guest(generation)
    leaf = one.map(GVA, GPA | P | W | C)
    at = [*one.tables, leaf][4 - level]
    one.host(op.NestedUnmap(one.vm, at // PAGE * PAGE, PAGE))
    # The walk is always a store to the nested tables, and of a user; the address is the entry's.
    enc = ENC if generation is SNP else 0
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, at, WALK | enc | 0b110)
    one.host(op.NestedMap(one.vm, at // PAGE * PAGE, MEMORY_SPA + at // PAGE * PAGE, PAGE))
    one.host(op.NestedUnmap(one.vm, GPA, PAGE))
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.NESTED_PAGE_FAULT, GPA, FINAL | enc | 0b100)


def test_a_table_that_is_not_the_guests_page_is_an_rmp_fault_during_the_walk() -> None:
    one = paged_guest(SNP)
    leaf = one.map(GVA, GPA | P | W | C)
    # Another page of the same guest in its place: CrossLine's and SEVered's way in.
    one.host(op.NestedMap(one.vm, leaf // PAGE * PAGE, MEMORY_SPA + GPA, PAGE))
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.RMP_FAULT, leaf, RMP | WALK | ENC | 0b101)


def test_a_table_that_was_not_accepted_is_told_to_the_guest() -> None:
    one = paged_guest(SNP)
    leaf = one.map(GVA, GPA | P | W | C)
    page = leaf // PAGE * PAGE
    assert one.do(op.PValidate(page, PAGE, large=False, validate=False)) == op.PValidateResult(0, unchanged=False)
    assert one.do(op.VirtualRead(GVA, 1)) == op.Fault(FaultKind.PAGE_NOT_VALIDATED, leaf)


def test_a_remapped_page_reads_as_another_without_an_rmp_and_faults_with_one() -> None:
    """Row 12 by virtual address: the guest reads its own other page."""
    for generation in ALL:
        one = paged_guest(generation)
        private = C if one.private else 0
        one.map(GVA, GPA | P | W | private)
        assert one.guest(op.Write(GPA, b"response"), op.Write(GPA + PAGE, b"a secret")) == (None, None)
        one.host(op.NestedMap(one.vm, GPA, MEMORY_SPA + GPA + PAGE, PAGE))
        answer = one.do(op.VirtualRead(GVA, 8))
        if generation is SNP:
            assert answer == op.Fault(FaultKind.RMP_FAULT, GPA, RMP | FINAL | ENC | 0b101)
        else:
            assert answer == b"a secret"


@pytest.mark.parametrize("generation", ALL)
def test_with_anothers_asid_a_walk_shows_the_victims_page_as_an_entry_unless_the_rmp_looks(
    generation: Generation,
) -> None:
    """CrossLine, first variant: the fault address is what eight bytes of the victim's page decrypt to."""
    victim = paged_guest(generation)
    secret = 0x1234_5000 | P | W | U
    victim.put(GPA, secret)
    board = victim.board
    attacker = paged_guest(generation, board=board, asid=2)
    # From SEV-ES on registers are encrypted too, so the attacker runs with the victim's save area.
    whose = "vm1" if generation in (ES, SNP) else "vm2"
    asid = board.vmcb("vm1", 0).asid
    vmcb = op.VmcbWrite("vm2", 0, asid, generation.name, board.vmcb(whose, 0).save_area_spa)
    only_root = (op.NestedUnmap("vm2", 0, MEMORY_BYTES), op.NestedMap("vm2", ROOT, MEMORY_SPA + GPA, PAGE))
    assert attacker.host(*only_root, vmcb, op.VmRun("vm2", 0)) == (None,) * 3 + (0,)
    answer = attacker.do(op.VirtualRead(0, 1))
    if generation is SNP:
        assert answer == op.Fault(FaultKind.RMP_FAULT, ROOT, RMP | WALK | ENC | 0b101)
        return
    assert isinstance(answer, op.Fault)
    assert answer.kind is FaultKind.NESTED_PAGE_FAULT
    assert answer.address == secret & ~0xFFF


@pytest.mark.parametrize("length", [-1, (64 << 20) + 1, 1 << 60])
def test_an_operation_of_impossible_length_is_refused_in_bounded_work(length: int) -> None:
    one = paged_guest(SEV)
    for entry in range(512):  # every address is the table itself
        one.put(ROOT + entry * 8, ROOT | P | W | C)
    for operation in (op.VirtualRead(0, length), op.Fetch(0, length)):
        assert one.do(operation) == op.Fault(FaultKind.GENERAL_PROTECTION, 0)
    assert one.do(op.VirtualRead(0, 8)) == (ROOT | P | W | C | A).to_bytes(8, "little")


# Control registers.


def test_a_guest_comes_from_reset_to_long_mode_by_its_own_stores() -> None:
    one = paged_guest(SNP, {})
    one.map(GVA, GPA | P | W | C)
    order = [("CR4", PAE), ("EFER", LME | NXE), ("CR3", ROOT | C), ("CR0", PG | PE | WP)]
    assert one.guest(*[op.WriteControl(*step) for step in order]) == (None,) * 4
    assert one.guest(op.VirtualWrite(GVA, DATA), op.Read(GPA, 64)) == (None, DATA)
    area = one.board.save_areas.load(one.board.vmcb(one.vm, 0))
    assert [read_field(area, name) for name in ("CR4", "CR3", "CR0")] == [PAE, ROOT | C, PG | PE | WP]
    assert read_field(area, "EFER") == LME | NXE | LMA
    # They are the vCPU's, not the board's: it leaves and comes back with them.
    one.host(op.VmRun(one.vm, 0))
    assert one.do(op.VirtualRead(GVA, 64)) == DATA


@pytest.mark.parametrize(
    ("fields", "register", "value"),
    [
        ({}, "CR0", PG),  # paging without protection
        ({"EFER": LME, "CR0": PE}, "CR0", PG | PE),  # long mode without PAE
        (LONG, "CR4", 0),  # PAE off in long mode
        (LONG, "CR4", PAE | 1 << 12),
        (LONG, "EFER", NXE),  # LME while paging
        (LONG, "CR3", 1 << 52),
        (LONG, "CR0", 1 << 32),
        (LONG, "CR4", -1),
        (LONG, "EFER", 1 << 64),
    ],
)
def test_a_store_that_the_processor_refuses_changes_nothing(fields: dict[str, int], register: str, value: int) -> None:
    one = paged_guest(SEV, fields)
    vmcb = one.board.vmcb(one.vm, 0)
    before = one.board.save_areas.load(vmcb)
    assert one.do(op.WriteControl(register, value)) == op.Fault(FaultKind.GENERAL_PROTECTION, 0)
    assert one.board.save_areas.load(vmcb) == before


def test_only_the_kernel_changes_control_registers_and_only_those_that_are_there() -> None:
    one = paged_guest(SEV, USER, LONG)
    for operation in (op.WriteControl("CR3", 0), op.InvalidatePage(0)):
        assert one.do(operation) == op.Fault(FaultKind.GENERAL_PROTECTION, 0)
        assert one.do(operation, vcpu=1) is None
    for name in ("CR2", "CPL", "VMPL", "SEV_FEATURES", ""):
        assert one.do(op.WriteControl(name, 0), vcpu=1) == op.Fault(FaultKind.UNDEFINED_OPCODE, 0)


def test_the_host_changes_registers_that_it_can_see_and_only_between_runs() -> None:
    """SEV leaves the save area in the clear; what the core has loaded stays until the next VMRUN."""
    one = paged_guest(SEV)
    one.map(GVA, GPA | P | W | C)
    one.next_table, one.tables = 0x14_0000, {}
    one.map(GVA, GPA + PAGE | P | W | C, root=0x13_0000)
    assert one.guest(op.Write(GPA, b"one"), op.Write(GPA + PAGE, b"two"), op.VirtualRead(GVA, 3))[2] == b"one"
    spa = one.board.vmcb(one.vm, 0).save_area_spa
    assert one.host(op.HostWrite(spa + 0x150, (0x13_0000).to_bytes(8, "little"))) == (None,)
    assert one.do(op.VirtualRead(GVA, 3)) == b"one"
    one.host(op.VmRun(one.vm, 0))
    assert one.do(op.VirtualRead(GVA, 3)) == b"two"


@given(
    st.dictionaries(st.integers(0, 7), st.tuples(st.integers(0, 31), st.booleans(), st.booleans()), min_size=1),
    st.lists(
        st.tuples(st.integers(0, 7 * PAGE), st.integers(1, 3 * PAGE), st.booleans()), min_size=1, max_size=6
    ),
    st.sampled_from([SEV, SNP]),
    st.sampled_from([None, 4]),
)
@settings(max_examples=30, deadline=None)
def test_any_tables_give_what_a_page_by_page_model_says(
    pages: dict[int, tuple[int, bool, bool]],
    accesses: list[tuple[int, int, bool]],
    generation: Generation,
    tlb: int | None,
) -> None:
    """Private pages at a few addresses; loads and stores over their borders, with translation buffers and without."""
    one = paged_guest(generation, tlb=tlb)
    for number, (frame, present, writable) in pages.items():
        one.map(GVA + number * PAGE, GPA + frame * PAGE | (P if present else 0) | (W if writable else 0) | C)
    model = bytearray(32 * PAGE)
    assert one.do(op.Write(GPA, bytes(model))) is None
    for number, (offset, length, write) in enumerate(accesses):
        touched = range(offset // PAGE, (offset + length - 1) // PAGE + 1)
        bad = [page for page in touched if not _allowed(pages.get(page), write)]
        data = bytes([number + 1]) * length
        answer = one.do(op.VirtualWrite(GVA + offset, data) if write else op.VirtualRead(GVA + offset, length))
        if bad:
            present = bad[0] in pages and pages[bad[0]][1]
            error = (1 if present else 0) | (2 if write else 0)
            assert answer == op.Fault(FaultKind.PAGE_FAULT, GVA + max(offset, bad[0] * PAGE), error)
            continue
        places = [pages[(offset + at) // PAGE][0] * PAGE + (offset + at) % PAGE for at in range(length)]
        if write:
            assert answer is None
            for place in places:
                model[place] = number + 1
        else:
            assert answer == bytes(model[place] for place in places)
    assert one.do(op.Read(GPA, len(model))) == bytes(model)


def _allowed(page: tuple[int, bool, bool] | None, write: bool) -> bool:
    return page is not None and page[1] and (page[2] or not write)
