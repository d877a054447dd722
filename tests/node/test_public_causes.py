"""Every code and fault of the model comes of public operations alone: of host, guest, device and firmware commands.

What a table of codes has and no scenario brings about fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from iommu_boards import DOMAIN, IOVA, REQUESTER, TARGET, Driver, attached, brought_up, events, load
from paged_guests import LONG, paged_guest
from rmp_laboratory import AREAS_GPA, GUEST_SPA, Laboratory, give, laboratory, page_of, save_area
from toy_guests import make_host, run, start

from node import operations as op
from node.board import Board
from node.device_table import DeviceTableEntry
from node.generation import Generation
from node.host import Host
from node.iommu_driver import COMMANDS, write_register
from node.iommu_events import EventCode
from node.iommu_page_table import table_pointer
from node.iommu_registers import Register, table_register
from node.operations import FaultKind
from node.platform import Platform
from node.rmp import RmpCode
from node.vmexit import ExitCode
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LARGE, KIB4 = LARGE_PAGE_BYTES, PAGE_BYTES
BUSY_GPA, BUSY_SPA = AREAS_GPA + KIB4, save_area("one", 1)
"""Of guest one's vCPU at VMPL 1."""
FREE, FROZEN = RmpEntry(), page_of(immutable=True)

Act = Callable[[Laboratory], op.Answer]


@pytest.fixture(scope="module")
def make() -> Callable[[], Laboratory]:
    return lambda: laboratory("Turin", pvalidate_faults_below_vmpl0=False)


def host(lab: Laboratory, *batch: op.HypervisorOperation) -> op.Answer:
    return lab.host(*batch)[-1]


def guest(lab: Laboratory, *batch: op.GuestOperation, vmpl: int = 0) -> op.Answer:
    return lab.guest("one", *batch, vmpl=vmpl)[-1]


def runs(lab: Laboratory) -> Laboratory:
    """The save area of the vCPU at VMPL 1 is in use."""
    assert host(lab, op.VmRun("one", 1, core=7)) == 0
    return lab


def owns(lab: Laboratory, entry: RmpEntry, *, validate: bool = True) -> Laboratory:
    give(lab, entry, validate=validate)
    return lab


def runs_in_a_large_page(lab: Laboratory) -> Laboratory:
    owns(lab, page_of(large=True))
    guest(lab, op.Write(0, bytes(KIB4)))
    assert guest(lab, op.RmpAdjust(0, LARGE, True, 1, 0, vmsa=True)) == 0
    assert host(lab, op.VmcbWrite("one", 9, 1, "SEV_SNP", GUEST_SPA), op.VmRun("one", 9, core=7)) == 0
    return lab


def update(entry: RmpEntry, spa: int = GUEST_SPA) -> op.RmpUpdate:
    return op.RmpUpdate(spa, LARGE if entry.large else KIB4, entry)


def adjust(target: int, gpa: int = 0, permissions: int = 0, *, large: bool = False) -> op.RmpAdjust:
    return op.RmpAdjust(gpa, LARGE if large else KIB4, large, target, permissions)


def accept(gpa: int = 0, *, large: bool = False) -> op.PValidate:
    return op.PValidate(gpa, LARGE if large else KIB4, large)


