"""Every code and fault of the RMP, with its bits, by operations that programs may yield."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rmp_tables import GUEST_SPA, VMPLS, save_area, snp_board

from node import operations as op
from node.board import Board
from node.host_instructions import VMEXIT_BUSY, VMEXIT_INVALID
from node.iommu_driver import enabling
from node.rmp import RmpFault
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

NPF, NOT_VALIDATED = op.FaultKind.RMP_FAULT, op.FaultKind.PAGE_NOT_VALIDATED
# EXITINFO1 as APM volume 2, 15.36.10 numbers it: P 0, W 1, U 2, RMP 31, final GPA 32, ENC 34, SIZEM 35, VMPL 36.
READ = 1 << 0 | 1 << 2 | 1 << 31 | 1 << 32
WRITE = READ | 1 << 1
ENC, SIZEM, VMPL = 1 << 34, 1 << 35, 1 << 36
HOST_WRITE = 0x8000_0003
ONE = 1
SECRET = b"sixteen octets.." * 4


@pytest.fixture
def board() -> Board:
    return snp_board()


def host(board: Board, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return board.execute_host(batch)


def guest(board: Board, *batch: op.GuestOperation, vm: str = "one", vmpl: int = 0) -> tuple[op.Answer, ...]:
    return board.execute_guest(board.vmcb(vm, vmpl), batch)


def page(gpa: int = 0, *, large: bool = False, immutable: bool = False, asid: int = ONE) -> RmpEntry:
    return RmpEntry(assigned=True, large=large, immutable=immutable, gpa=gpa, asid=asid)


def give(board: Board, entry: RmpEntry, *, validate: bool = True, offset: int = 0) -> None:
    length = LARGE_PAGE_BYTES if entry.large else PAGE_BYTES
    assert host(board, op.RmpUpdate(GUEST_SPA + offset, length, entry)) == (0,)
    if validate:
        done = op.PValidateResult(0, unchanged=False)
        assert guest(board, op.PValidate(offset, length, entry.large)) == (done,)


def state(board: Board) -> bytes:
    """Bytes of the table's part that tests use: the truth."""
    assert board.rmp is not None
    entries = board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES)
    return board.dram.read(entries, 1024 * 16)


STATES = {
    "Hypervisor": RmpEntry(),
    "HV-Fixed": RmpEntry(immutable=True),
    "Firmware": RmpEntry(assigned=True, immutable=True),
    "Reclaim": RmpEntry(assigned=True),
    "Context": RmpEntry(assigned=True, immutable=True, vmsa=True),
    "Metadata": RmpEntry(assigned=True, immutable=True, gpa=0x1000),
    "Pre-Guest": page(immutable=True),
    "Pre-Swap": replace(page(immutable=True), validated=True),
    "Guest-Invalid": page(),
    "Guest-Valid": replace(page(), validated=True, vmpl_permissions=(0xF, 0, 0, 0)),
}


@pytest.mark.parametrize("name", STATES)
def test_who_may_do_what_in_every_state(board: Board, name: str) -> None:
    entry = STATES[name]
    board.bus.rmp_set(GUEST_SPA, entry)
    before = state(board)
    free = name in ("Hypervisor", "HV-Fixed")
    host_answer = None if free else op.Fault(NPF, GUEST_SPA, HOST_WRITE)
    assert host(board, op.HostWrite(GUEST_SPA, b"x")) == (host_answer,)
    assert host(board, op.HostClear(GUEST_SPA, PAGE_BYTES)) == (host_answer,)
    assert isinstance(host(board, op.HostRead(GUEST_SPA, 16))[0], bytes)
    shared = guest(board, op.Write(0, b"x", private=False), op.Read(0, 1, private=False))
    assert shared[0] == (None if free else op.Fault(NPF, 0, WRITE))
    assert isinstance(shared[1], bytes)
    private = guest(board, op.Read(0, 8), op.Write(0, bytes(8)))
    if name == "Guest-Valid":
        assert isinstance(private[0], bytes)
    elif name == "Guest-Invalid":
        assert private[0] == op.Fault(NOT_VALIDATED, 0)
    else:
        assert private == (op.Fault(NPF, 0, READ | ENC), op.Fault(NPF, 0, WRITE | ENC))
    assert board.rmp is not None
    for write in (False, True):
        if free:
            board.rmp.check_dma(GUEST_SPA, 64, write=write)
        else:
            with pytest.raises(RmpFault):
                board.rmp.check_dma(GUEST_SPA, 64, write=write)
    assert state(board) == before
    moved = host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page(0x9000)))
    assert moved == (2 if entry.immutable else 0,)


