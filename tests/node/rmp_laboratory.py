"""A board with three SNP guests, brought up by the firmware's commands and a hypervisor's operations alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from node import operations as op
from node.board import Board
from node.core_msrs import Msr
from node.counter_random import CounterRandom
from node.generation import Generation
from node.host_bring_up import bring_up_steps, refusal
from node.platform import AS_USUAL, Platform
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.launch_digest import PageType
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

MEMORY_BYTES = 64 << 20
COMMAND_PAGE = 1 << 16
GUEST_SPA, GUEST_BYTES = 8 << 20, 4 << 20
"""Memory that every guest sees at guest-physical zero, in nested mappings of 2 MiB."""
TABLES_SPA, TABLES_BYTES = 6 << 20, 64 << 10
"""Nested tables: those of each guest, by ASID."""
AREAS_GPA = 16 << 20
POLICY = 0x3_0000
VMPLS = 4
RUNNING = {"one": 1, "two": 2}
LAUNCHING = {"three": 3}
"""Its launch is not finished, so the host may still add pages."""
VMS = {**RUNNING, **LAUNCHING}
FIRMWARE = RmpEntry(assigned=True, immutable=True)
_VMPL_OFFSET = 0xCA


def gctx(vm: str) -> int:
    """A guest's context page."""
    return (2 << 20) + VMS[vm] * PAGE_BYTES


def save_area(vm: str, vmpl: int) -> int:
    """Where the save area of a guest's vCPU at a VMPL lies."""
    return (3 << 20) + (VMS[vm] * VMPLS + vmpl) * PAGE_BYTES


@dataclass
class Laboratory:
    """The board, and who acts on it."""

    board: Board
    overheard: Callable[[str, op.Answer], None] = lambda _, __: None
    """Told of every answer, and to whom: the host, or a guest."""

    def host(self, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
        answers = self.board.execute_host(batch)
        for answer in answers:
            self.overheard("host", answer)
        return answers

    def guest(self, vm: str, *batch: op.GuestOperation, vmpl: int = 0) -> tuple[op.Answer, ...]:
        answers = self.board.execute_guest(self.board.vmcb(vm, vmpl), batch)
        for answer in answers:
            self.overheard(vm, answer)
        return answers

    def firmware(self, command: SnpCommand, buffer: ByteLayout | None = None) -> Status:
        """Ring the mailbox as a driver does."""
        data = b"" if buffer is None else buffer.pack()
        (answer,) = self.host(op.PspCommand(command, COMMAND_PAGE, data))
        assert isinstance(answer, op.PspAnswer)
        return Status(answer.status)

    def entries_spa(self, spa: int = GUEST_SPA) -> int:
        """Where the entry of a page lies."""
        assert self.board.rmp is not None
        return self.board.rmp.layout.entry_spa(spa // PAGE_BYTES)

    def table(self) -> bytes:
        """Bytes of every entry and counter: what a refused instruction leaves alone."""
        assert self.board.rmp is not None
        return b"".join(self.board.dram.read(spa, length) for spa, length in self.board.rmp.layout.ranges())


def laboratory(
    product: str = "Turin", platform: Platform = AS_USUAL, *, init_flags: int = 0, **switches: bool
) -> Laboratory:
    """Guests with a vCPU at each VMPL; nobody owns the memory that they see. ``init_flags`` are more of SNP_INIT_EX."""
    row = PRODUCTS[product]
    row = replace(row, rmp=replace(row.rmp, **switches))
    lab = Laboratory(Board("board", row, MEMORY_BYTES, 100, CounterRandom(1), platform))
    (syscfg,) = lab.host(op.ReadMsr(0, Msr.SYSCFG))
    assert isinstance(syscfg, int)
    for step in bring_up_steps(row, COMMAND_PAGE, syscfg, platform.max_snp_asid):
        batch = tuple([_with_flags(one, init_flags) for one in step.batch])
        assert refusal(step, lab.host(*batch)) == ""
    for vm, asid in VMS.items():
        assert lab.host(op.RmpUpdate(gctx(vm), PAGE_BYTES, FIRMWARE)) == (0,)
        assert not lab.firmware(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(gctx(vm)))
        assert not lab.firmware(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(gctx(vm), POLICY))
        assert not lab.firmware(SnpCommand.ACTIVATE, buffers.SnpActivate(gctx(vm), asid))
        lab.host(op.NestedFrames(vm, TABLES_SPA + asid * TABLES_BYTES, TABLES_BYTES))
        lab.host(op.NestedMap(vm, 0, GUEST_SPA, GUEST_BYTES))
        lab.host(op.NestedMap(vm, AREAS_GPA, save_area(vm, 0), VMPLS * PAGE_BYTES))
        for vmpl in range(VMPLS):
            _launch_save_area(lab, vm, vmpl)
        if vm in RUNNING:
            assert not lab.firmware(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(gctx(vm)))
    return lab


def _with_flags(one: op.HypervisorOperation, flags: int) -> op.HypervisorOperation:
    if not isinstance(one, op.PspCommand) or one.command != SnpCommand.INIT_EX:
        return one
    asked = buffers.SnpInitEx.parse(one.buffer)
    return replace(one, buffer=replace(asked, flags=asked.flags | flags).pack())


def _launch_save_area(lab: Laboratory, vm: str, vmpl: int) -> None:
    spa, asid = save_area(vm, vmpl), VMS[vm]
    page = bytearray(PAGE_BYTES)
    page[_VMPL_OFFSET] = vmpl
    entry = RmpEntry(assigned=True, immutable=True, gpa=AREAS_GPA + vmpl * PAGE_BYTES, asid=asid)
    update = buffers.SnpLaunchUpdate.of(gctx(vm), PageType.VMSA, spa)
    assert lab.host(op.HostWrite(spa, bytes(page)), op.RmpUpdate(spa, PAGE_BYTES, entry)) == (None, 0)
    assert not lab.firmware(SnpCommand.LAUNCH_UPDATE, update)
    control_block = op.VmcbWrite(vm, vmpl, asid, Generation.SEV_SNP.name, spa)
    assert lab.host(control_block, op.VmRun(vm, vmpl)) == (None, 0)
    assert lab.board.vmcb(vm, vmpl).vmpl == vmpl


def page_of(gpa: int = 0, *, large: bool = False, immutable: bool = False, asid: int = 1) -> RmpEntry:
    """An entry that a guest may own."""
    return RmpEntry(assigned=True, large=large, immutable=immutable, gpa=gpa, asid=asid)


def give(lab: Laboratory, entry: RmpEntry, *, offset: int = 0, validate: bool = True) -> None:
    """Give a page of the common memory to its owner, who accepts it."""
    length = LARGE_PAGE_BYTES if entry.large else PAGE_BYTES
    assert lab.host(op.RmpUpdate(GUEST_SPA + offset, length, entry)) == (0,)
    if validate:
        (vm,) = [vm for vm, asid in VMS.items() if asid == entry.asid]
        done = op.PValidateResult(0, unchanged=False)
        assert lab.guest(vm, op.PValidate(entry.gpa, length, entry.large)) == (done,)
