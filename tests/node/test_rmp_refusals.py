"""Bad input to the RMP, by operations and commands alone: the documented answer, bounded work, and no entry changed.

The list is that of hostile inputs to SNP's interfaces; each row says what was done before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
from rmp_laboratory import (
    AREAS_GPA,
    FIRMWARE,
    GUEST_SPA,
    VMS,
    Laboratory,
    gctx,
    give,
    laboratory,
    page_of,
    save_area,
)
from rmp_tables import snp_board

from node import operations as op
from node.host_instructions import VMEXIT_BUSY, VMEXIT_INVALID
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp import swap_buffers
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.launch_digest import PageType
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LARGE = LARGE_PAGE_BYTES
NPF, VC = op.FaultKind.RMP_FAULT, op.FaultKind.PAGE_NOT_VALIDATED
# EXITINFO1: P 0, W 1, U 2, RMP 31, final GPA 32, ENC 34, SIZEM 35, VMPL 36 (APM volume 2, 15.36.10).
READ = 1 << 0 | 1 << 2 | 1 << 31 | 1 << 32
WRITE = READ | 1 << 1
ENC, SIZEM, VMPL = 1 << 34, 1 << 35, 1 << 36
HOST_WRITE = 0x8000_0003
MOST_CALLS = 4000
"""Python functions entered for one refused instruction, however long the range that it names."""
FREE = RmpEntry()

Setup = Callable[[Laboratory], None]


def nothing(_: Laboratory) -> None:
    """All pages are the hypervisor's."""


def owned(lab: Laboratory) -> None:
    """Guest one owns the first page and has not accepted it."""
    give(lab, page_of(), validate=False)


def accepted(lab: Laboratory) -> None:
    give(lab, page_of())


def accepted_large(lab: Laboratory) -> None:
    give(lab, page_of(large=True))


def frozen(lab: Laboratory) -> None:
    give(lab, page_of(immutable=True), validate=False)


def frozen_large(lab: Laboratory) -> None:
    give(lab, page_of(large=True, immutable=True), validate=False)


def one_in_the_middle(lab: Laboratory) -> None:
    give(lab, page_of(0x9000), offset=0x9000)


def frozen_in_the_middle(lab: Laboratory) -> None:
    give(lab, page_of(0x9000, immutable=True), offset=0x9000, validate=False)


def readable_by_vmpl1(lab: Laboratory) -> None:
    accepted(lab)
    assert lab.guest("one", op.RmpAdjust(0, PAGE_BYTES, False, 1, 0b0001)) == (0,)


def running(lab: Laboratory) -> None:
    assert lab.host(op.VmRun("one", 1, core=1)) == (0,)


def running_in_a_large_page(lab: Laboratory) -> None:
    accepted_large(lab)
    lab.guest("one", op.Write(0, bytes(PAGE_BYTES)))
    assert lab.guest("one", op.RmpAdjust(0, LARGE, True, 1, 0, vmsa=True)) == (0,)
    area = op.VmcbWrite("one", 9, 1, "SEV_SNP", GUEST_SPA)
    assert lab.host(area, op.VmRun("one", 9)) == (None, 0)


def smashed(lab: Laboratory) -> None:
    accepted_large(lab)
    assert lab.host(op.PSmash(GUEST_SPA)) == (0,)


def smashed_and_one_given_back(lab: Laboratory) -> None:
    smashed(lab)
    lab.guest("one", op.PValidate(0x9000, PAGE_BYTES, large=False, validate=False))


@dataclass(frozen=True)
class Row:
    """``who`` is the host, or a guest's VMPL."""

    before: Setup
    one: op.HypervisorOperation | op.GuestOperation
    answer: op.Answer
    who: str | int = "host"


def update(entry: RmpEntry, spa: int = GUEST_SPA, length: int | None = None) -> op.RmpUpdate:
    return op.RmpUpdate(spa, (LARGE if entry.large else PAGE_BYTES) if length is None else length, entry)


