"""The GHCB MSR protocol: what guest and hypervisor say to each other through MSR C001_0130 alone.

A guest that has no GHCB page yet writes a request to the MSR, executes VMGEXIT and
reads the response there. Bits 11:0 name the message; a value with none of them is the
address of a GHCB page. Source: GHCB specification (56421), 2.3, as Linux
(arch/x86/include/asm/sev-common.h) and coconut-svsm (msr_protocol.rs) spell it.

Both sides parse strictly: a value of another code, or with a bit set that no field
has, is no message. The hypervisor leaves the MSR alone then, which is no response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import ClassVar, Self

PROTOCOL_VERSIONS = (1, 2)
"""Least and greatest version of the GHCB protocol that is spoken here."""

NO_PREFERENCE = (1 << 52) - 1
"""GFN of all ones: no preferred GHCB, or a registration that failed."""

_CODE_BITS = 12
_CODE = (1 << _CODE_BITS) - 1


class GhcbMsrError(ValueError):
    """A value that is not the message it should be."""


class HypervisorFeature(IntFlag):
    """The bitmap of message 081 and of NAE event 8000FFFD.

    Bits 7 and 8 have no meaning in merged sources. Patches that are not merged announce TIO in bit 7: that is said
    only to a VM that has TIO.
    """

    SNP = 1 << 0
    AP_CREATION = 1 << 1
    RESTRICTED_INJECTION = 1 << 2
    RESTRICTED_INJECTION_TIMER = 1 << 3
    APIC_ID_LIST = 1 << 4
    MULTI_VMPL = 1 << 5
    SEV_PAGE_STATE_CHANGE = 1 << 6
    TIO = 1 << 7
    EXTENDED_INTERRUPTS = 1 << 9


class ReasonSet(IntEnum):
    """Whose reason codes a termination's are."""

    GHCB = 0
    LINUX = 1


class GhcbReason(IntEnum):
    """Reasons of set 0."""

    GENERAL = 0
    PROTOCOL_RANGE = 1
    SNP_FEATURES = 2


class LinuxReason(IntEnum):
    """Reasons of set 1, as Linux numbers them (recollected: the sheet gives the set alone)."""

    REGISTER_GHCB = 0
    PAGE_STATE_CHANGE = 1
    PVALIDATE = 2
    NOT_VMPL0 = 3
    CPUID_PAGE = 4
    CPUID_OF_HYPERVISOR = 5
    SECURE_TSC = 10


class MsrPageState(IntEnum):
    """Operations of message 014."""

    PRIVATE = 1
    SHARED = 2


@dataclass(frozen=True, slots=True)
class MsrMessage:
    """A message: ``CODE`` in bits 11:0, its fields at the bits of ``BITS`` (lowest bit, width), the rest zero."""

    CODE: ClassVar[int] = 0
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {}

    @property
    def value(self) -> int:
        """The MSR's value. Raises GhcbMsrError for a field that is wider than its bits."""
        value = self.CODE
        for name, (low, width) in self.BITS.items():
            part = getattr(self, name)
            if not 0 <= part < 1 << width:
                raise GhcbMsrError(f"{type(self).__name__}.{name}: expected {width} bits, got {part:#x}")
            value |= part << low
        return value

    @classmethod
    def parse(cls, value: int) -> Self:
        """The message that a value is. Raises GhcbMsrError."""
        parts = {name: value >> low & (1 << width) - 1 for name, (low, width) in cls.BITS.items()}
        message = cls(**parts)
        if message.value != value:
            raise GhcbMsrError(f"{cls.__name__}: {value:#x} has another code, or a bit that no field has")
        return message


@dataclass(frozen=True, slots=True)
class SevInfoRequest(MsrMessage):
    """Which versions, and where the C-bit is."""

    CODE: ClassVar[int] = 0x002


@dataclass(frozen=True, slots=True)
class SevInfo(MsrMessage):
    """Response to 002, and what the hypervisor presets."""

    CODE: ClassVar[int] = 0x001
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "max_version": (48, 16),
        "min_version": (32, 16),
        "c_bit": (24, 8),
    }
    max_version: int
    min_version: int
    c_bit: int


@dataclass(frozen=True, slots=True)
class CpuidRequest(MsrMessage):
    """One register of a CPUID function: 0 EAX, 1 EBX, 2 ECX, 3 EDX."""

    CODE: ClassVar[int] = 0x004
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"function": (32, 32), "register": (30, 2)}
    function: int
    register: int


@dataclass(frozen=True, slots=True)
class CpuidValue(MsrMessage):
    """Response to 004."""

    CODE: ClassVar[int] = 0x005
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"result": (32, 32), "register": (30, 2)}
    result: int
    register: int


@dataclass(frozen=True, slots=True)
class ApResetHoldRequest(MsrMessage):
    """Hold this vCPU until somebody starts it."""

    CODE: ClassVar[int] = 0x006


@dataclass(frozen=True, slots=True)
class ApResetHold(MsrMessage):
    """Response to 006; non-zero is a wake-up."""

    CODE: ClassVar[int] = 0x007
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"woken": (12, 52)}
    woken: int


@dataclass(frozen=True, slots=True)
class PreferredGhcbRequest(MsrMessage):
    """Where the hypervisor would like the GHCB page."""

    CODE: ClassVar[int] = 0x010


