"""How vCPUs of an SEV-ES guest come together: each waits to be started, and the boot processor starts it.

The guest's side of ``node.ap_reset_hold``. INIT and SIPI go out by the x2APIC's interrupt command register, an MSR
that the hypervisor emulates. No SIPI's vector can move a vCPU with registers of its own, so where it goes on stands in
the jump table, a page of the guest's: firmware names it to the hypervisor, and the kernel is told by that
(Linux, arch/x86/coco/sev, sev_es_setup_ap_jump_table). Here both are the same code, which takes another address for an
attack; Linux writes wherever it is told, as a kernel does here whose ``checks_jump_table`` is off.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from node.generation import CAPABILITIES, Generation
from node.ghcb_msr import ApResetHold, ApResetHoldRequest, GhcbMsrError
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import Steps, page_exit, response_to
from node.interrupt_command import INIT, STARTUP, X2APIC_ICR
from node.kernel_settings import CAREFUL, KernelSettings
from node.nae_event import JumpTable, NaeEvent
from node.operations import Answer, GuestOperation, UpkeepRead, UpkeepWrite, VmgExit
from node.phase_cost import RMP_CHECKED

JUMP_TABLE_GPA = 0x3000
"""In the kernel's own memory."""
_TARGET = struct.Struct("<HH")
"""Instruction pointer and code segment, as in real mode."""

Waiting = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]


def starts_others_by_sipi(generation: Generation) -> bool:
    """Whether a guest's vCPUs wait in their own registers for its boot processor: SEV-ES, for SNP makes new ones."""
    return CAPABILITIES[generation].encrypted_registers and generation not in RMP_CHECKED


def wait_by_message(settings: KernelSettings = CAREFUL) -> Waiting:
    """Wait to be started, without a GHCB page. Raises GhcbMsrError for an answer that is no start."""
    request = ApResetHoldRequest()
    (answer,) = yield (VmgExit(request.value),)
    if not settings.checks_replies:
        return
    if not isinstance(started := response_to(request, answer), ApResetHold) or not started.woken:
        raise GhcbMsrError(f"AP reset hold: {answer!r}")


def wait_by_page(ghcb_gpa: int) -> Waiting:
    """The same with the GHCB page at an address. Raises GhcbUntrusted."""
    reply = yield from page_exit(ghcb_gpa, NaeEvent.AP_RESET_HOLD)
    if reply.exception is not None or not reply.info2:
        raise GhcbUntrusted(f"AP reset hold: {reply!r}")


def lay_jump_table(ghcb_gpa: int, rip: int, settings: KernelSettings = CAREFUL) -> Steps:
    """Settle with the hypervisor where the table is, and have vCPUs that are started go on at a RIP below 64 KiB.

    Raises GhcbUntrusted.
    """
    yield from page_exit(ghcb_gpa, NaeEvent.AP_JUMP_TABLE, JumpTable.SET, JUMP_TABLE_GPA, settings=settings)
    told = yield from page_exit(ghcb_gpa, NaeEvent.AP_JUMP_TABLE, JumpTable.GET, settings=settings)
    if settings.checks_jump_table and told.info2 != JUMP_TABLE_GPA:
        raise GhcbUntrusted(f"AP jump table: expected {JUMP_TABLE_GPA:#x}, told {told.info2:#x}")
    yield (UpkeepWrite(told.info2, _TARGET.pack(rip, 0)),)


def jump_target() -> Generator[tuple[GuestOperation, ...], tuple[Answer, ...], int]:
    """Where a vCPU that was started goes on; 0 if that cannot be read."""
    (found,) = yield (UpkeepRead(JUMP_TABLE_GPA, _TARGET.size),)
    if not isinstance(found, bytes):
        return 0
    ip, segment = _TARGET.unpack(found)
    return int(segment) * 16 + int(ip)


def wake(ghcb_gpa: int, vcpu: int, settings: KernelSettings = CAREFUL) -> Steps:
    """Start another vCPU. Raises GhcbUntrusted where the hypervisor does not know how to."""
    for mode in (INIT, STARTUP):
        registers = {"RCX": X2APIC_ICR, "RAX": mode << 8, "RDX": vcpu}
        reply = yield from page_exit(ghcb_gpa, NaeEvent.MSR, 1, registers=registers, outputs=(), settings=settings)
        if reply.exception is not None:
            raise GhcbUntrusted(f"interrupt command: exception {reply.exception}")
