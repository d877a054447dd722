"""What a guest's kernel is built with: how it accepts its memory, and each of the checks that it makes.

A check that is off is a hole that somebody has published. The kernel of a tenant
has them all on; rows of the attack matrix that presume a careless guest turn
theirs off.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.boot_phases import BootPath


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """Settings of one VM's kernel; they are part of the VM's specification and travel with it."""

    lazy_validation: bool = False
    """Accept memory in chunks of 2 MiB when it is first touched (Linux: unaccepted memory), not all of it at boot."""

    checks_sev_status: bool = True
    """Go on only as what the kernel was built for, by SEV_STATUS, which no hypervisor can intercept.

    Off: a guest that is told by CPUID that nothing is encrypted writes its secrets for everybody (Radev and
    Morbitzer 2020; matrix row 48). APM volume 2, 15.34.10; Linux arch/x86/boot/startup/sme.c.
    """
    checks_c_bit: bool = True
    """Write with the C-bit, read without it: the bytes must differ.

    Off: a guest that is told a false place of the C-bit puts its secrets where the hypervisor maps shared memory
    (as above; row 48). Linux arch/x86/kernel/sev_verify_cbit.S.
    """
    checks_carry: bool = True
    """Take a page that was valid before PVALIDATE (CF=1) for an attack, and end the VM.

    Off: memory that the guest uses already passes for fresh, if its hypervisor says so (COCONUT-SVSM issue 114; Linux
    arch/x86/coco/sev, pvalidate_pages).
    """
    tracks_validation: bool = True
    """Keep books of what was accepted, and never accept a page again because it turns out not to be validated.

    Off: the hypervisor puts a fresh page in the place of one that is in use, and the guest goes on with that
    (R-07 of the catalogue; row 14).
    """
    reads_cpuid_page: bool = True
    """Answer CPUID from the page that firmware checked at launch, where there is one.

    Off: the guest believes a false list of features (AMD's Table 1, M5; row 23).
    """
    checks_cpuid: bool = True
    """Where the hypervisor is asked for CPUID: end the VM if it denies what SEV_STATUS has shown.

    Off: as above, in guests without a CPUID page. Linux arch/x86/coco/sev, vc_handle_cpuid and do_vc_no_ghcb.
    """
    checks_protocol: bool = True
    """Go on only with a hypervisor among whose versions of the GHCB protocol is the one that is spoken here.

    Off: the guest shows itself to one that reads its pages by other rules. Nobody has published what that is good for.
    GHCB specification 2.3.1; Linux arch/x86/coco/sev, sev_es_negotiate_protocol.
    """
    checks_features: bool = True
    """Go on as an SNP guest only with a hypervisor that offers what such a guest needs.

    Off: what is missing is missed when it is asked for, so that the hypervisor has the guest run as far as it likes.
    Linux arch/x86/coco/sev, snp_init and sev_enable.
    """
    checks_page_states: bool = True
    """Take pages for shared when the hypervisor has said so: no error, and every entry of the list is through.

    Off: what is still private passes for shared, and the guest's first store to it is its last. That is all: the RMP
    keeps what it kept. Linux arch/x86/coco/sev, vmgexit_psc and __page_state_change.
    """
    checks_jump_table: bool = True
    """Lay the jump table of a SEV-ES guest only where its own firmware has it.

    Off: the kernel stores four bytes of its choice to a page of the hypervisor's choice, wherever that says that the
    table is. Linux does so: arch/x86/coco/sev, sev_es_setup_ap_jump_table.
    """
    checks_replies: bool = True
    """Believe a reply through the GHCB only if its form is right.

    It must name a success, or an exception that a hypervisor may ask for; each output must be marked valid, and what
    was to be registered or started must be. Off: a refusal passes for success, and what lies in the page for an answer.
    GHCB specification 4.1; Linux arch/x86/coco/sev, verify_exception_info, and edk2's CcExitLib.
    """
    checks_exit_code: bool = True
    """#VC must have the code of the instruction that raised it.

    Off: the handler takes the hypervisor's word for what it interrupted, and a store to the guest's own memory for one
    to a device, whose data the hypervisor gets (WeSee 2024; row 25b shows it of a kernel with gates, ``node.vc_gate``).
    """
    checks_answers: bool = True
    """Take for an answer of the security processor only the one with the number after the request's.

    Off: what the hypervisor kept from before passes for new (row 62).
    """
    handles_vc: bool = True
    """Take #VC of programs. Off: the program has a handler and a GHCB of its own, and meets #VC as an answer."""

    ghcb_version: int = 2
    """The one version of the GHCB protocol that it speaks. SEV-ES guests do with 1, as before there was SEV-SNP; an
    SNP guest ends then, as Linux does that is offered no more (arch/x86/boot/compressed/sev.c, get_hv_features).
    """
    encrypts_disk: bool = False
    """Encrypt every block of the disk (dm-crypt), so that its host sees ciphertext."""
    boot: BootPath = BootPath.NONE
    """What passes before it runs."""

    def __post_init__(self) -> None:
        # By its value, where the settings crossed to another process.
        object.__setattr__(self, "boot", BootPath(self.boot))


CAREFUL = KernelSettings()
"""Every check, and all memory accepted at boot."""
