"""The VM save area: one 4,096-byte page per vCPU that holds its registers between runs.

Layout: APM volume 2 (24593), appendix B, table B-4, as Linux lays it out in
``struct sev_es_save_area`` (arch/x86/include/asm/svm.h). The initial contents
are those of KVM and QEMU; sev-snp-measure builds the same pages from the same
code, so equal digests prove agreement between tools, not a reading of hardware.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from types import MappingProxyType

from node.packing import Unmade
from node.program import Registers

VMSA_BYTES = 4096

GUEST_BUSY = 1 << 63
"""VINTR_CTRL bit 63: the vCPU runs; VMRUN on a busy VMSA exits with VMEXIT_BUSY."""

BSP_RESET_EIP = 0xFFFF_FFF0
"""Where the boot processor starts: CS base FFFF0000, RIP FFF0 (APM volume 2, 14.1.3)."""


class SevFeature(IntFlag):
    """SEV_FEATURES, offset 3B0: measured at launch, so the host cannot change them later."""

    SNP_ACTIVE = 1 << 0
    VTOM = 1 << 1
    REFLECT_VC = 1 << 2
    RESTRICTED_INJECTION = 1 << 3
    ALTERNATE_INJECTION = 1 << 4
    DEBUG_SWAP = 1 << 5
    PREVENT_HOST_IBS = 1 << 6
    BTB_ISOLATION = 1 << 7
    VMPL_SSS = 1 << 8
    SECURE_TSC = 1 << 9
    VMGEXIT_PARAMETER = 1 << 10
    PMC_VIRTUALIZATION = 1 << 11
    IBS_VIRTUALIZATION = 1 << 12
    GUEST_INTERCEPT_CONTROL = 1 << 13
    VMSA_REGISTER_PROTECTION = 1 << 14
    SMT_PROTECTION = 1 << 15
    SECURE_AVIC = 1 << 16
    IBPB_ON_ENTRY = 1 << 21


@dataclass(frozen=True, slots=True)
class VmsaField:
    """One little-endian field of the page."""

    offset: int
    width: int
    name: str


_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "GDTR", "LDTR", "IDTR", "TR")
"""Ten slots of 16 bytes from offset 0."""

_SEGMENT_SLOT = ((0, 2, "SELECTOR"), (2, 2, "ATTRIBUTES"), (4, 4, "LIMIT"), (8, 8, "BASE"))

# fmt: off
_SCALARS = (
    (0x0A0, 8, "PL0_SSP"), (0x0A8, 8, "PL1_SSP"), (0x0B0, 8, "PL2_SSP"), (0x0B8, 8, "PL3_SSP"), (0x0C0, 8, "U_CET"),
    (0x0CA, 1, "VMPL"), (0x0CB, 1, "CPL"), (0x0D0, 8, "EFER"), (0x140, 8, "XSS"), (0x148, 8, "CR4"),
    (0x150, 8, "CR3"), (0x158, 8, "CR0"), (0x160, 8, "DR7"), (0x168, 8, "DR6"), (0x170, 8, "RFLAGS"),
    (0x178, 8, "RIP"), (0x180, 8, "DR0"), (0x188, 8, "DR1"), (0x190, 8, "DR2"), (0x198, 8, "DR3"),
    (0x1A0, 8, "DR0_ADDR_MASK"), (0x1A8, 8, "DR1_ADDR_MASK"), (0x1B0, 8, "DR2_ADDR_MASK"), (0x1B8, 8, "DR3_ADDR_MASK"),
    (0x1D8, 8, "RSP"), (0x1E0, 8, "S_CET"), (0x1E8, 8, "SSP"), (0x1F0, 8, "ISST_ADDR"), (0x1F8, 8, "RAX"),
    (0x200, 8, "STAR"), (0x208, 8, "LSTAR"), (0x210, 8, "CSTAR"), (0x218, 8, "SFMASK"), (0x220, 8, "KERNEL_GS_BASE"),
    (0x228, 8, "SYSENTER_CS"), (0x230, 8, "SYSENTER_ESP"), (0x238, 8, "SYSENTER_EIP"), (0x240, 8, "CR2"),
    (0x268, 8, "G_PAT"), (0x270, 8, "DBGCTL"), (0x278, 8, "BR_FROM"), (0x280, 8, "BR_TO"),
    (0x288, 8, "LASTEXCP_FROM"), (0x290, 8, "LASTEXCP_TO"), (0x2E0, 4, "SPEC_CTRL"), (0x2E8, 4, "PKRU"),
    (0x2EC, 4, "TSC_AUX"), (0x2F0, 8, "GUEST_TSC_SCALE"), (0x2F8, 8, "GUEST_TSC_OFFSET"), (0x300, 8, "REG_PROT_NONCE"),
    (0x308, 8, "RCX"), (0x310, 8, "RDX"), (0x318, 8, "RBX"), (0x320, 8, "SECURE_AVIC_CTRL"), (0x328, 8, "RBP"),
    (0x330, 8, "RSI"), (0x338, 8, "RDI"), (0x340, 8, "R8"), (0x348, 8, "R9"), (0x350, 8, "R10"), (0x358, 8, "R11"),
    (0x360, 8, "R12"), (0x368, 8, "R13"), (0x370, 8, "R14"), (0x378, 8, "R15"), (0x390, 8, "GUEST_EXITINFO1"),
    (0x398, 8, "GUEST_EXITINFO2"), (0x3A0, 8, "GUEST_EXITINTINFO"), (0x3A8, 8, "GUEST_NRIP"),
    (0x3B0, 8, "SEV_FEATURES"), (0x3B8, 8, "VINTR_CTRL"), (0x3C0, 8, "GUEST_EXITCODE"), (0x3C8, 8, "VIRTUAL_TOM"),
    (0x3D0, 8, "TLB_ID"), (0x3D8, 8, "PCPU_ID"), (0x3E0, 8, "EVENTINJ"), (0x3E8, 8, "XCR0"), (0x400, 8, "X87_DP"),
    (0x408, 4, "MXCSR"), (0x40C, 2, "FTW"), (0x40E, 2, "FSW"), (0x410, 2, "FCW"), (0x412, 2, "FOP"),
    (0x414, 2, "X87_DS"), (0x416, 2, "X87_CS"), (0x418, 8, "X87_RIP"), (0x420, 80, "X87_REGISTERS"),
    (0x470, 256, "XMM"), (0x570, 256, "YMM_HIGH"), (0x670, 256, "LBR_STACK"), (0x770, 8, "LBR_SELECT"),
)
# fmt: on

VMSA_FIELDS: Mapping[str, VmsaField] = {
    field.name: field
    for field in (
        *(
            VmsaField(16 * slot + offset, width, f"{segment}_{part}")
            for slot, segment in enumerate(_SEGMENTS)
            for offset, width, part in _SEGMENT_SLOT
        ),
        *(VmsaField(*row) for row in _SCALARS),
    )
}
"""The named fields, in ascending order of offset; everything between them is reserved."""


def read_field(page: bytes | bytearray | memoryview, name: str) -> int:
    """The value of a field of the table; KeyError for a name that is not in it."""
    field = VMSA_FIELDS[name]
    return int.from_bytes(page[field.offset : field.offset + field.width], "little")


def write_field(page: bytearray | memoryview, name: str, value: int) -> None:
    """Set a field of the table in place; OverflowError if the value is wider than the field."""
    field = VMSA_FIELDS[name]
    page[field.offset : field.offset + field.width] = value.to_bytes(field.width, "little")


# The general registers lie in five runs. Loads span them with one structure;
# stores need one each, because packing a pad byte would clear what lies between.
_LOAD = struct.Struct("<Q88xQ24xQ264x3Q8x11Q")
_ONE = struct.Struct("<Q")
_THREE = struct.Struct("<3Q")
_ELEVEN = struct.Struct("<11Q")
_RIP, _RSP, _RAX, _RCX, _RBP = (VMSA_FIELDS[name].offset for name in ("RIP", "RSP", "RAX", "RCX", "RBP"))


GENERAL_REGISTERS = (
    "RIP", "RSP", "RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI",
    "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
)  # fmt: skip
"""In the order in which a page holds them."""


class VmsaError(ValueError):
    """Our caller handed in a page of another size or a register outside of 64 bits."""


def general_registers(registers: Registers) -> tuple[int, ...]:
    """The general registers, in the order of ``GENERAL_REGISTERS``."""
    r = registers
    return (
        r.rip, r.rsp, r.rax, r.rcx, r.rdx, r.rbx, r.rbp, r.rsi, r.rdi,
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
    )  # fmt: skip


class StoredArea(Unmade):
    """A page in which an exit has left registers: they are stored there when somebody looks at it."""

    __slots__ = ("page", "registers")

    def __init__(self, page: bytes, registers: tuple[int, ...]) -> None:
        self.page = page
        """As it was before."""
        self.registers = registers

    def __len__(self) -> int:
        return len(self.page)

    def __bytes__(self) -> bytes:
        page = bytearray(self.page)
        _store(self.registers, page)
        return bytes(page)

    def made(self) -> bytes:
        """The page."""
        return bytes(self)


def registers_in(page: bytes | bytearray | memoryview | StoredArea) -> tuple[int, ...]:
    """The general registers of a page, in the order of ``GENERAL_REGISTERS``."""
    if type(page) is StoredArea:
        return page.registers
    if len(page) != VMSA_BYTES:
        raise VmsaError(f"VMSA: expected {VMSA_BYTES} bytes, found {len(page)}")
    return _LOAD.unpack_from(page, _RIP)  # type: ignore[arg-type]  # no stored area


def load_registers(page: bytes | bytearray | memoryview | StoredArea, registers: Registers | None = None) -> Registers:
    """The general registers of a page, as VMRUN loads them; into ``registers`` if given."""
    r = Registers.__new__(Registers) if registers is None else registers  # Each of them is set.
    (
        r.rip, r.rsp, r.rax, r.rcx, r.rdx, r.rbx, r.rbp, r.rsi, r.rdi,
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
    ) = registers_in(page)  # fmt: skip
    return r


def save_registers(registers: Registers, page: bytearray | memoryview) -> None:
    """Store the general registers into a page, as an exit does; every other byte stays."""
    if len(page) != VMSA_BYTES:
        raise VmsaError(f"VMSA: expected {VMSA_BYTES} bytes, found {len(page)}")
    _store(general_registers(registers), page)


def _store(values: tuple[int, ...], page: bytearray | memoryview) -> None:
    rip, rsp, rax, rcx, rdx, rbx, *eleven = values
    try:
        of_rbp = _ELEVEN.pack(*eleven)
        of_rcx = _THREE.pack(rcx, rdx, rbx)
        of_rip, of_rsp, of_rax = _ONE.pack(rip), _ONE.pack(rsp), _ONE.pack(rax)
    except struct.error:
        name, value = next(one for one in zip(GENERAL_REGISTERS, values, strict=True) if not _fits(one[1]))
        raise VmsaError(f"{name}: expected an unsigned 64-bit integer, found {value!r}") from None
    page[_RBP : _RBP + 88] = of_rbp
    page[_RCX : _RCX + 24] = of_rcx
    page[_RIP : _RIP + 8] = of_rip
    page[_RSP : _RSP + 8] = of_rsp
    page[_RAX : _RAX + 8] = of_rax


def _fits(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 64


# fmt: off
_RESET_STATE: Mapping[str, int] = {
    "ES_ATTRIBUTES": 0x93, "CS_ATTRIBUTES": 0x9B, "SS_ATTRIBUTES": 0x93, "DS_ATTRIBUTES": 0x93,
    "FS_ATTRIBUTES": 0x93, "GS_ATTRIBUTES": 0x93, "LDTR_ATTRIBUTES": 0x82, "TR_ATTRIBUTES": 0x8B,
    **{f"{segment}_LIMIT": 0xFFFF for segment in _SEGMENTS},
    "CS_SELECTOR": 0xF000, "EFER": 0x1000, "CR4": 0x40, "CR0": 0x10, "DR7": 0x400, "DR6": 0xFFFF_0FF0, "RFLAGS": 2,
    "G_PAT": 0x0007_0406_0007_0406, "XCR0": 1, "MXCSR": 0x1F80, "FCW": 0x37F,
}
# fmt: on
"""Reset state as KVM leaves it before LAUNCH_UPDATE: EFER.SVME and CR4.MCE are KVM's own additions."""


@cache
def _reset_page() -> bytes:
    page = bytearray(VMSA_BYTES)
    for name, value in _RESET_STATE.items():
        write_field(page, name, value)
    return bytes(page)


def initial_vmsa(
    eip: int, cpuid_signature: int, sev_features: int, changes: Mapping[str, int] = MappingProxyType({})
) -> bytes:
    """The page of a vCPU that starts at ``eip``; RDX holds the CPUID signature, as after a reset.

    Newer KVM versions add DEBUG_SWAP to ``sev_features`` by themselves; which a
    host does is the caller's choice, since it changes the launch digest.
    ``changes`` are the fields that another VMM starts its vCPUs with.
    """
    page = bytearray(_reset_page())
    write_field(page, "CS_BASE", eip & 0xFFFF_0000)
    write_field(page, "RIP", eip & 0xFFFF)
    write_field(page, "RDX", cpuid_signature)
    write_field(page, "SEV_FEATURES", sev_features)
    for name, value in changes.items():
        write_field(page, name, value)
    return bytes(page)