@dataclass(frozen=True, slots=True)
class PreferredGhcb(MsrMessage):
    """Response to 010; ``NO_PREFERENCE`` leaves it to the guest."""

    CODE: ClassVar[int] = 0x011
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"gfn": (12, 52)}
    gfn: int


@dataclass(frozen=True, slots=True)
class RegisterGhcbRequest(MsrMessage):
    """Use the page at a GFN as this vCPU's GHCB; an SNP guest must, before it exits with it."""

    CODE: ClassVar[int] = 0x012
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"gfn": (12, 52)}
    gfn: int


@dataclass(frozen=True, slots=True)
class RegisteredGhcb(MsrMessage):
    """Response to 012: the same GFN, or all ones for a refusal."""

    CODE: ClassVar[int] = 0x013
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"gfn": (12, 52)}
    gfn: int


@dataclass(frozen=True, slots=True)
class PageStateRequest(MsrMessage):
    """Make one page of 4 KiB private or shared; ``operation`` is a ``MsrPageState``."""

    CODE: ClassVar[int] = 0x014
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"gfn": (12, 40), "operation": (52, 4)}
    gfn: int
    operation: int


@dataclass(frozen=True, slots=True)
class PageStateResult(MsrMessage):
    """Response to 014; 0 is success."""

    CODE: ClassVar[int] = 0x015
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"error": (32, 32)}
    error: int


@dataclass(frozen=True, slots=True)
class RunVmplRequest(MsrMessage):
    """Run this vCPU at another VMPL."""

    CODE: ClassVar[int] = 0x016
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"vmpl": (32, 8)}
    vmpl: int


@dataclass(frozen=True, slots=True)
class RunVmplResult(MsrMessage):
    """Response to 016; 0 is success."""

    CODE: ClassVar[int] = 0x017
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"error": (32, 32)}
    error: int


@dataclass(frozen=True, slots=True)
class FeaturesRequest(MsrMessage):
    """What the hypervisor offers."""

    CODE: ClassVar[int] = 0x080


@dataclass(frozen=True, slots=True)
class Features(MsrMessage):
    """Response to 080: ``HypervisorFeature`` bits."""

    CODE: ClassVar[int] = 0x081
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"bitmap": (12, 52)}
    bitmap: int


@dataclass(frozen=True, slots=True)
class TerminateRequest(MsrMessage):
    """End the VM. There is no response."""

    CODE: ClassVar[int] = 0x100
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"reason_set": (12, 4), "reason_code": (16, 8)}
    reason_set: int
    reason_code: int


@dataclass(frozen=True, slots=True)
class GhcbPageAt(MsrMessage):
    """No message: the exit is described by the GHCB page with this frame number."""

    CODE: ClassVar[int] = 0x000
    BITS: ClassVar[Mapping[str, tuple[int, int]]] = {"gfn": (12, 52)}
    gfn: int


REQUESTS: Mapping[int, type[MsrMessage]] = {
    kind.CODE: kind
    for kind in (
        GhcbPageAt,
        SevInfoRequest,
        CpuidRequest,
        ApResetHoldRequest,
        PreferredGhcbRequest,
        RegisterGhcbRequest,
        PageStateRequest,
        RunVmplRequest,
        FeaturesRequest,
        TerminateRequest,
    )
}
"""What a guest may say, by code. 003 (jump table, historical) and F00 to F03 (Hyper-V) are not spoken."""

_ANSWERS: Mapping[type[MsrMessage], type[MsrMessage]] = {
    SevInfoRequest: SevInfo,
    CpuidRequest: CpuidValue,
    ApResetHoldRequest: ApResetHold,
    PreferredGhcbRequest: PreferredGhcb,
    RegisterGhcbRequest: RegisteredGhcb,
    PageStateRequest: PageStateResult,
    RunVmplRequest: RunVmplResult,
    FeaturesRequest: Features,
}


def parse_request(value: int) -> MsrMessage:
    """What a guest says with the MSR's value. Raises GhcbMsrError."""
    kind = REQUESTS.get(value & _CODE)
    if kind is None:
        raise GhcbMsrError(f"GHCB MSR: {value & _CODE:#05x} is no request")
    return kind.parse(value)


def parse_response(request: MsrMessage, value: int) -> MsrMessage:
    """What the hypervisor answered to ``request``, as a guest checks it. Raises GhcbMsrError.

    An answer that echoes a field of its request must echo it truly: a CPUID register, or the page registered.
    """
    response = _ANSWERS[type(request)].parse(value)
    if isinstance(request, CpuidRequest) and isinstance(response, CpuidValue) and response.register != request.register:
        raise GhcbMsrError(f"CpuidValue.register: expected {request.register}, got {response.register}")
    if (
        isinstance(request, RegisterGhcbRequest)
        and isinstance(response, RegisteredGhcb)
        and response.gfn != request.gfn
    ):
        raise GhcbMsrError(f"RegisteredGhcb.gfn: expected {request.gfn:#x}, got {response.gfn:#x}")
    return response


def _well_laid(kind: type[MsrMessage]) -> bool:
    """Whether a message's fields are those of its table, apart from each other and from the code."""
    mask = _CODE
    for low, width in kind.BITS.values():
        part = (1 << width) - 1 << low
        if mask & part or low + width > 64:
            return False
        mask |= part
    return [field.name for field in fields(kind)] == list(kind.BITS)


assert all(map(_well_laid, (*REQUESTS.values(), *_ANSWERS.values())))
