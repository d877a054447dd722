"""The part of a scenario that is about guests' kernels: ``kernel = {lazy_validation = true}`` in a group of VMs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from cluster.scenario_fields import ScenarioPart
from node.boot_phases import BootPath
from node.kernel_settings import KernelSettings

Switch = Annotated[bool, Strict()]


class KernelTable(ScenarioPart):
    """How a guest's kernel accepts its memory, and which of its checks it makes; each that is off is a known hole."""

    lazy_validation: Switch = False
    """Accept memory in chunks of 2 MiB when it is first touched, not all of it at boot; for SEV-SNP."""
    checks_sev_status: Switch = True
    """Go on only as what the kernel was built for, by SEV_STATUS."""
    checks_c_bit: Switch = True
    """Verify that memory written with the C-bit reads otherwise without it."""
    checks_carry: Switch = True
    """Take a page that was valid before PVALIDATE for an attack."""
    tracks_validation: Switch = True
    """Never accept a page twice."""
    reads_cpuid_page: Switch = True
    """Answer CPUID from the page that firmware checked at launch."""
    checks_cpuid: Switch = True
    """End the VM where the hypervisor's CPUID denies the guest's encryption."""
    checks_protocol: Switch = True
    """Speak only with a hypervisor that speaks the same version of the GHCB protocol."""
    checks_features: Switch = True
    """Go on as an SNP guest only where the hypervisor offers what that needs."""
    checks_page_states: Switch = True
    """Take pages for shared only when the hypervisor has said so."""
    checks_jump_table: Switch = True
    """Lay the jump table of a SEV-ES guest only where its firmware has it."""
    checks_replies: Switch = True
    """Believe replies through the GHCB only if their form is right."""
    checks_exit_code: Switch = True
    """#VC must have the code of the instruction that raised it."""
    checks_answers: Switch = True
    """Take for an answer of the security processor only the one to the request."""

    ghcb_version: Annotated[int, Strict(), Field(ge=1, le=2)] = 2
    """The version of the GHCB protocol that it speaks; SEV-SNP needs 2."""
    encrypts_disk: Switch = False
    """Encrypt every block of the disk, so that the host sees ciphertext; programs use the disk as before."""
    boot: Literal["none", "ovmf", "direct"] = "none"
    """What passes before it runs: nothing; OVMF and a distribution's kernel; or a verifier and a small kernel."""

    @property
    def settings(self) -> KernelSettings:
        """The same for the VM's specification."""
        return KernelSettings(**{**self.model_dump(), "boot": BootPath(self.boot)})