def accept(gpa: int = 0, *, large: bool = False, length: int | None = None, back: bool = False) -> op.PValidate:
    return op.PValidate(gpa, (LARGE if large else PAGE_BYTES) if length is None else length, large, validate=not back)


def adjust(target: int, rights: int = 0, *, large: bool = False, gpa: int = 0) -> op.RmpAdjust:
    return op.RmpAdjust(gpa, LARGE if large else PAGE_BYTES, large, target, rights)


def cf(code: int, *, unchanged: bool = False) -> op.PValidateResult:
    return op.PValidateResult(code, unchanged)


def npf(bits: int, gpa: int = 0) -> op.Fault:
    return op.Fault(NPF, gpa, bits)


ROWS = {
    "RMPUPDATE: firmware's page": Row(nothing, update(FREE, gctx("one")), 2),
    "RMPUPDATE: the table's own page": Row(nothing, update(FREE, (64 << 20) - PAGE_BYTES), 2),
    "RMPUPDATE: immutable": Row(frozen, update(page_of()), 2),
    "RMPUPDATE: immutable, large": Row(frozen_large, update(FREE), 2),
    "RMPUPDATE: 2 MiB over an immutable page": Row(frozen_in_the_middle, update(page_of(large=True)), 2),
    "RMPUPDATE: 2 MiB over a guest's 4 KiB": Row(one_in_the_middle, update(page_of(large=True)), 4),
    "RMPUPDATE: 4 KiB inside 2 MiB": Row(accepted_large, update(FREE, GUEST_SPA + PAGE_BYTES), 4),
    "RMPUPDATE: 2 MiB back as 4 KiB": Row(accepted_large, update(FREE), 4),
    "RMPUPDATE: ASID too large": Row(nothing, update(page_of(asid=0x400)), 1),
    "RMPUPDATE: ASID that the part lacks": Row(nothing, update(page_of(asid=PRODUCTS["Turin"].max_asid + 1)), 1),
    "RMPUPDATE: ASID 3FF": Row(nothing, update(page_of(asid=0x3FF)), 1),
    "RMPUPDATE: ASID below zero": Row(nothing, update(page_of(asid=-1)), 1),
    "RMPUPDATE: ASID 0 with an address": Row(nothing, update(page_of(0x1000, asid=0)), 1),
    "RMPUPDATE: unassigned with an ASID": Row(nothing, update(RmpEntry(asid=1)), 1),
    "RMPUPDATE: unassigned and immutable": Row(nothing, update(RmpEntry(immutable=True)), 1),
    "RMPUPDATE: GPA between pages": Row(nothing, update(page_of(0x10)), 1),
    "RMPUPDATE: GPA between 2 MiB pages": Row(nothing, update(page_of(0x1000, large=True)), 1),
    "RMPUPDATE: GPA too large": Row(nothing, update(page_of(1 << 51)), 1),
    "RMPUPDATE: GPA below zero": Row(nothing, update(page_of(-PAGE_BYTES)), 1),
    "RMPUPDATE: SPA between pages": Row(nothing, update(page_of(), GUEST_SPA + 8), 1),
    "RMPUPDATE: SPA between 2 MiB pages": Row(nothing, update(page_of(large=True), GUEST_SPA + PAGE_BYTES), 1),
    "RMPUPDATE: SPA out of the table": Row(nothing, update(page_of(), 1 << 51), 1),
    "RMPUPDATE: SPA below zero": Row(nothing, update(page_of(), -PAGE_BYTES), 1),
    "RMPUPDATE: no page": Row(nothing, update(page_of(), length=0), 1),
    "RMPUPDATE: 2^60 bytes": Row(nothing, update(page_of(), length=1 << 60), 1),
    "RMPUPDATE: 2^60 large pages": Row(nothing, update(page_of(large=True), length=LARGE << 60), 1),
    "RMPUPDATE: a running vCPU's save area": Row(running, update(FREE, save_area("one", 1)), 3),
    "RMPUPDATE: one inside 2 MiB": Row(running_in_a_large_page, update(FREE), 3),
    "RMPUPDATE: large over it": Row(running_in_a_large_page, update(page_of(large=True)), 3),
    "PSMASH: between borders": Row(nothing, op.PSmash(GUEST_SPA + PAGE_BYTES), 1),
    "PSMASH: out of the table": Row(nothing, op.PSmash(1 << 51), 1),
    "PSMASH: below zero": Row(nothing, op.PSmash(-LARGE), 1),
    "PSMASH: free page": Row(nothing, op.PSmash(GUEST_SPA), 7),
    "PSMASH: 4 KiB": Row(accepted, op.PSmash(GUEST_SPA), 7),
    "PSMASH: smashed": Row(smashed, op.PSmash(GUEST_SPA), 7),
    "PSMASH: immutable": Row(frozen_large, op.PSmash(GUEST_SPA), 2),
    "PSMASH: a running vCPU's save area": Row(running_in_a_large_page, op.PSmash(GUEST_SPA), 3),
    "RMPREAD: between pages": Row(nothing, op.RmpRead(GUEST_SPA + 8), op.RmpReadResult(1, b"")),
    "RMPREAD: out of the table": Row(nothing, op.RmpRead(1 << 51), op.RmpReadResult(1, b"")),
    "PVALIDATE: twice": Row(accepted, accept(), cf(0, unchanged=True), 0),
    "PVALIDATE: given back twice": Row(owned, accept(back=True), cf(0, unchanged=True), 0),
    "PVALIDATE: free page": Row(nothing, accept(), npf(READ | ENC), 0),
    "PVALIDATE: immutable": Row(frozen, accept(), npf(READ | ENC), 0),
    "PVALIDATE: another guest's": Row(
        lambda lab: give(lab, page_of(asid=2)), accept(back=True), npf(READ | ENC), 0
    ),
    "PVALIDATE: another address": Row(
        lambda lab: give(lab, page_of(0x1000), validate=False), accept(), npf(READ | ENC), 0
    ),
    "PVALIDATE: 2 MiB of 4 KiB": Row(accepted, accept(large=True), cf(6), 0),
    "PVALIDATE: 4 KiB of 2 MiB": Row(accepted_large, accept(0x5000, back=True), npf(READ | ENC | SIZEM, 0x5000), 0),
    "PVALIDATE: between pages": Row(owned, accept(8), cf(1), 0),
    "PVALIDATE: between 2 MiB pages": Row(owned, accept(0x1000, large=True), cf(1), 0),
    "PVALIDATE: no page": Row(owned, accept(length=0), cf(1), 0),
    "PVALIDATE: no mapping": Row(
        owned, accept(1 << 40), op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 1 << 40, 1 << 2 | 1 << 32 | ENC), 0
    ),
    "RMPADJUST: no mapping": Row(
        owned, adjust(1, gpa=1 << 40), op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 1 << 40, 1 << 2 | 1 << 32 | ENC), 0
    ),
    "RMPQUERY: no mapping": Row(
        owned,
        op.RmpQuery(1 << 40, 1), op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 1 << 40, 1 << 2 | 1 << 32 | ENC), 0,
    ),
    "PVALIDATE: by VMPL1": Row(owned, accept(), cf(2), 1),
    "PVALIDATE: by VMPL3": Row(owned, accept(), cf(2), 3),
    "RMPADJUST: own VMPL": Row(accepted, adjust(0), 2, 0),
    "RMPADJUST: higher VMPL": Row(accepted, adjust(1), 2, 2),
    "RMPADJUST: no such VMPL": Row(accepted, adjust(4), 1, 0),
    "RMPADJUST: more than one's own": Row(readable_by_vmpl1, adjust(2, 0b0011), 2, 1),
    "RMPADJUST: more bits than there are": Row(accepted, adjust(1, 0x100), 1, 0),
    "RMPADJUST: between pages": Row(accepted, adjust(1, gpa=8), 1, 0),
    "RMPADJUST: free page": Row(nothing, adjust(1), npf(READ | ENC), 0),
    "RMPADJUST: not accepted": Row(owned, adjust(1), op.Fault(VC, 0), 0),
    "RMPADJUST: immutable": Row(frozen, adjust(1), npf(READ | ENC), 0),
    "RMPADJUST: 2 MiB of 4 KiB": Row(accepted, adjust(1, large=True), 6, 0),
    "RMPADJUST: 4 KiB of 2 MiB": Row(accepted_large, adjust(1), npf(READ | ENC | SIZEM), 0),
    "RMPADJUST: a running vCPU's save area": Row(running, adjust(2, gpa=AREAS_GPA + PAGE_BYTES), 3, 0),
    "RMPQUERY: more privileged VMPL": Row(accepted, op.RmpQuery(0, 0), op.RmpQueryResult(2, 0, large=False), 1),
    "RMPQUERY: no such VMPL": Row(accepted, op.RmpQuery(0, 4), op.RmpQueryResult(2, 0, large=False), 0),
    "RMPQUERY: between pages": Row(accepted, op.RmpQuery(8, 1), op.RmpQueryResult(1, 0, large=False), 0),
    "RMPQUERY: free page": Row(nothing, op.RmpQuery(0, 1), npf(READ | ENC), 0),
    "write by a VMPL that may read": Row(readable_by_vmpl1, op.Write(0, b"x"), npf(WRITE | ENC | VMPL), 1),
    "shared write to a private page": Row(accepted, op.Write(0, b"x", private=False), npf(WRITE), 0),
    "RMPUPDATE by a guest": Row(nothing, update(page_of()), op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0), 0),  # type: ignore[arg-type]
    "PVALIDATE by the host": Row(nothing, accept(), op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)),
    "VMRUN: not a save area": Row(
        lambda lab: (accepted(lab), lab.host(op.VmcbWrite("one", 9, 1, "SEV_SNP", GUEST_SPA)))[0],
        op.VmRun("one", 9), VMEXIT_INVALID,
    ),
    "VMRUN: save area in a shared page": Row(
        lambda lab: lab.host(op.VmcbWrite("one", 9, 1, "SEV_SNP", GUEST_SPA)) and None,
        op.VmRun("one", 9), VMEXIT_INVALID,
    ),
    "VMRUN: another guest's save area": Row(
        lambda lab: lab.host(op.VmcbWrite("one", 9, 1, "SEV_SNP", save_area("two", 0))) and None,
        op.VmRun("one", 9), VMEXIT_INVALID,
    ),
    "VMRUN: one in use": Row(running, op.VmRun("one", 1), VMEXIT_BUSY),
    "VMRUN: no control block": Row(nothing, op.VmRun("nobody", 0), VMEXIT_INVALID),
}  # fmt: skip


