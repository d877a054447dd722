"""How virtual machine monitors differ in what they launch: each row changes the launch digest.

Source: sev-snp-measure 0.0.13, which read QEMU's and KVM's code and tried the
clouds' machines. No cloud publishes its start-up state, virtee/sev expects
another EC2, and Google's own verifier has save areas at FFFFFFFFFF000 on Genoa,
where this table keeps the address of every other VMM: what a cloud does today
is not known to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.vmsa import BSP_RESET_EIP
from psp.launch_digest import PageType

_CLOUD_RESET: Mapping[str, int] = {"RDX": 0x600, "MXCSR": 0, "FCW": 0}
"""RDX as after a reset of an unnamed processor, and no FPU state: both clouds' own VMMs leave it so."""


@dataclass(frozen=True, slots=True)
class Vmm:
    """One virtual machine monitor. ``save_area`` holds the fields in which its vCPUs start unlike QEMU's."""

    name: str
    shows_signature: bool = True
    """RDX holds the CPUID signature of the vCPU model, which therefore must be known."""
    save_area: Mapping[str, int] = field(default_factory=dict)
    boot_save_area: Mapping[str, int] = field(default_factory=dict)
    """The same for vCPUs that start at the reset vector alone."""
    sec_mem: PageType = PageType.ZERO
    cpuid_last: bool = False
    """CPUID pages come after all other sections."""

    def changes(self, eip: int) -> Mapping[str, int]:
        """What becomes of the usual initial save area of a vCPU that starts at ``eip``."""
        return {**self.save_area, **(self.boot_save_area if eip == BSP_RESET_EIP else {})}


QEMU = Vmm("QEMU")
EC2 = Vmm(
    "ec2",
    shows_signature=False,
    save_area={**_CLOUD_RESET, "SS_ATTRIBUTES": 0x92, "TR_ATTRIBUTES": 0x83},
    boot_save_area={"CS_ATTRIBUTES": 0x9A},
    cpuid_last=True,
)
GCE = Vmm(
    "gce",
    shows_signature=False,
    save_area={**_CLOUD_RESET, "G_PAT": 0x0007_0106},
    sec_mem=PageType.UNMEASURED,
)

VMMS: Mapping[str, Vmm] = {vmm.name: vmm for vmm in (QEMU, EC2, GCE)}
