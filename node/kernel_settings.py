"""What a guest's kernel is built with: how it accepts its memory, and each of the checks that it makes.

A check that is off is a hole that somebody has published. The kernel of a tenant
has them all on; rows of the attack matrix that presume a careless guest turn
theirs off.
"""

from __future__ import annotations

from dataclasses import dataclass


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


CAREFUL = KernelSettings()
"""Every check, and all memory accepted at boot."""
