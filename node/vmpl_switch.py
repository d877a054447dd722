"""VMPLs as a hypervisor sees them: each vCPU has a save area for each VMPL that its guest made one for.

VMRUN enters the VMPL that stands in the save area. So the hypervisor switches VMPLs by
pointing the vCPU's control block at another save area, and it does so only when the
guest asks: by event 80000018, or by message 016 of the MSR protocol. Save areas of
VMPL 1 to 3 are announced by AP creation (80000013), whose EXITINFO1 names the VMPL.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node import operations as op
from node.nae_event import ApCreation, ApCreationKind
from psp.system_bus import LARGE_PAGE_BYTES

if TYPE_CHECKING:
    from node.hypervisor_port import Answers, Batch
    from node.launched_vm import LaunchedVm


@dataclass(slots=True)
class VmplBook:
    """What a hypervisor keeps of a VM with several VMPLs."""

    areas: dict[tuple[int, int], int] = field(default_factory=dict)
    """SPA of the save area of each vCPU and VMPL."""
    running: dict[int, int] = field(default_factory=dict)
    """VMPL of each vCPU's control block, where that is not VMPL0."""

    @classmethod
    def of(cls, save_areas: Sequence[int]) -> VmplBook:
        """With the save areas that a launch made, of VMPL0."""
        return cls({(vcpu, 0): spa for vcpu, spa in enumerate(save_areas)})

    def vmpl(self, vcpu: int) -> int:
        """At which VMPL a vCPU runs."""
        return self.running.get(vcpu, 0)


def announce(record: LaunchedVm, asked: ApCreation) -> bool:
    """Take the save area of a vCPU's VMPL 1 to 3, or forget it; False, and nothing changed, for one that is none.

    As KVM (sev_snp_ap_creation): the vCPU exists, its features are the VM's, and the page is the guest's own
    and not at the beginning of 2 MiB. That the page is a save area is for VMRUN to find. Memory of a guest stays
    where it is, so its SPA may be kept; while a control block names the area, it stays.
    """
    book, seat = record.vmpls, (asked.apic_id, asked.vmpl)
    if book is None or not asked.vmpl or asked.apic_id >= len(record.save_areas):
        return False
    if book.vmpl(asked.apic_id) == asked.vmpl:
        return False
    if asked.kind is ApCreationKind.DESTROY:
        return book.areas.pop(seat, None) is not None
    spa = record.page_spa(asked.vmsa_gpa)
    if spa is None or not asked.vmsa_gpa % LARGE_PAGE_BYTES or asked.sev_features != record.sev_features:
        return False
    book.areas[seat] = spa
    return True


def run_vmpl(vm: str, record: LaunchedVm, vcpu: int, vmpl: int) -> Generator[Batch, Answers, bool]:
    """Enter a vCPU at another VMPL; False, with the vCPU where it was, if VMRUN does not."""
    book = record.vmpls
    if book is None or (vcpu, vmpl) not in book.areas:
        return False
    before = book.vmpl(vcpu)
    for wanted in (vmpl, before):
        spa = book.areas[vcpu, wanted]
        # The vCPU is out of guest mode: its exit let go of the save area.
        *_, code = yield (
            op.VmPreempt(vm, vcpu),
            op.VmcbWrite(vm, vcpu, record.asid, record.generation.name, spa),
            op.VmRun(vm, vcpu),
        )
        if code == 0:
            book.running[vcpu] = wanted
            return wanted == vmpl
    return False