def calls_of(act: Callable[[], object]) -> int:
    """How many Python functions an act enters."""
    count = 0

    def seen(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_a_refused_instruction_has_its_answer_and_changes_nothing(name: str, looked: bool) -> None:
    row = ROWS[name]
    lab = laboratory()
    row.before(lab)
    before = lab.table() if looked else b""
    entries = [lab.board.bus.rmp_entry(GUEST_SPA + page * PAGE_BYTES) for page in range(1024)]
    answers: list[op.Answer] = []

    def act() -> None:
        if isinstance(row.who, int):
            answers.extend(lab.guest("one", row.one, vmpl=row.who))  # type: ignore[arg-type]  # guests try all
        else:
            answers.extend(lab.host(row.one))  # type: ignore[arg-type]

    assert calls_of(act) < MOST_CALLS
    assert answers == [row.answer]
    assert [lab.board.bus.rmp_entry(GUEST_SPA + page * PAGE_BYTES) for page in range(1024)] == entries
    if looked:
        assert lab.table() == before


@dataclass(frozen=True)
class CommandRow:
    before: Setup
    command: SnpCommand
    buffer: ByteLayout
    status: Status


def launch(vm: str, *, large: bool = False) -> buffers.SnpLaunchUpdate:
    return buffers.SnpLaunchUpdate(gctx(vm), PageType.NORMAL << 1 | large, GUEST_SPA)


def reclaim(spa: int, *, large: bool = False) -> buffers.SnpPageReclaim:
    return buffers.SnpPageReclaim(spa | large)


COMMANDS = {
    "UNSMASH: between borders": CommandRow(
        smashed, SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(GUEST_SPA + PAGE_BYTES), Status.INVALID_ADDRESS
    ),
    "UNSMASH: 2 MiB": CommandRow(
        accepted_large, SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(GUEST_SPA), Status.INVALID_PAGE_SIZE
    ),
    "UNSMASH: one disagrees": CommandRow(
        smashed_and_one_given_back,
        SnpCommand.PAGE_UNSMASH, buffers.SnpPageUnsmash(GUEST_SPA), Status.INVALID_PAGE_STATE,
    ),
    "RECLAIM: a guest's page": CommandRow(
        accepted, SnpCommand.PAGE_RECLAIM, reclaim(GUEST_SPA), Status.INVALID_PAGE_STATE
    ),
    "RECLAIM: a context": CommandRow(
        nothing, SnpCommand.PAGE_RECLAIM, reclaim(gctx("one")), Status.INVALID_PAGE_STATE
    ),
    "RECLAIM: wrong size": CommandRow(
        frozen, SnpCommand.PAGE_RECLAIM, reclaim(GUEST_SPA, large=True), Status.INVALID_PAGE_SIZE
    ),
    "LAUNCH_UPDATE: accepted page": CommandRow(
        lambda lab: give(lab, page_of(asid=3)), SnpCommand.LAUNCH_UPDATE, launch("three"), Status.INVALID_PAGE_STATE
    ),
    "LAUNCH_UPDATE: another guest's page": CommandRow(
        frozen, SnpCommand.LAUNCH_UPDATE, launch("three"), Status.INVALID_PAGE_OWNER
    ),
    "LAUNCH_UPDATE: guest runs": CommandRow(
        frozen, SnpCommand.LAUNCH_UPDATE, launch("one"), Status.INVALID_GUEST_STATE
    ),
    "LAUNCH_UPDATE: size": CommandRow(
        lambda lab: give(lab, page_of(asid=3, immutable=True), validate=False),
        SnpCommand.LAUNCH_UPDATE, launch("three", large=True), Status.INVALID_PAGE_SIZE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_refused_command_has_its_status_and_changes_nothing(name: str) -> None:
    row = COMMANDS[name]
    lab = laboratory()
    row.before(lab)
    before = lab.table()
    statuses = []
    assert calls_of(lambda: statuses.append(lab.firmware(row.command, row.buffer))) < 4 * MOST_CALLS
    assert statuses == [row.status]
    assert lab.table() == before


WRONG = ("asid", "gpa", "validated", "size", "vmpl")


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("wrong", list(product((False, True), repeat=5)), ids=lambda wrong: "+".join(
    name for name, is_wrong in zip(WRONG, wrong, strict=True) if is_wrong) or "right")  # fmt: skip
def test_a_private_access_with_any_of_these_wrong(wrong: tuple[bool, ...], access: str) -> None:
    """Size is wrong where the host maps 4 KiB of a page of 2 MiB; VMPL 2 was given nothing."""
    asid, gpa, validated, size, vmpl = wrong
    lab = laboratory()
    owner = "two" if asid else "one"
    elsewhere = 32 << 20 if gpa else 0
    entry = page_of(elsewhere, large=size, asid=VMS[owner])
    assert lab.host(op.RmpUpdate(GUEST_SPA, LARGE if size else PAGE_BYTES, entry)) == (0,)
    if not validated:
        lab.host(op.NestedMap(owner, elsewhere, GUEST_SPA, LARGE))
        assert lab.guest(owner, accept(elsewhere, large=size)) == (cf(0),)
    lab.host(op.NestedMap("one", 0, GUEST_SPA, LARGE, large=not size))
    before = lab.table()
    one = op.Read(0, 8) if access == "read" else op.Write(0, bytes(8))
    (answer,) = lab.guest("one", one, vmpl=2 if vmpl else 0)
    bits = (READ if access == "read" else WRITE) | ENC
    if asid or gpa:
        assert answer == npf(bits)
    elif size:
        assert answer == npf(bits | SIZEM)
    elif validated:
        assert answer == op.Fault(VC, 0)
    elif vmpl:
        assert answer == npf(bits | VMPL)
    else:
        assert not isinstance(answer, op.Fault)
    assert lab.table() == before


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_mmio_has_entries_only_where_the_table_covers_it(product: str) -> None:
    window = (66 if product == "Turin" else 1) << 30
    covering = snp_board(product, mmio=(window, 64 << 20))
    for board, covered in ((snp_board(product), False), (covering, True)):
        (code,) = board.execute_host((update(page_of(0x7000), window),))
        assert code == (0 if covered else 1)
        entry = board.bus.rmp.entry(window) if board.bus.rmp else RmpEntry()
        assert (entry.assigned, entry.asid, entry.gpa) == ((True, 1, 0x7000) if covered else (False, 0, 0))
        # No device answers; the RMP is asked first.
        kind = NPF if covered else op.FaultKind.MACHINE_CHECK
        (answer,) = board.execute_host((op.HostWrite(window, b"x"),))
        assert isinstance(answer, op.Fault)
        assert answer.kind is kind


def context(lab: Laboratory) -> None:
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, FIRMWARE)) == (0,)
    assert not lab.firmware(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(GUEST_SPA))


def reclaimed(lab: Laboratory) -> None:
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, FIRMWARE)) == (0,)
    assert not lab.firmware(SnpCommand.PAGE_RECLAIM, reclaim(GUEST_SPA))


