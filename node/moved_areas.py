"""Save areas of a guest that agents move: whose each is, where the guest has it, and which each vCPU runs with.

With an SVSM below it a vCPU has one for each VMPL, the SVSM's own at VMPL0, which its launch made, and others in its
guest's memory. Firmware swaps all of them out as VMSA pages. What stands before each is its hypervisor's word alone:
VMRUN enters the VMPL that the save area itself names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.hypervisor_port import LaunchRefused
from node.launched_vm import LaunchedVm
from node.vm_state import VmState
from psp.secret_packet import PacketHeader

_FORM = struct.Struct(f"<QHBB{PacketHeader.SIZE - 12}x")
_VMPLS = 4


@dataclass(frozen=True, slots=True)
class MovedArea:
    """What a hypervisor says of a save area. ``entered``: the vCPU's control block names it."""

    gpa: int
    vcpu: int
    vmpl: int = 0
    entered: bool = True

    def pack(self) -> bytes:
        """As it stands before the save area's page."""
        return _FORM.pack(self.gpa, self.vcpu, self.vmpl, self.entered)

    @classmethod
    def parse(cls, header: bytes) -> MovedArea:
        """The other way, of a header of the right length."""
        gpa, vcpu, vmpl, entered = _FORM.unpack(header)
        return cls(gpa, vcpu, vmpl, bool(entered))


def areas_of(record: LaunchedVm) -> list[tuple[int, int, int]]:
    """(vCPU, VMPL, SPA) of all that a guest here has, those of VMPL0 first."""
    book = record.vmpls
    if book is None:
        return [(vcpu, 0, record.created.get(vcpu, spa)) for vcpu, spa in enumerate(record.save_areas)]
    return [(vcpu, vmpl, book.areas[vcpu, vmpl]) for vcpu, vmpl in sorted(book.areas, key=lambda one: one[::-1])]


def areas_in(state: VmState, vcpus: int, *, levels: bool) -> list[MovedArea]:
    """What came with a guest of so many vCPUs. Raises LaunchRefused for what no guest has.

    ``levels`` says whether its vCPUs have several VMPLs.
    """
    found = [MovedArea.parse(header) for _, header, _ in state.sealed_areas]
    seats = {(one.vcpu, one.vmpl) for one in found}
    wrong = (
        len(seats) != len(found)
        or [(one.vcpu, one.vmpl) for one in found[:vcpus]] != [(vcpu, 0) for vcpu in range(vcpus)]
        or any(one.vcpu >= vcpus or not 0 < one.vmpl < _VMPLS for one in found[vcpus:])
        or sorted(one.vcpu for one in found if one.entered) != list(range(vcpus))
    )
    if wrong or (len(found) > vcpus and not levels):
        raise LaunchRefused("save areas: expected one of VMPL0 for each vCPU, and one that each runs with, got others")
    return found
