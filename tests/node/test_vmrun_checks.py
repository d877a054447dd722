"""What VMRUN refuses before a guest runs, and what a guest that is not SNP-active may read under an RMP."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rmp_laboratory import GUEST_SPA, TABLES_SPA, Laboratory, give, laboratory, page_of, save_area
from sealed_areas import seal
from toy_guests import MIB, SECOND, make_host, run, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestState
from node.host_instructions import VMEXIT_INVALID
from node.platform import Platform
from node.product import PRODUCTS
from psp.system_bus import PAGE_BYTES, RmpEntry

SEV, ES, SNP = Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
KEYLESS = (Generation.PLAIN, Generation.SME)
MEMORY_BYTES = 64 * MIB
AREA = MIB
SECRET = b"the victim's own"
# EXITINFO1 as APM volume 2, 15.36.10 numbers it: P 0, U 2, fetch 4, RMP 31, final GPA 32, walk 33, ENC 34.
READ_REFUSED = 1 << 0 | 1 << 2 | 1 << 31 | 1 << 32 | 1 << 34
RIGHT = {
    # MinSEVASID: the first and last ASID of SEV-ES and SNP, and those of plain SEV, of Milan's 509.
    1: {ES: (), SNP: (), SEV: (1, 509)},
    2: {ES: (1,), SNP: (1,), SEV: (2, 509)},
    100: {ES: (1, 99), SNP: (1, 99), SEV: (100, 509)},
    509: {ES: (1, 508), SNP: (1, 508), SEV: (509,)},
    510: {ES: (1, 509), SNP: (1, 509), SEV: ()},
}
"""From the description of CPUID Fn8000_001F, ECX and EDX."""
PROBES = (-1, 0, 1, 2, 99, 100, 508, 509, 510, 1 << 40)


@pytest.mark.parametrize(
    "missing",
    [{}, {"assigned": False}, {"validated": False}, {"vmsa": False}, {"asid": 2}, {"immutable": True}],
    ids=str,
)
def test_a_save_area_s_entry_must_be_all_of_what_vmrun_asks(missing: dict[str, bool | int]) -> None:
    """APM volume 2, 15.36.10: a page of the guest's own, validated, with VMSA set, that firmware does not hold."""
    board = Board("board", PRODUCTS["Milan"], MEMORY_BYTES, 100, CounterRandom(1))
    board.controller.install_key(1, bytes(16))
    right = RmpEntry(assigned=True, validated=True, vmsa=True, asid=1)
    board.bus.rmp_set(AREA, right)
    board.bus.write_guest(AREA, bytes(PAGE_BYTES), 1)
    board.bus.rmp_set(AREA, replace(right, **missing))  # type: ignore[arg-type]
    answers = board.execute_host((op.VmcbWrite("vm", 0, 1, SNP.name, AREA), op.VmRun("vm", 0)))
    assert answers == (None, VMEXIT_INVALID if missing else 0)


@pytest.mark.parametrize("min_sev_asid", RIGHT)
@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_an_asid_is_one_of_the_guests_kind(generation: Generation, min_sev_asid: int) -> None:
    board = Board("board", PRODUCTS["Milan"], MEMORY_BYTES, min_sev_asid, CounterRandom(1))
    assert board.rmp is not None
    ends = RIGHT[min_sev_asid][generation]
    taken = {}
    for asid in PROBES:
        # Everything but the ASID is in order: a key, a save area of the guest's, its value or its entry.
        if 0 < asid < 512:
            board.controller.install_key(asid, bytes(16))
            if generation is SNP:
                board.bus.rmp_set(AREA, RmpEntry(assigned=True, validated=True, vmsa=True, asid=asid))
                board.bus.write_guest(AREA, bytes(PAGE_BYTES), asid)
            if generation is ES:
                seal(board, AREA, asid)
        answers = board.execute_host((op.VmcbWrite("vm", 0, asid, generation.name, AREA), op.VmRun("vm", 0)))
        taken[asid] = answers == (None, 0)
        assert taken[asid] or answers == (None, VMEXIT_INVALID)
        if not taken[asid]:
            assert board.enter("vm", 0) == VMEXIT_INVALID
    assert taken == {asid: bool(ends) and ends[0] <= asid <= ends[-1] for asid in PROBES}


@pytest.mark.parametrize("asks", [False, True])
def test_by_the_switch_an_asid_is_on_its_guests_side_of_max_snp_asid(asks: bool) -> None:
    split = 3
    lab = laboratory("Turin", Platform(max_snp_asid=split), vmrun_splits_asids=asks)
    taken = {}
    for generation in (ES, SNP):
        for asid in (split, split + 1):
            lab.board.controller.install_key(asid, bytes(16))
            entry = RmpEntry(assigned=True, validated=True, vmsa=True, asid=asid) if generation is SNP else RmpEntry()
            lab.board.bus.rmp_set(AREA, entry)
            lab.board.bus.write_guest(AREA, bytes(PAGE_BYTES), asid)
            seal(lab.board, AREA, asid)
            block = op.VmcbWrite("vm", 0, asid, generation.name, AREA)
            (_, code) = lab.host(block, op.VmRun("vm", 0))
            taken[generation, asid] = code == 0
    wrong = {(ES, split), (SNP, split + 1)}
    assert taken == {at: not asks or at not in wrong for at in taken}
    assert lab.board.execute_host((op.VmRun("one", 0),)) == (0,)