C = RmpCode
SOME = page_of()
INSTRUCTIONS: Mapping[str, Mapping[RmpCode, Act]] = {
    "RMPUPDATE": {
        C.SUCCESS: lambda lab: host(lab, update(SOME)),
        C.FAIL_INPUT: lambda lab: host(lab, update(SOME, GUEST_SPA + 8)),
        C.FAIL_PERMISSION: lambda lab: host(lab, update(FROZEN), update(FREE)),
        C.FAIL_INUSE: lambda lab: host(runs(lab), update(FREE, BUSY_SPA)),
        C.FAIL_OVERLAP: lambda lab: host(lab, update(SOME), update(page_of(large=True))),
    },
    "PSMASH": {
        C.SUCCESS: lambda lab: host(lab, update(page_of(large=True)), op.PSmash(GUEST_SPA)),
        C.FAIL_INPUT: lambda lab: host(lab, op.PSmash(GUEST_SPA + KIB4)),
        C.FAIL_PERMISSION: lambda lab: host(lab, update(page_of(large=True, immutable=True)), op.PSmash(GUEST_SPA)),
        C.FAIL_INUSE: lambda lab: host(runs_in_a_large_page(lab), op.PSmash(GUEST_SPA)),
        C.FAIL_NOT_LARGE: lambda lab: host(lab, op.PSmash(GUEST_SPA)),
    },
    "RMPREAD": {
        C.SUCCESS: lambda lab: host(lab, op.RmpRead(GUEST_SPA)),
        C.FAIL_INPUT: lambda lab: host(lab, op.RmpRead(1 << 50)),
    },
    "PVALIDATE": {
        C.SUCCESS: lambda lab: guest(owns(lab, SOME, validate=False), accept()),
        C.FAIL_INPUT: lambda lab: guest(lab, accept(8)),
        C.FAIL_PERMISSION: lambda lab: guest(lab, accept(), vmpl=1),
        C.FAIL_SIZEMISMATCH: lambda lab: guest(owns(lab, SOME), accept(large=True)),
    },
    "RMPADJUST": {
        C.SUCCESS: lambda lab: guest(owns(lab, SOME), adjust(1)),
        C.FAIL_INPUT: lambda lab: guest(lab, adjust(1, 8)),
        C.FAIL_PERMISSION: lambda lab: guest(owns(lab, SOME), adjust(0)),
        C.FAIL_INUSE: lambda lab: guest(runs(lab), adjust(2, BUSY_GPA)),
        C.FAIL_SIZEMISMATCH: lambda lab: guest(owns(lab, SOME), adjust(1, large=True)),
    },
    "RMPQUERY": {
        C.SUCCESS: lambda lab: guest(owns(lab, SOME), op.RmpQuery(0, 1)),
        C.FAIL_INPUT: lambda lab: guest(lab, op.RmpQuery(8, 1)),
        C.FAIL_PERMISSION: lambda lab: guest(owns(lab, SOME), op.RmpQuery(0, 0), vmpl=1),
    },
}
# Sheet of the RMP, table of return codes; 3 and 6 of RMPADJUST, and RMPQUERY's, as its text has them.
CODES = {
    "RMPUPDATE": {0, 1, 2, 3, 4}, "PSMASH": {0, 1, 2, 3, 7}, "RMPREAD": {0, 1}, "PVALIDATE": {0, 1, 2, 6},
    "RMPADJUST": {0, 1, 2, 3, 6}, "RMPQUERY": {0, 1, 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "code"), [(name, code) for name, codes in INSTRUCTIONS.items() for code in codes]
)
def test_an_instruction_of_the_rmp_comes_to_each_of_its_codes(make, instruction: str, code: RmpCode) -> None:
    answer = INSTRUCTIONS[instruction][code](make())
    assert (answer if isinstance(answer, int) else answer.code) == code


def test_each_code_has_its_cause() -> None:
    assert {name: set(map(int, codes)) for name, codes in INSTRUCTIONS.items()} == CODES
    assert {code for codes in CODES.values() for code in codes} == set(RmpCode)


def test_the_carry_flag_says_that_nothing_changed(make) -> None:
    lab = owns(make(), SOME)
    assert guest(lab, accept()) == op.PValidateResult(0, unchanged=True)


# Faults, and the bits of their errors. EXITINFO1 as APM volume 2, 15.36.10 numbers it.
PRESENT, WRITE, USER, RESERVED, FETCH = (1 << bit for bit in range(5))
RMP, FINAL, WALK, ENC, SIZEM, VMPL = (1 << bit for bit in range(31, 37))


def readable_by_vmpl1(lab: Laboratory) -> Laboratory:
    owns(lab, SOME)
    assert guest(lab, adjust(1, permissions=1)) == 0
    return lab


def mapped_small(lab: Laboratory) -> Laboratory:
    owns(lab, page_of(large=True))
    assert host(lab, op.NestedMap("one", 0, GUEST_SPA, KIB4, large=False)) is None
    return lab


def hand_written(lab: Laboratory, word: int) -> op.Answer:
    """Guest one's first page as the last entry of tables that the hypervisor wrote says."""
    root = 24 << 20
    batch = [op.HostWrite(root + 8 * 512 * level, (root + KIB4 * (level + 1) | 7).to_bytes(8, "little"))
             for level in range(3)]  # fmt: skip
    batch.append(op.HostWrite(root + 3 * KIB4, word.to_bytes(8, "little")))
    batch.append(op.VmcbWrite("one", 0, 1, "SEV_SNP", save_area("one", 0), root))
    assert set(lab.host(*batch)) == {None}
    return guest(lab, op.Read(0, 1))


