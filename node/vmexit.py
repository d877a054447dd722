"""Exit codes, and how an exit of a guest reaches its hypervisor.

A guest whose registers are encrypted has two kinds (APM volume 2, 15.35.5): automatic
exits enter the hypervisor directly, everything else that is intercepted raises #VC in
the guest, whose handler chooses what to show in the GHCB. Codes: appendix C.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from node.generation import CAPABILITIES, Generation


class ExitCode(IntEnum):
    """EXITCODE of the VMCB."""

    INVALID = -1
    """A check of VMRUN failed."""
    BUSY = -2
    """The save area is in use."""
    IDLE_REQUIRED = -3
    """SMT protection: the sibling is not idle."""
    INVALID_PMC = -4
    DR7_READ = 0x27
    DR7_WRITE = 0x37
    EXCEPTION_DB = 0x41
    MACHINE_CHECK = 0x52
    INTR = 0x60
    NMI = 0x61
    SMI = 0x62
    INIT = 0x63
    VINTR = 0x64
    RDTSC = 0x6E
    RDPMC = 0x6F
    CPUID = 0x72
    INVD = 0x76
    PAUSE = 0x77
    HLT = 0x78
    IOIO = 0x7B
    MSR = 0x7C
    SHUTDOWN = 0x7F
    VMMCALL = 0x81
    RDTSCP = 0x87
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    EFER_WRITE_TRAP = 0x8F
    CR0_WRITE_TRAP = 0x90
    CR15_WRITE_TRAP = 0x9F
    BUS_LOCK = 0xA5
    IDLE_HLT = 0xA6
    NESTED_PAGE_FAULT = 0x400
    AVIC_INCOMPLETE_IPI = 0x401
    AVIC_NO_ACCELERATION = 0x402
    VMGEXIT = 0x403
    PAGE_NOT_VALIDATED = 0x404


class Route(Enum):
    """Who learns of an intercepted event first."""

    HYPERVISOR = "hypervisor"
    VC_HANDLER = "#VC handler"


_E = ExitCode
AUTOMATIC = frozenset({
    _E.INVALID, _E.BUSY, _E.IDLE_REQUIRED, _E.INVALID_PMC, _E.MACHINE_CHECK, _E.INTR, _E.NMI, _E.SMI, _E.INIT,
    _E.VINTR, _E.PAUSE, _E.HLT, _E.SHUTDOWN, _E.EFER_WRITE_TRAP, *range(_E.CR0_WRITE_TRAP, _E.CR15_WRITE_TRAP + 1),
    _E.BUS_LOCK, _E.IDLE_HLT, _E.NESTED_PAGE_FAULT, _E.AVIC_INCOMPLETE_IPI, _E.AVIC_NO_ACCELERATION, _E.VMGEXIT,
})  # fmt: skip
"""Exits that tell a hypervisor no register: it is entered directly."""


def route(generation: Generation, code: int, *, mmio: bool = False) -> Route:
    """Where an intercepted event of a guest goes; ``mmio`` marks a nested page fault of a device's address."""
    if not CAPABILITIES[generation].encrypted_registers:
        return Route.HYPERVISOR
    return Route.HYPERVISOR if code in AUTOMATIC and not mmio else Route.VC_HANDLER
