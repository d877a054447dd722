"""What the board answers to operations in place of the hardware: values, results of instructions, and faults."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FaultKind(IntEnum):
    """What the core reported instead of an answer."""

    NESTED_PAGE_FAULT = 0x400
    """#NPF without a mapping: exit code of APM volume 2, appendix C."""
    RMP_FAULT = 0x80000000
    """#NPF or #PF with error bit 31: the RMP refused the access."""
    PAGE_NOT_VALIDATED = 0x404
    """#VC in the guest: the page is assigned but not validated."""
    VMM_COMMUNICATION = 29
    """#VC in the guest: an event that a hypervisor intercepts, with its exit code as error."""
    UNDEFINED_OPCODE = 6
    """#UD: the role may not execute this instruction."""
    PAGE_FAULT = 14
    """#PF in the guest: its own tables refuse the access; the address is virtual, ``error`` the error code."""
    GENERAL_PROTECTION = 13
    """#GP: this privilege level may not execute the instruction."""
    MACHINE_CHECK = 18
    """#MC: no memory answers at the address."""
    DMA_ABORTED = 0x1000
    """A device's read ended with an error on the bus. No core reports it; the number is the laboratory's."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in place of an answer; ``error`` holds EXITINFO1 or the #PF error code."""

    kind: FaultKind
    address: int
    error: int = 0


@dataclass(frozen=True, slots=True)
class PValidateResult:
    """EAX of PVALIDATE, and whether any page already had the wanted state (CF)."""

    code: int
    unchanged: bool


@dataclass(frozen=True, slots=True)
class RmpQueryResult:
    """EAX of RMPQUERY, the permission bits (RDX), and whether the entry is one of 2 MiB (RCX)."""

    code: int
    permissions: int
    large: bool


@dataclass(frozen=True, slots=True)
class CpuidResult:
    """The four registers that CPUID sets, 32 bits each."""

    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class RmpReadResult:
    """EAX of RMPREAD, and the 16 bytes it stored; none if it failed."""

    code: int
    state: bytes


@dataclass(frozen=True, slots=True)
class PspAnswer:
    """Status bits 15:0 of CmdResp, and the command buffer as the firmware left it."""

    status: int
    buffer: bytes


@dataclass(frozen=True, slots=True)
class Runs:
    """Pages or blocks that hold bytes: where each run begins, and what is in it."""

    runs: tuple[tuple[int, bytes], ...]


Answer = bytes | int | None | Fault | PValidateResult | RmpQueryResult | RmpReadResult | PspAnswer | Runs | CpuidResult