def metadata(lab: Laboratory) -> None:
    assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, FIRMWARE)) == (0,)
    made = swap_buffers.SnpPageMdInit(gctx("one"), GUEST_SPA)
    assert not lab.firmware(SnpCommand.PAGE_MD_INIT, made)


def pre_swap(lab: Laboratory) -> None:
    accepted(lab)
    assert lab.host(update(page_of(immutable=True))) == (0,)


STATES: dict[str, tuple[Setup, bool]] = {
    "Hypervisor": (nothing, True),
    "Firmware": (lambda lab: lab.host(update(FIRMWARE)) and None, False),
    "Reclaim": (reclaimed, False),
    "Context": (context, False),
    "Metadata": (metadata, False),
    "Pre-Guest": (frozen, False),
    "Pre-Swap": (pre_swap, False),
    "Guest-Invalid": (owned, False),
    "Guest-Valid": (accepted, False),
}
"""But for pages that firmware fixed for the host, and those that no table covers: both are the host's."""


@pytest.mark.parametrize("state", STATES)
def test_the_host_writes_to_no_page_but_its_own(state: str) -> None:
    before, writable = STATES[state]
    lab = laboratory()
    before(lab)
    entry = lab.board.bus.rmp_entry(GUEST_SPA)
    answer = None if writable else op.Fault(NPF, GUEST_SPA, HOST_WRITE)
    content = lab.host(op.HostRead(GUEST_SPA, PAGE_BYTES))
    for one in (op.HostWrite(GUEST_SPA, content[0]), op.HostClear(GUEST_SPA, PAGE_BYTES)):  # type: ignore[arg-type]
        assert lab.host(one) == (answer,)
    assert (lab.host(op.HostRead(GUEST_SPA, PAGE_BYTES)) == content) or writable
    assert lab.board.bus.rmp_entry(GUEST_SPA) == entry
