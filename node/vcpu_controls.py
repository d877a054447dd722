"""Control registers of the vCPUs that run: loaded from their save areas at VMRUN, and kept there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.control_registers import ControlRegisters
from node.vmsa import VMSA_FIELDS

if TYPE_CHECKING:
    from node.board import Board
    from node.vmcb import Vmcb


class VcpuControls:
    """What a core holds of a vCPU besides its general registers.

    A change goes to the save area at once, so an exit has nothing to store; a change that somebody
    makes there is seen at the next VMRUN.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._loaded: dict[tuple[str, int], ControlRegisters] = {}

    def of(self, vmcb: Vmcb) -> ControlRegisters:
        """The registers of a vCPU. Raises MachineCheck and NoKey where its save area cannot be read."""
        found = self._loaded.get((vmcb.vm, vmcb.vcpu))
        if found is None:
            found = ControlRegisters.of(self._board.save_areas.load(vmcb))
            self._loaded[vmcb.vm, vmcb.vcpu] = found
        return found

    def write(self, vmcb: Vmcb, name: str, value: int) -> None:
        """MOV to a control register, or WRMSR of EFER. Raises InvalidControl."""
        new = self.of(vmcb).written(name, value)
        self._loaded[vmcb.vm, vmcb.vcpu] = new
        for field, number in (("CR0", new.cr0), ("CR3", new.cr3), ("CR4", new.cr4), ("EFER", new.efer)):
            self.store(vmcb, field, number)

    def write_flags(self, vmcb: Vmcb, value: int) -> None:
        """Set RFLAGS. Raises InvalidControl."""
        new = self.of(vmcb).flags_written(value)
        self._loaded[vmcb.vm, vmcb.vcpu] = new
        self.store(vmcb, "RFLAGS", new.rflags)
        self._board.events.flags_changed(vmcb, new.rflags)

    def load(self, vmcb: Vmcb, name: str) -> int:
        """One field of the save area, as the core has it."""
        field = VMSA_FIELDS[name]
        key = self._board.save_areas.key(vmcb)
        octets = self._board.controller.read(vmcb.save_area_spa + field.offset, field.width, key)
        return int.from_bytes(octets, "little")

    def store(self, vmcb: Vmcb, name: str, value: int) -> None:
        """Set one field of the save area, as the core does."""
        field = VMSA_FIELDS[name]
        self._board.save_areas.store_field(vmcb, field.offset, value.to_bytes(field.width, "little"))

    def forget(self, vm: str, vcpu: int | None = None) -> None:
        """The vCPU, or all of a VM's, left the core."""
        if vcpu is not None:
            self._loaded.pop((vm, vcpu), None)
            return
        for key in [key for key in self._loaded if key[0] == vm] if self._loaded else ():
            del self._loaded[key]