def test_the_switches_of_accesses() -> None:
    strict = snp_board(shared_reads_checked=True, dma_reads_checked=False)
    give(strict, page())
    assert guest(strict, op.Read(0, 1, private=False)) == (op.Fault(NPF, 0, READ),)
    assert strict.rmp is not None
    strict.rmp.check_dma(GUEST_SPA, 64, write=False)
    with pytest.raises(RmpFault):
        strict.rmp.check_dma(GUEST_SPA, 64, write=True)


@pytest.mark.parametrize(
    ("update", "code"),
    [
        (op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page(asid=0x400)), 1),
        (op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page(asid=0x3FF)), 1),  # it fits, and no part has it
        (op.RmpUpdate(GUEST_SPA, PAGE_BYTES, RmpEntry(asid=1)), 1),
        (op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page(0x10)), 1),
        (op.RmpUpdate(GUEST_SPA, LARGE_PAGE_BYTES, page(0x1000, large=True)), 1),
        (op.RmpUpdate(GUEST_SPA + 8, PAGE_BYTES, page()), 1),
        (op.RmpUpdate(1 << 51, PAGE_BYTES, page()), 1),
        (op.RmpUpdate(GUEST_SPA, 1 << 60, page()), 1),
        (op.RmpUpdate((64 << 20) - PAGE_BYTES, PAGE_BYTES, RmpEntry()), 2),  # the table's own page
        (op.RmpUpdate(GUEST_SPA + PAGE_BYTES, PAGE_BYTES, page()), 2),  # HV-Fixed
        (op.RmpUpdate(GUEST_SPA + 2 * PAGE_BYTES, PAGE_BYTES, page()), 2),  # Firmware
        (op.RmpUpdate(GUEST_SPA + LARGE_PAGE_BYTES, LARGE_PAGE_BYTES, page(large=True)), 4),  # over mixed 4 KiB
        (op.PSmash(GUEST_SPA), 7),
        (op.PSmash(GUEST_SPA + PAGE_BYTES), 1),
        (op.PSmash(1 << 51), 1),
    ],
)
def test_bad_input_of_the_host_has_its_code_and_changes_nothing(
    board: Board, update: op.HypervisorOperation, code: int
) -> None:
    board.bus.rmp_set(GUEST_SPA + PAGE_BYTES, RmpEntry(immutable=True))
    give(board, RmpEntry(assigned=True, immutable=True), validate=False, offset=2 * PAGE_BYTES)
    give(board, page(0x30_0000), validate=False, offset=LARGE_PAGE_BYTES + 9 * PAGE_BYTES)
    before = state(board)
    assert host(board, update) == (code,)
    assert (state(board) == before) is (code != 0)


def test_pvalidate_s_outcomes(board: Board) -> None:
    fault = op.Fault(NPF, 0, READ | ENC)
    validate = op.PValidate(0, PAGE_BYTES, large=False)
    assert guest(board, validate) == (fault,)  # unassigned
    give(board, page())
    assert guest(board, validate) == (op.PValidateResult(0, unchanged=True),)
    assert guest(board, validate, vm="two") == (fault,)
    assert guest(board, op.PValidate(8, PAGE_BYTES, large=False)) == (op.PValidateResult(1, unchanged=False),)
    large = op.PValidate(0, LARGE_PAGE_BYTES, large=True)
    assert guest(board, large) == (op.PValidateResult(6, unchanged=False),)
    give(board, page(LARGE_PAGE_BYTES, large=True), offset=LARGE_PAGE_BYTES)
    (answer,) = guest(board, op.PValidate(LARGE_PAGE_BYTES, PAGE_BYTES, large=False))
    assert answer == op.Fault(NPF, LARGE_PAGE_BYTES, READ | ENC | SIZEM)
    for vmpl in (1, 2, 3):
        assert guest(board, validate, vmpl=vmpl) == (op.PValidateResult(2, unchanged=False),)
    other = snp_board(pvalidate_faults_below_vmpl0=True)
    assert guest(other, validate, vmpl=1) == (op.Fault(op.FaultKind.GENERAL_PROTECTION, 0),)