FAULTS: Mapping[str, tuple[FaultKind, int, Act]] = {
    "no mapping": (
        FaultKind.NESTED_PAGE_FAULT, USER | FINAL | ENC, lambda lab: guest(lab, op.Read(1 << 40, 1))),
    "a reserved bit of a nested entry": (
        FaultKind.NESTED_PAGE_FAULT, PRESENT | RESERVED | USER | FINAL | ENC,
        lambda lab: hand_written(lab, GUEST_SPA | 7 | 1 << 50)),
    "a page that is not the guest's": (
        FaultKind.RMP_FAULT, PRESENT | USER | RMP | FINAL | ENC, lambda lab: guest(lab, op.Read(0, 1))),
    "a store to it": (
        FaultKind.RMP_FAULT, PRESENT | WRITE | USER | RMP | FINAL | ENC, lambda lab: guest(lab, op.Write(0, b"x"))),
    "a fetch from it": (
        FaultKind.RMP_FAULT, PRESENT | USER | FETCH | RMP | FINAL | ENC, lambda lab: guest(lab, op.Fetch(0, 1))),
    "a shared store to a private page": (
        FaultKind.RMP_FAULT, PRESENT | WRITE | USER | RMP | FINAL,
        lambda lab: guest(owns(lab, SOME), op.Write(0, b"x", private=False))),
    "a walk through a page that is not the guest's": (
        FaultKind.RMP_FAULT, PRESENT | USER | RMP | WALK | ENC, lambda lab: guest(paged(lab), op.VirtualRead(0, 1))),
    "4 KiB of a nested mapping in a 2 MiB entry": (
        FaultKind.RMP_FAULT, PRESENT | USER | RMP | FINAL | ENC | SIZEM,
        lambda lab: guest(mapped_small(lab), op.Read(0, 1))),
    "a VMPL without the right": (
        FaultKind.RMP_FAULT, PRESENT | WRITE | USER | RMP | FINAL | ENC | VMPL,
        lambda lab: guest(readable_by_vmpl1(lab), op.Write(0, b"x"), vmpl=1)),
    "the host's store to a guest's page": (
        FaultKind.RMP_FAULT, PRESENT | WRITE | RMP, lambda lab: host(owns(lab, SOME), op.HostWrite(GUEST_SPA, b"x"))),
    "a page that was never accepted": (
        FaultKind.PAGE_NOT_VALIDATED, 0, lambda lab: guest(owns(lab, SOME, validate=False), op.Read(0, 1))),
    "an intercepted instruction": (
        FaultKind.VMM_COMMUNICATION, ExitCode.CPUID, lambda lab: guest(lab, op.Cpuid(0))),
    "an instruction of another role": (FaultKind.UNDEFINED_OPCODE, 0, lambda lab: guest(lab, op.PSmash(0))),
    "a page that the guest's tables do not have": (
        FaultKind.PAGE_FAULT, 0, lambda lab: guest(paged(with_empty_root(lab)), op.VirtualRead(0, 1))),
    "a value that no register takes": (
        FaultKind.GENERAL_PROTECTION, 0, lambda lab: guest(lab, op.WriteControl("CR0", 1 << 40))),
    "an address without memory": (FaultKind.MACHINE_CHECK, 0, lambda lab: host(lab, op.HostRead(1 << 40, 1))),
    "a device's read that is refused": (FaultKind.DMA_ABORTED, 0, lambda lab: host(lab, op.DeviceRead(1, 0, 1))),
}  # fmt: skip


def with_empty_root(lab: Laboratory) -> Laboratory:
    give(lab, page_of(0x1000), offset=0x1000)
    assert guest(lab, op.Write(0x1000, bytes(KIB4))) is None
    return lab


def paged(lab: Laboratory) -> Laboratory:
    """The guest turns paging on, with its root in the page at 0x1000."""
    batch = (
        op.WriteControl("EFER", 0x1100), op.WriteControl("CR4", 0x20), op.WriteControl("CR3", 0x1000),
        op.WriteControl("CR0", 0x8000_0011),
    )  # fmt: skip
    assert set(lab.guest("one", *batch)) == {None}
    return lab