@pytest.mark.parametrize("generation", [*KEYLESS, SEV, ES, SNP])
@pytest.mark.parametrize("area", [1, AREA + 16, -PAGE_BYTES, MEMORY_BYTES, 1 << 40, 1 << 60, MEMORY_BYTES - 16])
def test_a_save_area_is_a_page_of_memory(generation: Generation, area: int) -> None:
    board = Board("board", PRODUCTS["Milan"], MEMORY_BYTES, 100, CounterRandom(1))
    asid = {SEV: 100, ES: 1, SNP: 1}.get(generation, 0)
    if asid:
        board.controller.install_key(asid, bytes(16))
    assert board.execute_host((op.VmcbWrite("vm", 0, asid, generation.name, area), op.VmRun("vm", 0))) == (
        None,
        VMEXIT_INVALID,
    )
    assert board.enter("vm", 0) == VMEXIT_INVALID


@pytest.mark.parametrize(("generation", "asid"), [(Generation.PLAIN, 0), (SEV, 100), (ES, 1)])
def test_registers_of_a_guest_without_rmp_entries_do_not_go_to_anothers_page(
    generation: Generation, asid: int
) -> None:
    lab = laboratory("Milan")
    lab.board.controller.install_key(100, bytes(16))
    seal(lab.board, save_area("one", 0), 1)
    seal(lab.board, AREA, 1)
    for area, code in ((save_area("one", 0), VMEXIT_INVALID), (AREA, 0)):
        assert lab.host(op.VmcbWrite("x", 0, asid, generation.name, area), op.VmRun("x", 0)) == (None, code)


def thief(lab: Laboratory, generation: Generation, asid: int) -> tuple[op.Answer, ...]:
    """A guest that is not SNP-active, with the memory of guest one and an ASID of its kind."""
    if asid != 1:
        lab.board.controller.install_key(asid, bytes(16))
    seal(lab.board, AREA, asid)
    control_block = op.VmcbWrite("thief", 0, asid, generation.name, AREA)
    frames = op.NestedFrames("thief", TABLES_SPA + (1 << 20), 64 << 10)
    mapped = op.NestedMap("thief", 0, GUEST_SPA, 2 * MIB)
    assert lab.host(frames, mapped, control_block, op.VmRun("thief", 0)) == (None, None, None, 0)
    return lab.board.execute_guest(lab.board.vmcb("thief", 0), (op.Read(0, 16), op.Read(PAGE_BYTES - 8, 16)))


@pytest.mark.parametrize("product", ["Milan", "Turin"])
@pytest.mark.parametrize(("generation", "asid"), [(ES, 1), (ES, 2), (SEV, 100)])
def test_a_page_that_is_assigned_is_for_snp_guests_alone(product: str, generation: Generation, asid: int) -> None:
    lab = laboratory(product)
    give(lab, page_of(0))
    assert lab.guest("one", op.Write(0, SECRET)) == (None,)
    refused = op.Fault(op.FaultKind.RMP_FAULT, 0, READ_REFUSED)
    assert thief(lab, generation, asid) == (refused, op.Fault(op.FaultKind.RMP_FAULT, PAGE_BYTES - 8, READ_REFUSED))
    vmcb = lab.board.vmcb("thief", 0)
    assert isinstance(lab.board.execute_guest(vmcb, (op.Read(PAGE_BYTES, 16),))[0], bytes)
    assert lab.guest("one", op.Read(0, 16)) == (SECRET,)


def test_by_the_switch_such_a_read_decrypts_with_whatever_key_the_asid_has() -> None:
    for generation, asid in ((ES, 1), (ES, 2), (SEV, 100)):
        lab = laboratory("Milan", sev_reads_checked=False)
        give(lab, page_of(0))
        lab.guest("one", op.Write(0, SECRET))
        (read, _) = thief(lab, generation, asid)
        assert isinstance(read, bytes)
        assert (read == SECRET) is (asid == 1)


def test_a_translation_buffer_does_not_lend_an_snp_guests_verdict_to_another() -> None:
    lab = laboratory("Milan", Platform(tlb_entries=64))
    give(lab, page_of(0))
    assert lab.guest("one", op.Write(0, SECRET), op.Read(0, 16)) == (None, SECRET)
    # The same core, ASID and address: what the victim's walk left is still there.
    assert lab.board.vmcb("one", 0).core == 0
    assert thief(lab, ES, 1)[0] == op.Fault(op.FaultKind.RMP_FAULT, 0, READ_REFUSED)


def test_a_block_that_is_written_anew_while_its_guest_runs_ends_it() -> None:
    host = make_host(product="Rome")
    guest = start(host, "vm", SEV, "ledger", units=10_000)
    assert guest.state is GuestState.RUNNING
    vmcb = host.board.vmcb("vm", 0)
    host.board.execute_host((op.VmcbWrite("vm", 0, 1, SEV.name, vmcb.save_area_spa),))
    run(host, SECOND)
    assert guest.state is not GuestState.RUNNING


@pytest.mark.parametrize("generation", [SEV, ES, SNP])
def test_a_key_that_is_gone_is_found_by_vmrun_before_anything_runs(generation: Generation) -> None:
    host = make_host()
    guest = start(host, "vm", generation)
    host.clock.env.run(until=SECOND)
    vmrun = op.VmPreempt("vm", 0), op.VmRun("vm", 0, 9)
    assert host.board.execute_host(vmrun) == (None, 0)
    host.board.bus.remove_key(guest.asid)
    assert host.board.execute_host(vmrun) == (None, VMEXIT_INVALID)


@pytest.mark.parametrize("product", ["Naples", "Rome"])
def test_a_part_without_an_rmp_enters_no_snp_guest(product: str) -> None:
    board = Board("board", PRODUCTS[product], MEMORY_BYTES, 10, CounterRandom(1))
    board.controller.install_key(1, bytes(16))
    vmrun = op.VmcbWrite("vm", 0, 1, SNP.name, AREA), op.VmRun("vm", 0)
    assert board.execute_host(vmrun) == (None, VMEXIT_INVALID)
