"""Non-automatic exits: what each event of the GHCB asks for, checked and parsed before anybody acts on it.

An intercepted instruction of a guest with encrypted registers raises #VC, and its
handler chooses what to show in the GHCB. The table says which fields an event must
show and which come back; a row's parser makes of them a frozen request or refuses.
Sources: GHCB specification (56421), table 5 and chapter 4; Linux
arch/x86/kvm/svm/sev.c (sev_es_validate_vmgexit); coconut-svsm ghcb.rs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from node.ghcb_page import SHARED_BUFFER, SHARED_BUFFER_BYTES, BadInput, GhcbExit, GhcbRefused, Scratch
from node.page_state_list import HEADER_BYTES, LIST_BYTES
from psp.system_bus import PAGE_BYTES

_VMPLS = 4


class NaeEvent(IntEnum):
    """SW_EXITCODE. Codes of instructions are those of the VMCB (APM volume 2, appendix C)."""

    DR7_READ = 0x27
    DR7_WRITE = 0x37
    RDTSC = 0x6E
    RDPMC = 0x6F
    CPUID = 0x72
    INVD = 0x76
    IOIO = 0x7B
    MSR = 0x7C
    VMMCALL = 0x81
    RDTSCP = 0x87
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    MMIO_READ = 0x8000_0001
    MMIO_WRITE = 0x8000_0002
    NMI_COMPLETE = 0x8000_0003
    AP_RESET_HOLD = 0x8000_0004
    AP_JUMP_TABLE = 0x8000_0005
    PAGE_STATE_CHANGE = 0x8000_0010
    GUEST_REQUEST = 0x8000_0011
    EXTENDED_GUEST_REQUEST = 0x8000_0012
    AP_CREATION = 0x8000_0013
    HV_DOORBELL_PAGE = 0x8000_0014
    HV_IPI = 0x8000_0015
    HV_TIMER = 0x8000_0016
    APIC_ID_LIST = 0x8000_0017
    RUN_VMPL = 0x8000_0018
    SECURE_AVIC = 0x8000_001A
    TIO_GUEST_REQUEST = 0x8000_0020
    """This number and the next come from patches that are not merged, and may come to mean something else."""
    TIO_OP = 0x8000_0021
    HYPERVISOR_FEATURES = 0x8000_FFFD
    TERMINATION = 0x8000_FFFE
    UNSUPPORTED = 0x8000_FFFF


# Requests. Each is what a hypervisor may act on without another look at the page.


@dataclass(frozen=True, slots=True)
class RegistersRequest:
    """An event that is told by its code and by registers alone."""

    registers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CpuidQuery:
    """CPUID; XCR0 and XSS count for leaf D only."""

    function: int
    index: int
    xcr0: int
    xss: int


@dataclass(frozen=True, slots=True)
class IoRequest:
    """IN, OUT, or their string forms of ``repeats`` units through ``scratch``."""

    write: bool
    port: int
    width: int
    value: int
    scratch: Scratch | None


@dataclass(frozen=True, slots=True)
class MsrRequest:
    """RDMSR or WRMSR."""

    write: bool
    index: int
    value: int


@dataclass(frozen=True, slots=True)
class MmioRequest:
    """A load or store of a device's registers through ``scratch``."""

    write: bool
    gpa: int
    length: int
    scratch: Scratch


@dataclass(frozen=True, slots=True)
class PageStateRequest:
    """A page state change; the list is in ``scratch``, as long as that can be."""

    scratch: Scratch


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """A message to the security processor, with room for certificates where it is an extended one."""

    request_gpa: int
    response_gpa: int
    data_gpa: int = 0
    data_pages: int = 0


class TioAction(IntEnum):
    """SW_EXITINFO1 bits 63:32 of TIO_OP."""

    BIND = 0
    UNBIND = 1
    RUN = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class TioOperation:
    """What is to become of a device that the guest knows by its requester id."""

    action: TioAction
    guest_device_id: int


@dataclass(frozen=True, slots=True)
class TioGuestRequest:
    """A message to the firmware about a device, with room for what the host has of that device's evidence.

    ``parameter`` says what of it is wanted, or what range of MMIO the message is about.
    """

    request: GuestRequest
    guest_device_id: int
    parameter: int


class JumpTable(IntEnum):
    """SW_EXITINFO1 of AP_JUMP_TABLE."""

    SET = 0
    GET = 1


class ApCreationKind(IntEnum):
    """EXITINFO1 bits 15:0."""

    CREATE_ON_INIT = 0
    CREATE = 1
    DESTROY = 2


@dataclass(frozen=True, slots=True)
class ApCreation:
    """Make or end a vCPU with a save area of the guest's own."""

    kind: ApCreationKind
    vmpl: int
    apic_id: int
    vmsa_gpa: int
    sev_features: int


