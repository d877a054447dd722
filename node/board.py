"""One host's board: it executes operations on the hardware it is made of.

The role and identity of whoever yields an operation come from the core that
runs it (a ``Vmcb``, or the host itself), never from the operation. A role that
may not execute an instruction gets #UD. The board knows no time; what an
operation costs is said by ``operation_cost``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from node import operations as op
from node.counter_random import CounterRandom
from node.disk import Disk
from node.dram import Dram, MachineCheck
from node.generation import Generation
from node.host_system_bus import HostSystemBus
from node.memory_controller import MemoryController, NoKey
from node.nested_page_table import NestedPageFault, NestedPageTable
from node.product import Product
from node.rmp import GuestCore, NotValidated, ProtectionFault, ReverseMapTable, RmpFault
from node.rmp_checks import PERMIT_READ, PERMIT_WRITE, VmsaInUse
from node.rmp_layout import at_end_of_memory
from node.vmcb import Vmcb
from node.vmsa import VMSA_BYTES, VMSA_FIELDS
from node.xex_cipher import TweakTable
from psp.firmware import SecurityProcessor

VMEXIT_INVALID = -1
"""Exit code of VMRUN when a check of the control block fails (APM volume 2, 15.5.1)."""
VMEXIT_BUSY = -2
"""Exit code of VMRUN when another core runs with the save area."""

_VMPLS = 4

HypervisorReply = Generator[tuple[op.HypervisorOperation, ...], tuple[op.Answer, ...], int]
ExitHandler = Callable[[str, op.PageStateChange], HypervisorReply]


class Board:
    """DRAM, memory controller, RMP, security processor, disks and the control blocks of VMs."""

    def __init__(
        self, name: str, product: Product, memory_bytes: int, min_sev_asid: int, random: CounterRandom
    ) -> None:
        self.product = product
        self.dram = Dram(memory_bytes)
        tweaks = TweakTable.from_random(random.octets(name, "memory tweaks", 0, TweakTable.RANDOM_BYTES))
        self.controller = MemoryController(self.dram, tweaks)
        self.rmp: ReverseMapTable | None = None
        if Generation.SEV_SNP in product.generations:
            # Firmware reserves the table's place and sets the MSRs before the hypervisor starts.
            layout = at_end_of_memory(memory_bytes, segmented=product.rmp.segmented)
            self.rmp = ReverseMapTable(self.dram, layout, product.rmp)
        self.bus = HostSystemBus(product, min_sev_asid, memory_bytes, self.controller, self.rmp)
        self.psp = SecurityProcessor(
            self.bus,
            lambda purpose, counter, length: random.octets(name, f"psp {purpose}", counter, length),
            api=product.firmware_api,
        )
        self.exit_handler: ExitHandler | None = None
        """The hypervisor's answer to a page state change; runs while the vCPU is stopped."""
        self._nested: dict[str, NestedPageTable] = {}
        self._vmcbs: dict[str, dict[int, Vmcb]] = {}
        self._running: dict[tuple[str, int], int] = {}
        """Save areas that vCPUs under the RMP run with."""
        self._disks: dict[str, Disk] = {}
        self._guest_table: dict[type, Callable[..., op.Answer]] = {
            op.Read: self._read,
            op.Write: self._write,
            op.PValidate: self._pvalidate,
            op.RmpAdjust: self._rmpadjust,
            op.RmpQuery: self._rmpquery,
            op.PageStateChange: self._page_state_change,
            op.BlockRead: self._block,
            op.BlockWrite: self._block,
        }
        self._host_table: dict[type, Callable[..., op.Answer]] = {
            op.HostRead: self._host_read,
            op.HostReadWritten: self._host_read_written,
            op.HostWrite: self._host_write,
            op.HostClear: self._host_clear,
            op.HostWork: lambda _: None,
            op.RmpUpdate: self._rmpupdate,
            op.PSmash: self._psmash,
            op.RmpRead: self._rmpread,
            op.NestedMap: self._nested_map,
            op.NestedUnmap: self._nested_unmap,
            op.VmcbWrite: self._vmcb_write,
            op.VmcbClear: self._vmcb_clear,
            op.VmRun: self._vmrun,
            op.DiskRead: self._disk_read,
            op.DiskWrite: self._disk_write,
            op.PspCommand: self._psp_command,
            op.Wbinvd: self._wbinvd,
        }

    def vmcb(self, vm: str, vcpu: int) -> Vmcb:
        """The control block of a vCPU; KeyError if the hypervisor wrote none."""
        return self._vmcbs[vm][vcpu]

    def execute_guest(self, vmcb: Vmcb, batch: tuple[op.GuestOperation, ...]) -> tuple[op.Answer, ...]:
        """Execute a guest's batch as the vCPU of ``vmcb``."""
        table = self._guest_table
        return tuple([table[type(one)](vmcb, one) if type(one) in table else _undefined() for one in batch])

    def execute_host(self, batch: tuple[op.HypervisorOperation, ...]) -> tuple[op.Answer, ...]:
        """Execute a hypervisor's batch on a core in host mode."""
        table = self._host_table
        return tuple([table[type(one)](one) if type(one) in table else _undefined() for one in batch])

    # Guests.

    def _read(self, vmcb: Vmcb, one: op.Read) -> op.Answer:
        try:
            segments = vmcb.nested.translate(one.gpa, one.length)
            key_asid = self._checked(vmcb, one.gpa, segments, one.private, write=False)
            if len(segments) == 1:
                return self.controller.read(segments[0][0], one.length, key_asid)
            return b"".join([self.controller.read(spa, length, key_asid) for spa, length in segments])
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, one.gpa)

    def _write(self, vmcb: Vmcb, one: op.Write) -> op.Answer:
        data = one.data
        try:
            segments = vmcb.nested.translate(one.gpa, len(data))
            key_asid = self._checked(vmcb, one.gpa, segments, one.private, write=True)
            if len(segments) == 1:
                self.controller.write(segments[0][0], data, key_asid)
                return None
            view, start = memoryview(data), 0
            for spa, length in segments:
                self.controller.write(spa, view[start : start + length], key_asid)
                start += length
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, one.gpa)
        return None

    def _checked(self, vmcb: Vmcb, gpa: int, segments: list[tuple[int, int]], private: bool, write: bool) -> int:
        """RMP checks of a guest access; the ASID whose key it uses, 0 for none."""
        if private and vmcb.encrypted:
            if vmcb.rmp_checked:
                assert self.rmp is not None
                needs = PERMIT_WRITE if write else PERMIT_READ
                for spa, length in segments:
                    self.rmp.check_guest_private(spa, gpa, vmcb.asid, length, needs=needs, vmpl=vmcb.vmpl)
                    gpa += length
                return vmcb.asid
            if write and self.rmp is not None:
                # A SEV guest has no RMP entries of its own: it may only write where the host may.
                for spa, length in segments:
                    self.rmp.check_guest_write(spa, length, encrypted=True)
            return vmcb.asid
        if self.rmp is not None and (write or self.product.rmp.shared_reads_checked):
            check = self.rmp.check_guest_write if write else self.rmp.checks.check_guest_shared_read
            for spa, length in segments:
                check(spa, length)
        return 0

    def _pvalidate(self, vmcb: Vmcb, one: op.PValidate) -> op.Answer:
        if not vmcb.rmp_checked or self.rmp is None:
            return _undefined()
        unchanged = False
        gpa = one.gpa
        core = GuestCore(vmcb.asid, vmcb.vmpl)
        try:
            for spa, length in vmcb.nested.translate(one.gpa, one.length):
                code, same = self.rmp.pvalidate(spa, gpa, core, length, one.large, one.validate)
                unchanged = unchanged or same
                if code:
                    return op.PValidateResult(int(code), unchanged)
                gpa += length
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, gpa)
        return op.PValidateResult(0, unchanged)

    def _rmpadjust(self, vmcb: Vmcb, one: op.RmpAdjust) -> op.Answer:
        if not vmcb.rmp_checked or self.rmp is None:
            return _undefined()
        gpa, code = one.gpa, 0
        core = GuestCore(vmcb.asid, vmcb.vmpl)
        try:
            for spa, length in vmcb.nested.translate(one.gpa, one.length):
                code = self.rmp.rmpadjust(spa, gpa, core, length, one.large, one.target, one.permissions, one.vmsa)
                if code:
                    break
                gpa += length
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, gpa)
        return int(code)

    def _rmpquery(self, vmcb: Vmcb, one: op.RmpQuery) -> op.Answer:
        if not vmcb.rmp_checked or self.rmp is None:
            return _undefined()
        try:
            ((spa, _),) = vmcb.nested.translate(one.gpa, 1)
            core = GuestCore(vmcb.asid, vmcb.vmpl)
            code, permissions, large = self.rmp.rmpquery(spa, one.gpa, core, one.target)
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, one.gpa)
        return op.RmpQueryResult(int(code), permissions, large)

    def _page_state_change(self, vmcb: Vmcb, one: op.PageStateChange) -> op.Answer:
        if self.exit_handler is None:
            return op.Fault(op.FaultKind.UNDEFINED_OPCODE, one.gpa)
        handler = self.exit_handler(vmcb.vm, one)
        try:
            batch = next(handler)
            while True:
                batch = handler.send(self.execute_host(batch))
        except StopIteration as done:
            return int(done.value)

    def _block(self, vmcb: Vmcb, one: op.BlockRead | op.BlockWrite) -> op.Answer:
        return self._disk(vmcb.vm).transfer(one)

    def _disk(self, vm: str) -> Disk:
        disk = self._disks.get(vm)
        if disk is None:
            disk = self._disks[vm] = Disk(self.controller, self.rmp, self._nested_table(vm))
        return disk

    # The host.

    def _host_read(self, one: op.HostRead) -> op.Answer:
        try:
            return self.controller.read(one.spa, one.length, 0)
        except MachineCheck as fault:
            return _machine_check(fault, one.spa)

    def _host_read_written(self, one: op.HostReadWritten) -> op.Answer:
        try:
            runs = self.dram.resident_runs(one.spa, one.length)
            return op.Runs(tuple([(spa, self.controller.read(spa, length, 0)) for spa, length in runs]))
        except MachineCheck as fault:
            return _machine_check(fault, one.spa)

    def _host_write(self, one: op.HostWrite) -> op.Answer:
        try:
            if self.rmp is not None:
                self.rmp.check_host_write(one.spa, len(one.data))
            self.controller.lay(one.spa, one.data, 0)
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, one.spa)
        return None

    def _host_clear(self, one: op.HostClear) -> op.Answer:
        try:
            if self.rmp is not None:
                self.rmp.check_host_write(one.spa, one.length)
            self.dram.release(one.spa, one.length)
        except _FAULTS as fault:
            return _FAULT_ANSWERS[type(fault)](fault, one.spa)
        return None

    def _rmpupdate(self, one: op.RmpUpdate) -> op.Answer:
        if self.rmp is None:
            return _undefined()
        return int(self.rmp.rmpupdate(one.spa, one.length, one.entry))

    def _psmash(self, one: op.PSmash) -> op.Answer:
        if self.rmp is None:
            return _undefined()
        return int(self.rmp.psmash(one.spa))

    def _rmpread(self, one: op.RmpRead) -> op.Answer:
        if self.rmp is None or not self.product.rmp.rmpread:
            return _undefined()
        code, state = self.rmp.rmpread(one.spa)
        return op.RmpReadResult(int(code), state)

    def _nested_map(self, one: op.NestedMap) -> op.Answer:
        self._nested_table(one.vm).map(one.gpa, one.spa, one.length)
        return None

    def _nested_unmap(self, one: op.NestedUnmap) -> op.Answer:
        self._nested_table(one.vm).unmap(one.gpa, one.length)
        return None

    def _nested_table(self, vm: str) -> NestedPageTable:
        return self._nested.setdefault(vm, NestedPageTable())

    def _vmcb_write(self, one: op.VmcbWrite) -> op.Answer:
        nested = self._nested_table(one.vm)
        vmcb = Vmcb(one.vm, one.vcpu, one.asid, Generation(one.generation), one.save_area_spa, nested)
        self._vmcbs.setdefault(one.vm, {})[one.vcpu] = vmcb
        return None

    def _vmcb_clear(self, one: op.VmcbClear) -> op.Answer:
        for table in (self._vmcbs, self._nested, self._disks):
            table.pop(one.vm, None)
        return None

    def _vmrun(self, one: op.VmRun) -> op.Answer:
        vmcb = self._vmcbs.get(one.vm, {}).get(one.vcpu)
        if vmcb is None:
            return VMEXIT_INVALID
        if vmcb.rmp_checked:
            if self.rmp is None:
                return VMEXIT_INVALID
            try:
                if not self.rmp.checks.may_enter(vmcb.save_area_spa, vmcb.asid):
                    return VMEXIT_INVALID
            except VmsaInUse:
                return VMEXIT_BUSY
        if vmcb.encrypted and not self.controller.has_key(vmcb.asid):
            return VMEXIT_INVALID
        return 0 if self._take_vmpl(vmcb) else VMEXIT_INVALID

    def _disk_read(self, one: op.DiskRead) -> op.Answer:
        disk = self._disks.get(one.vm)
        return op.Runs(() if disk is None else tuple(disk.media.runs()))

    def _disk_write(self, one: op.DiskWrite) -> op.Answer:
        self._disk(one.vm).media.write(one.lba, one.data)
        return None

    def _psp_command(self, one: op.PspCommand) -> op.Answer:
        if one.buffer:
            laid = self._host_write(op.HostWrite(one.spa, one.buffer))
            if laid is not None:
                return laid
        status = self.psp.submit(one.command, one.spa)
        return op.PspAnswer(int(status), self.controller.read(one.spa, len(one.buffer), 0) if one.buffer else b"")

    def _wbinvd(self, _: op.Wbinvd) -> op.Answer:
        self.bus.wbinvds += 1
        return None

    # What a core does while a vCPU runs.

    def enter(self, vm: str, vcpu: int) -> None:
        """A vCPU begins to run: its save area is in use until ``leave``, and it has the VMPL that stands there."""
        vmcb = self._vmcbs[vm][vcpu]
        if vmcb.rmp_checked and self.rmp is not None:
            self._running[vm, vcpu] = vmcb.save_area_spa
            self.rmp.checks.enter(vmcb.save_area_spa)
            self._take_vmpl(vmcb)

    def leave(self, vm: str, vcpu: int) -> None:
        """A vCPU is off its core; one that did not run is left alone."""
        spa = self._running.pop((vm, vcpu), None)
        if spa is not None and self.rmp is not None:
            self.rmp.checks.leave(spa)

    def _take_vmpl(self, vmcb: Vmcb) -> bool:
        if not vmcb.rmp_checked:
            return True
        (vmpl,) = self.controller.read(vmcb.save_area_spa + VMSA_FIELDS["VMPL"].offset, 1, vmcb.asid)
        if vmpl >= _VMPLS:
            return False
        if vmpl != vmcb.vmpl:
            self._vmcbs[vmcb.vm][vmcb.vcpu] = replace(vmcb, vmpl=vmpl)
        return True

    # Save areas, which the core itself reads and writes at VMRUN and at an exit.

    def load_save_area(self, vmcb: Vmcb) -> bytes:
        """The save area as VMRUN reads it."""
        return self.controller.read(vmcb.save_area_spa, VMSA_BYTES, self._save_area_asid(vmcb))

    def store_save_area(self, vmcb: Vmcb, page: bytes) -> None:
        """Write the save area as an exit does."""
        self.controller.write(vmcb.save_area_spa, page, self._save_area_asid(vmcb))

    def _save_area_asid(self, vmcb: Vmcb) -> int:
        # Registers are encrypted from SEV-ES on; a SEV guest's stay in the clear.
        return vmcb.asid if vmcb.generation in (Generation.SEV_ES, Generation.SEV_SNP, Generation.SEV_TIO) else 0


def _undefined() -> op.Fault:
    return op.Fault(op.FaultKind.UNDEFINED_OPCODE, 0)


def _machine_check(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.MACHINE_CHECK, address)


def _nested_fault(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.NESTED_PAGE_FAULT, address)


def _rmp_fault(fault: RmpFault, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.RMP_FAULT, address, fault.error)


def _protection(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.GENERAL_PROTECTION, address)


def _not_validated(_: Exception, address: int) -> op.Fault:
    return op.Fault(op.FaultKind.PAGE_NOT_VALIDATED, address)


_FAULTS = (MachineCheck, NestedPageFault, NoKey, RmpFault, NotValidated, ProtectionFault)
_FAULT_ANSWERS: dict[type, Callable[..., op.Fault]] = {
    MachineCheck: _machine_check,
    NoKey: _machine_check,
    NestedPageFault: _nested_fault,
    RmpFault: _rmp_fault,
    NotValidated: _not_validated,
    ProtectionFault: _protection,
}