def test_rmpadjust_s_outcomes_in_order(board: Board) -> None:
    def adjust(target: int, permissions: int, *, vmpl: int = 0, large: bool = False, gpa: int = 0) -> op.Answer:
        length = LARGE_PAGE_BYTES if large else PAGE_BYTES
        return guest(board, op.RmpAdjust(gpa, length, large, target, permissions), vmpl=vmpl)[0]

    assert adjust(1, 0xF) == op.Fault(NPF, 0, READ | ENC)
    assert adjust(0, 0xF) == 2  # own VMPL, judged before the page
    assert adjust(1, 0xF, vmpl=2) == 2  # a higher one
    assert adjust(4, 0xF) == 1
    assert adjust(1, 0xF, gpa=8) == 1
    give(board, page(), validate=False)
    assert adjust(1, 0xF) == op.Fault(NOT_VALIDATED, 0)
    guest(board, op.PValidate(0, PAGE_BYTES, large=False))
    assert adjust(1, 0xF, large=True) == 6
    assert adjust(1, 0x3) == 0
    assert adjust(2, 0x4, vmpl=1) == 2  # more than VMPL1 has
    assert adjust(2, 0x1, vmpl=1) == 0
    assert [answer for vmpl in range(VMPLS) for answer in guest(board, op.RmpQuery(0, vmpl))] == [
        op.RmpQueryResult(0, permissions, large=False) for permissions in (0xF, 3, 1, 0)
    ]
    assert guest(board, op.RmpQuery(0, 1), vmpl=2) == (op.RmpQueryResult(2, 0, large=False),)
    assert guest(board, op.RmpQuery(8, 1)) == (op.RmpQueryResult(1, 0, large=False),)
    assert guest(board, op.Write(0, SECRET), op.Read(0, 8), vmpl=1) == (None, SECRET[:8])
    assert guest(board, op.Read(0, 8), vmpl=2) == (SECRET[:8],)
    assert guest(board, op.Write(0, b"x"), vmpl=2) == (op.Fault(NPF, 0, WRITE | ENC | VMPL),)
    give(board, page(LARGE_PAGE_BYTES, large=True), offset=LARGE_PAGE_BYTES)
    assert adjust(1, 1, gpa=LARGE_PAGE_BYTES) == op.Fault(NPF, LARGE_PAGE_BYTES, READ | ENC | SIZEM)
    assert adjust(1, 1, gpa=LARGE_PAGE_BYTES, large=True) == 0
    assert guest(board, op.Read(LARGE_PAGE_BYTES + 0x5000, 8), vmpl=1) != ()


def test_only_vmpl0_makes_save_areas(board: Board) -> None:
    give(board, page())
    assert guest(board, op.RmpAdjust(0, PAGE_BYTES, False, 1, 0xF)) == (0,)
    area = op.VmcbWrite("one", 9, ONE, "SEV_SNP", GUEST_SPA)
    assert guest(board, op.RmpAdjust(0, PAGE_BYTES, False, 2, 0, vmsa=True), vmpl=1) == (0,)
    assert host(board, area, op.VmRun("one", 9)) == (None, VMEXIT_INVALID)
    guest(board, op.Write(0, bytes(PAGE_BYTES)))
    assert guest(board, op.RmpAdjust(0, PAGE_BYTES, False, 2, 0, vmsa=True)) == (0,)
    assert host(board, area, op.VmRun("one", 9)) == (None, 0)
    page_of_vmpl_7 = bytearray(PAGE_BYTES)
    page_of_vmpl_7[0xCA] = 7
    guest(board, op.Write(0, bytes(page_of_vmpl_7)))
    assert host(board, op.VmRun("one", 9)) == (VMEXIT_INVALID,)


def test_vmrun_wants_the_guests_own_validated_save_area(board: Board) -> None:
    shared = GUEST_SPA
    for asid, spa in ((2, save_area("one", 0)), (ONE, save_area("two", 0)), (ONE, shared)):
        assert host(board, op.VmcbWrite("x", 0, asid, "SEV_SNP", spa), op.VmRun("x", 0)) == (None, VMEXIT_INVALID)