@dataclass(frozen=True, slots=True)
class ApicIdRequest:
    """The list of the VM's APIC IDs, into so many shared pages."""

    gpa: int
    pages: int


@dataclass(frozen=True, slots=True)
class RunVmpl:
    """Run this vCPU at another VMPL."""

    vmpl: int


@dataclass(frozen=True, slots=True)
class Termination:
    """End the VM."""

    reason_set: int
    reason_code: int


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """An event that is told by its code and the two words of information."""

    info1: int
    info2: int


NaeRequest = (
    RegistersRequest | CpuidQuery | IoRequest | MsrRequest | MmioRequest | PageStateRequest | GuestRequest
    | TioGuestRequest | TioOperation | ApCreation | ApicIdRequest | RunVmpl | Termination | InfoRequest
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NaeRow:
    """An event: the fields it must show, those that come back, its parser, and since which version it is spoken."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parse: Callable[[GhcbExit], NaeRequest]
    version: int = 1


def parse_request(asked: GhcbExit) -> NaeRequest:
    """What a guest asks for. Raises GhcbRefused, before anything is done, for what is malformed or not in the table."""
    row = EVENTS.get(asked.code)
    if row is None or asked.version < row.version:
        raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
    asked.require(row.inputs)
    return row.parse(asked)


def _registers(asked: GhcbExit) -> RegistersRequest:
    return RegistersRequest({name: asked.fields[name] for name in EVENTS[asked.code].inputs})


def _info(asked: GhcbExit) -> InfoRequest:
    return InfoRequest(asked.info1, asked.info2)


def _cpuid(asked: GhcbExit) -> CpuidQuery:
    shown = asked.fields
    function, index = shown["RAX"] & 0xFFFF_FFFF, shown["RCX"] & 0xFFFF_FFFF
    if function == _EXTENDED_STATE_LEAF:
        asked.require(("XCR0",))
        if index == 1:
            asked.require(("XSS",))
    return CpuidQuery(function, index, shown.get("XCR0", 0), shown.get("XSS", 0))


_EXTENDED_STATE_LEAF = 0xD

_IO_IN, _IO_STRING, _IO_REPEATED = 1 << 0, 1 << 2, 1 << 3
_IO_WIDTHS = {1 << 4: 1, 1 << 5: 2, 1 << 6: 4}
_IO_RESERVED = 1 << 1 | 0b111 << 13 | ~0xFFFF_FFFF


def _io(asked: GhcbExit) -> IoRequest:
    info = asked.info1
    width = _IO_WIDTHS.get(info & 0x70)
    if width is None or info & _IO_RESERVED:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    write = not info & _IO_IN
    scratch = None
    if info & _IO_STRING:
        units = asked.info2 if info & _IO_REPEATED else 1
        if not units:
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
        scratch = asked.scratch(units * width)
    elif write:
        asked.require(("RAX",))
    value = asked.fields.get("RAX", 0) & (1 << 8 * width) - 1
    return IoRequest(write, info >> 16, width, value if write and scratch is None else 0, scratch)


def _msr(asked: GhcbExit) -> MsrRequest:
    if asked.info1 not in (0, 1):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    value = 0
    if asked.info1:
        asked.require(("RAX", "RDX"))
        value = asked.fields["RAX"] & 0xFFFF_FFFF | (asked.fields["RDX"] & 0xFFFF_FFFF) << 32
    return MsrRequest(bool(asked.info1), asked.fields["RCX"] & 0xFFFF_FFFF, value)


def _mmio(asked: GhcbExit) -> MmioRequest:
    if asked.info2 not in (1, 2, 4, 8):
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
    if asked.info1 + asked.info2 > 1 << 52:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    return MmioRequest(asked.code == NaeEvent.MMIO_WRITE, asked.info1, asked.info2, asked.scratch(asked.info2))


def _page_states(asked: GhcbExit) -> PageStateRequest:
    at = asked.scratch(HEADER_BYTES)
    # Within the page the list ends with the buffer; elsewhere it may be as long as a list can be.
    length = LIST_BYTES if at.offset is None else min(LIST_BYTES, SHARED_BUFFER + SHARED_BUFFER_BYTES - at.offset)
    return PageStateRequest(asked.scratch(length))


def _guest_request(asked: GhcbExit) -> GuestRequest:
    request, response = asked.info1, asked.info2
    if request % PAGE_BYTES or response % PAGE_BYTES or request == response:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    if asked.code == NaeEvent.GUEST_REQUEST:
        return GuestRequest(request, response)
    data, pages = asked.fields["RAX"], asked.fields["RBX"]
    if data % PAGE_BYTES or data + pages * PAGE_BYTES > 1 << 52:
        raise GhcbRefused(BadInput.INVALID_INPUT, "RAX")
    return GuestRequest(request, response, data, pages)


def _tio_guest_request(asked: GhcbExit) -> TioGuestRequest:
    device = asked.fields["RCX"]
    if device >> 16:
        raise GhcbRefused(BadInput.INVALID_INPUT, "RCX")
    return TioGuestRequest(_guest_request(asked), device, asked.fields["RDX"])


def _tio_op(asked: GhcbExit) -> TioOperation:
    action, device = asked.info1 >> 32, asked.info1 & 0xFFFF_FFFF
    if action not in frozenset(TioAction) or device >> 16:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    return TioOperation(TioAction(action), device)


def _ap_creation(asked: GhcbExit) -> ApCreation:
    info = asked.info1
    kind, vmpl = info & 0xFFFF, info >> 16 & 0xF
    if kind not in frozenset(ApCreationKind) or vmpl >= _VMPLS or info & 0xFFF0_0000:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    features = 0
    if kind != ApCreationKind.DESTROY:
        asked.require(("RAX",))
        features = asked.fields["RAX"]
        if not asked.info2 or asked.info2 % PAGE_BYTES:
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO2")
    return ApCreation(ApCreationKind(kind), vmpl, info >> 32, asked.info2, features)


def _apic_ids(asked: GhcbExit) -> ApicIdRequest:
    if asked.info1 % PAGE_BYTES:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    return ApicIdRequest(asked.info1, asked.fields["RAX"])


def _run_vmpl(asked: GhcbExit) -> RunVmpl:
    if asked.info1 >= _VMPLS:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    return RunVmpl(asked.info1)


def _termination(asked: GhcbExit) -> Termination:
    if asked.info1 >> 12:
        raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
    return Termination(asked.info1 & 0xF, asked.info1 >> 4)


_N = NaeEvent
EVENTS: Mapping[int, NaeRow] = {
    _N.DR7_READ: NaeRow((), ("RAX",), _registers),
    _N.DR7_WRITE: NaeRow(("RAX",), (), _registers),
    _N.RDTSC: NaeRow((), ("RAX", "RDX"), _registers),
    _N.RDPMC: NaeRow(("RCX",), ("RAX", "RDX"), _registers),
    _N.CPUID: NaeRow(("RAX", "RCX"), ("RAX", "RBX", "RCX", "RDX"), _cpuid),
    _N.INVD: NaeRow((), (), _registers),
    _N.IOIO: NaeRow((), ("RAX",), _io),
    _N.MSR: NaeRow(("RCX",), ("RAX", "RDX"), _msr),
    _N.VMMCALL: NaeRow(("RAX", "CPL"), ("RAX",), _registers),
    _N.RDTSCP: NaeRow((), ("RAX", "RDX", "RCX"), _registers),
    _N.WBINVD: NaeRow((), (), _registers),
    _N.MONITOR: NaeRow(("RAX", "RCX", "RDX"), (), _registers),
    _N.MWAIT: NaeRow(("RAX", "RCX"), (), _registers),
    _N.MMIO_READ: NaeRow(("SW_SCRATCH",), (), _mmio),
    _N.MMIO_WRITE: NaeRow(("SW_SCRATCH",), (), _mmio),
    _N.NMI_COMPLETE: NaeRow((), (), _info),
    _N.AP_RESET_HOLD: NaeRow((), (), _info),
    _N.AP_JUMP_TABLE: NaeRow((), (), _info),
    _N.PAGE_STATE_CHANGE: NaeRow(("SW_SCRATCH",), (), _page_states, version=2),
    _N.GUEST_REQUEST: NaeRow((), (), _guest_request, version=2),
    _N.EXTENDED_GUEST_REQUEST: NaeRow(("RAX", "RBX"), ("RBX",), _guest_request, version=2),
    _N.AP_CREATION: NaeRow((), (), _ap_creation, version=2),
    _N.HV_DOORBELL_PAGE: NaeRow((), (), _info, version=2),
    _N.HV_IPI: NaeRow((), (), _info, version=2),
    _N.HV_TIMER: NaeRow((), (), _info, version=2),
    _N.APIC_ID_LIST: NaeRow(("RAX",), ("RAX",), _apic_ids, version=2),
    _N.RUN_VMPL: NaeRow((), (), _run_vmpl, version=2),
    _N.SECURE_AVIC: NaeRow(("RAX", "RBX"), (), _registers, version=2),
    _N.TIO_GUEST_REQUEST: NaeRow(
        ("RAX", "RBX", "RCX", "RDX"), ("RBX", "RDX"), _tio_guest_request, version=2
    ),
    _N.TIO_OP: NaeRow((), (), _tio_op, version=2),
    _N.HYPERVISOR_FEATURES: NaeRow((), (), _info, version=2),
    _N.TERMINATION: NaeRow((), (), _termination),
    _N.UNSUPPORTED: NaeRow((), (), _info),
}
"""The events of the sheet. What 8000001B to 8000001D carry is not settled: they are no events here."""