@pytest.mark.parametrize("name", FAULTS)
def test_an_access_faults_as_its_cause_says(make, name: str) -> None:
    kind, error, act = FAULTS[name]
    answer = act(make())
    assert isinstance(answer, op.Fault)
    assert (answer.kind, answer.error) == (kind, error)


def test_each_kind_of_fault_has_its_cause() -> None:
    assert {kind for kind, _, _ in FAULTS.values()} == set(FaultKind)


# VMRUN.


def with_area(lab: Laboratory, spa: int, asid: int = 1, **more: int) -> op.Answer:
    return host(lab, op.VmcbWrite("one", 9, asid, "SEV_SNP", spa, **more), op.VmRun("one", 9))


def no_longer_accepted(lab: Laboratory) -> op.Answer:
    guest(lab, op.PValidate(AREAS_GPA, KIB4, large=False, validate=False))
    return host(lab, op.VmRun("one", 0))


def made_immutable(lab: Laboratory) -> op.Answer:
    entry = RmpEntry(assigned=True, immutable=True, gpa=BUSY_GPA, asid=1)
    return host(lab, update(entry, BUSY_SPA), op.VmRun("one", 1))


def of_vmpl_9(lab: Laboratory) -> op.Answer:
    owns(lab, SOME)
    guest(lab, op.Write(0xCA, b"\x09"), op.RmpAdjust(0, KIB4, False, 1, 0, vmsa=True))
    return with_area(lab, GUEST_SPA)


def a_sev_guest_with_its_registers_in_a_guests_page(lab: Laboratory) -> op.Answer:
    return host(lab, op.VmcbWrite("x", 0, 0, "PLAIN", save_area("one", 0)), op.VmRun("x", 0))