def test_a_save_area_in_use_is_busy_and_nobodys_to_change(board: Board) -> None:
    spa = save_area("one", 1)
    assert host(board, op.VmRun("one", 1, core=1), op.VmRun("one", 1, core=2)) == (0, VMEXIT_BUSY)
    before = host(board, op.RmpRead(spa))
    for entry in (RmpEntry(), page(0x5000), page(0x5000, asid=2)):
        assert host(board, op.RmpUpdate(spa, PAGE_BYTES, entry)) == (3,)
    (adjusted,) = guest(board, op.RmpAdjust((16 << 20) + PAGE_BYTES, PAGE_BYTES, False, 1, 0))
    assert adjusted == 3
    assert host(board, op.RmpRead(spa)) == before
    assert host(board, op.RmpUpdate(2 << 20, LARGE_PAGE_BYTES, page(large=True))) == (3,)
    assert host(board, op.VmPreempt("one", 1), op.RmpUpdate(spa, PAGE_BYTES, RmpEntry())) == (None, 0)


def test_rmpread_shows_the_published_form_alone(board: Board) -> None:
    give(board, page(LARGE_PAGE_BYTES, large=True), offset=LARGE_PAGE_BYTES)
    read = op.RmpRead(GUEST_SPA + LARGE_PAGE_BYTES)
    shown = bytes.fromhex("0000200000000000 01 03 00 00 01000000")
    assert host(board, read, op.RmpRead(GUEST_SPA), op.RmpRead(8), op.RmpRead(1 << 51)) == (
        op.RmpReadResult(0, shown), op.RmpReadResult(0, bytes(16)), op.RmpReadResult(1, b""), op.RmpReadResult(1, b""),
    )  # fmt: skip
    assert host(snp_board("Milan"), read) == (op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0),)


def test_a_page_given_to_the_same_guest_elsewhere_keeps_its_plaintext(board: Board) -> None:
    """Key and tweak stay: what protects is that the guest never accepts a page it does not expect."""
    give(board, page())
    guest(board, op.Write(0, SECRET))
    assert host(board, op.RmpUpdate(GUEST_SPA, PAGE_BYTES, page(0x40_0000))) == (0,)
    host(board, op.NestedMap("one", 0x40_0000, GUEST_SPA, PAGE_BYTES))
    assert guest(board, op.Read(0, 8)) == (op.Fault(NPF, 0, READ | ENC),)
    moved = op.Read(0x40_0000, len(SECRET))
    assert guest(board, moved) == (op.Fault(NOT_VALIDATED, 0x40_0000),)
    assert guest(board, op.PValidate(0x40_0000, PAGE_BYTES, large=False), moved)[1] == SECRET


@pytest.mark.parametrize("looked", [False, True])
def test_the_firmware_undoes_psmash(board: Board, looked: bool) -> None:
    """The guest finds its page as it left it, and the table its bytes."""
    buffer = 1 << 20

    def firmware(command: SnpCommand, data: bytes) -> int:
        (answer,) = host(board, op.PspCommand(command, buffer, data))
        assert isinstance(answer, op.PspAnswer)
        return answer.status

    def unsmash() -> int:
        return firmware(SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(GUEST_SPA).pack())

    host(board, *enabling())
    assert firmware(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == Status.SUCCESS
    give(board, page(0, large=True))
    guest(board, op.Write(0x5000, SECRET))
    before = state(board) if looked else b""
    assert unsmash() == Status.INVALID_PAGE_SIZE
    assert host(board, op.PSmash(GUEST_SPA)) == (0,)
    assert unsmash() == Status.SUCCESS
    assert guest(board, op.Read(0x5000, len(SECRET))) == (SECRET,)
    assert guest(board, op.PValidate(0, LARGE_PAGE_BYTES, large=True)) == (op.PValidateResult(0, unchanged=True),)
    if looked:
        assert state(board) == before
    # A page that the guest gave back keeps the others from being one again.
    assert host(board, op.PSmash(GUEST_SPA)) == (0,)
    guest(board, op.PValidate(9 * PAGE_BYTES, PAGE_BYTES, large=False, validate=False))
    assert unsmash() == Status.INVALID_PAGE_STATE