REFUSED: Mapping[str, tuple[ExitCode, Act]] = {
    "no control block": (ExitCode.INVALID, lambda lab: host(lab, op.VmRun("nobody", 0))),
    "no such thread": (ExitCode.INVALID, lambda lab: host(lab, op.VmRun("one", 0, 1 << 20))),
    "a TLB_CONTROL that is reserved": (
        ExitCode.INVALID, lambda lab: with_area(lab, save_area("one", 0), tlb_control=2)),
    "an ASID of another kind of guest": (ExitCode.INVALID, lambda lab: with_area(lab, save_area("one", 0), asid=100)),
    "an ASID without a key": (ExitCode.INVALID, lambda lab: host(
        lab, op.VmcbWrite("x", 0, 200, "SEV", 5 << 20), op.VmRun("x", 0))),
    "a save area between pages": (ExitCode.INVALID, lambda lab: with_area(lab, save_area("one", 0) + 16)),
    "a save area beyond memory": (ExitCode.INVALID, lambda lab: with_area(lab, 1 << 40)),
    "a save area that is the host's": (ExitCode.INVALID, lambda lab: with_area(lab, 5 << 20)),
    "a save area that is another guest's": (ExitCode.INVALID, lambda lab: with_area(lab, save_area("two", 0))),
    "a page that is none": (ExitCode.INVALID, lambda lab: with_area(owns(lab, SOME), GUEST_SPA)),
    "one that is not validated any more": (ExitCode.INVALID, no_longer_accepted),
    "one that is immutable": (ExitCode.INVALID, made_immutable),
    "one of no VMPL": (ExitCode.INVALID, of_vmpl_9),
    "registers to be stored in a guest's page": (ExitCode.INVALID, a_sev_guest_with_its_registers_in_a_guests_page),
    "one in use": (ExitCode.BUSY, lambda lab: host(runs(lab), op.VmRun("one", 1, 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_vmrun_fails_as_its_cause_says(make, name: str) -> None:
    code, act = REFUSED[name]
    assert act(make()) == code


@pytest.mark.parametrize("refused", [ExitCode.SHUTDOWN, ExitCode.INVALID])
def test_vmrun_of_an_es_guest_finds_a_changed_save_area(refused: ExitCode) -> None:
    machine: Host = make_host(product="Rome", platform=Platform(save_area_refused=refused))
    vm = start(machine, "vm", Generation.SEV_ES, "ledger", units=1)
    run(machine)
    area = op.HostWrite(vm.vcpus[0].save_area_spa, b"changed" * 4)
    answers = machine.board.execute_host((op.VmRun("vm", 0), area, op.VmRun("vm", 0)))
    assert answers == (0, None, refused)


# What the IOMMU tells the host.


def entry(board: Board, **fields: int | bool) -> None:
    """The device's entry, of a driver that writes what it likes."""
    task = Driver().write_entry(REQUESTER, DeviceTableEntry(domain=DOMAIN, **fields))  # type: ignore[arg-type]
    answers = None
    while True:
        try:
            answers = board.execute_host(task.send(answers))
        except StopIteration:
            return


def command(board: Board, data: bytes) -> None:
    board.execute_host((op.HostWrite(COMMANDS, data), write_register(Register.COMMAND_TAIL, 16)))


def beyond(board: Board) -> None:
    board.execute_host((write_register(Register.DEVICE_TABLE_BASE, table_register(1 << 40, 4)),))
    load(board)


def page_of_a_guest(board: Board) -> None:
    attached(board)
    board.execute_host((op.RmpUpdate(TARGET, KIB4, RmpEntry(assigned=True, asid=1)),))
    load(board)


def tables_of_a_guest(board: Board) -> None:
    board.execute_host((op.RmpUpdate(TARGET, KIB4, RmpEntry(assigned=True, asid=1)),))
    entry(board, levels=3, root=TARGET)
    load(board)


def tables_beyond(board: Board) -> None:
    root = 8 << 20
    board.execute_host((op.HostWrite(root, table_pointer(1 << 40, 2).to_bytes(8, "little")),))
    entry(board, levels=3, root=root)
    load(board)


EVENTS: Mapping[EventCode, tuple[str, Callable[[Board], None]]] = {
    EventCode.ILLEGAL_DEV_TABLE_ENTRY: ("Milan", lambda board: (entry(board, levels=7), load(board))[0]),
    EventCode.IO_PAGE_FAULT: ("Milan", lambda board: (attached(board, []), load(board, IOVA))[0] and None),
    EventCode.DEV_TAB_HW_ERROR: ("Rome", beyond),
    EventCode.PAGE_TAB_HW_ERROR: ("Milan", tables_beyond),
    EventCode.ILLEGAL_COMMAND: ("Milan", lambda board: command(board, bytes(16))),
    EventCode.COMMAND_HW_ERROR: (
        "Milan", lambda board: board.execute_host((write_register(Register.COMMAND_TAIL, 0x7_0000),)) and None,
    ),
    EventCode.RMP_PAGE_FAULT: ("Milan", page_of_a_guest),
    EventCode.RMP_HW_ERROR: ("Milan", tables_of_a_guest),
}
NOT_MODELLED = {
    EventCode.IOTLB_INV_TIMEOUT, EventCode.INVALID_DEVICE_REQUEST,  # translations inside of devices (ATS)
    EventCode.INVALID_PPR_REQUEST, EventCode.EVENT_COUNTER_ZERO, EventCode.GUEST_EVENT_FAULT,
    EventCode.VIOMMU_HW_ERROR,
}  # fmt: skip
"""Of features that the IOMMU does not report."""


@pytest.mark.parametrize("code", EVENTS, ids=lambda code: code.name)
def test_the_iommu_tells_of_each_refusal(code: EventCode) -> None:
    product, act = EVENTS[code]
    board = brought_up(product)
    act(board)
    assert [event.code for event in events(board)] == [code]


def test_each_event_of_what_is_modelled_has_its_cause() -> None:
    assert set(EVENTS) | NOT_MODELLED == set(EventCode)
    assert not set(EVENTS) & NOT_MODELLED


@pytest.mark.parametrize("one", [accept(), adjust(1), op.RmpQuery(0, 1)], ids=["PVALIDATE", "RMPADJUST", "RMPQUERY"])
def test_instructions_of_the_rmp_are_the_guests_kernels_alone(one: op.GuestOperation) -> None:
    guest_of_two = paged_guest(Generation.SEV_SNP, LONG, {**LONG, "CPL": 3})
    answers = [guest_of_two.do(one, vcpu=vcpu) for vcpu in (0, 1)]
    assert not isinstance(answers[0], op.Fault)
    assert answers[1] == op.Fault(FaultKind.GENERAL_PROTECTION, 0)
