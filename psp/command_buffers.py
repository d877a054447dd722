"""Command buffers of the mailbox: offsets as in SEV API chapters 5 to 7 and SEV-SNP firmware ABI chapter 8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at

ATTESTATION_SIGNED_BYTES = 0x34
"""What the signature of a report of ATTESTATION covers, from its begin."""
RING_INT_ON_EMPTY = 1 << 0
"""RING_BUFFER flag: interrupt when both queues are empty."""
INIT_ES = 1 << 0
"""INIT flag: SEV-ES guests will come."""
SNP_INIT_RMP = 1 << 0
"""INIT_EX flag: zero the RMP."""
SNP_INIT_HIDE_CIPHERTEXT = 1 << 3
"""INIT_EX flag: cores read ones where ciphertext of an SNP guest lies."""
SNP_INIT_LIST = 1 << 1
"""INIT_EX flag: there is a list of ranges that stay the host's."""
SNP_INIT_RAPL_DIS = 1 << 2
"""INIT_EX flag: nobody reads how much energy cores use."""
SNP_INIT_TIO = 1 << 4
"""INIT_EX flag: trusted I/O."""
SNP_SHUTDOWN_IOMMU = 1 << 0
"""SHUTDOWN_EX flag: stop the IOMMU's RMP checks."""
SNP_SHUTDOWN_X86 = 1 << 1
"""SHUTDOWN_EX flag: stop the cores' RMP checks."""
SNP_FINISH_ID_BLOCK = 1 << 0
"""LAUNCH_FINISH flag: there is an ID block."""
SNP_FINISH_AUTHOR_KEY = 1 << 1
"""LAUNCH_FINISH flag: an author signed the ID key."""
SNP_FINISH_NO_VCEK = 1 << 2
"""LAUNCH_FINISH flag: no report may be signed with the VCEK. Not built."""
SNP_STATUS_FEATURE_INFO = 1 << 3
"""PLATFORM_STATUS policy flag: FEATURE_INFO may be asked."""
SNP_STATUS_RAPL_DIS = 1 << 4
"""PLATFORM_STATUS policy flag: nobody reads how much energy cores use."""
SNP_STATUS_CAN_HIDE_CIPHERTEXT = 1 << 5
"""PLATFORM_STATUS policy flag: INIT_EX may ask for ciphertext hiding."""
SNP_STATUS_HIDES_CIPHERTEXT = 1 << 6
"""PLATFORM_STATUS policy flag: it did."""
SNP_STATUS_TIO = 1 << 7
"""PLATFORM_STATUS policy flag: the same of trusted I/O."""
SNP_STATUS_TIO_ENABLED = 1 << 3
"""PLATFORM_STATUS flag: INIT_EX switched it on."""
SNP_FEATURE_RAPL_DIS = 1 << 2
"""FEATURE_INFO, ECX of index 0: INIT_EX may switch energy readings off."""
SNP_FEATURE_HIDING = 1 << 3
"""FEATURE_INFO, ECX of index 0: ciphertext hiding."""
SNP_FEATURE_POLICIES = 1 << 4 | 1 << 5
"""FEATURE_INFO, ECX of index 0: the policy's bits about AES-256-XTS and CXL are known."""
SNP_FEATURE_TIO = 1 << 1
"""FEATURE_INFO, EBX of index 0: INIT_EX may ask for trusted I/O."""
SNP_FEATURE_VERIFY_MITIGATION = 1 << 13
"""The same: SNP_VERIFY_MITIGATION."""
SNP_MITIGATION_DESTINATION = 1 << 0
"""VERIFY_MITIGATION flag: there is a place for the answer."""
SNP_MITIGATION_SOURCE = 1 << 1
"""VERIFY_MITIGATION flag: there is more to read."""
SNP_CONFIG_MASK_CHIP_ID = 1 << 0
"""CONFIG flag, and PLATFORM_STATUS policy flag: reports do not say which chip it is."""
SNP_CONFIG_MASK_CHIP_KEY = 1 << 1
"""The same for the chip's own key: no report is signed with the VCEK."""
SNP_STATUS_VLEK_LOADED = 1 << 2
"""PLATFORM_STATUS policy flag."""
_LAUNCH_UPDATE_FLAGS = 0b1_1111
_LAUNCH_UPDATE_PERMISSIONS = 0x1F1F_1F00
"""For each of VMPL 1 to 3: read, write, execute at both privileges, supervisor shadow stack."""
MEASUREMENT_BYTES = 48
"""What LAUNCH_MEASURE writes: measurement (32) and nonce (16)."""


@dataclass(frozen=True, slots=True)
class Init(ByteLayout):
    """INIT."""

    SIZE: ClassVar[int] = 0x14
    flags: int = at(0x00, 4)
    tmr_address: int = at(0x08, 8)
    tmr_length: int = at(0x10, 4)


@dataclass(frozen=True, slots=True)
class InitEx(ByteLayout):
    """INIT_EX."""

    SIZE: ClassVar[int] = 0x24
    length: int = at(0x00, 4)
    flags: int = at(0x04, 4)
    tmr_address: int = at(0x08, 8)
    tmr_length: int = at(0x10, 4)
    nv_address: int = at(0x18, 8)
    nv_length: int = at(0x20, 4)


@dataclass(frozen=True, slots=True)
class PlatformStatus(ByteLayout):
    """PLATFORM_STATUS, all out."""

    SIZE: ClassVar[int] = 0x0C
    api_major: int = at(0x00, 1)
    api_minor: int = at(0x01, 1)
    state: int = at(0x02, 1)
    owner: int = at(0x03, 1)
    config: int = at(0x04, 4)
    guest_count: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class Handle(ByteLayout):
    """DEACTIVATE, DECOMMISSION, LAUNCH_FINISH: a guest's handle."""

    SIZE: ClassVar[int] = 0x04
    handle: int = at(0x00, 4)


@dataclass(frozen=True, slots=True)
class RingBuffer(ByteLayout):
    """RING_BUFFER: where two queues lie, of commands and of their statuses, and how long they are."""

    SIZE: ClassVar[int] = 0x28
    low_commands: int = at(0x00, 8)
    low_statuses: int = at(0x08, 8)
    high_commands: int = at(0x10, 8)
    high_statuses: int = at(0x18, 8)
    low_pages: int = at(0x20, 1)
    high_pages: int = at(0x21, 1)
    low_threshold: int = at(0x22, 2)
    high_threshold: int = at(0x24, 2)
    flags: int = at(0x26, 2)


@dataclass(frozen=True, slots=True)
class Activate(ByteLayout):
    """ACTIVATE."""

    SIZE: ClassVar[int] = 0x08
    handle: int = at(0x00, 4)
    asid: int = at(0x04, 4)


@dataclass(frozen=True, slots=True)
class ActivateEx(ByteLayout):
    """ACTIVATE_EX: ``apic_ids`` is where the list of ``count`` APIC IDs lies, 32 bits each."""

    SIZE: ClassVar[int] = 0x18
    length: int = at(0x00, 4)
    handle: int = at(0x04, 4)
    asid: int = at(0x08, 4)
    count: int = at(0x0C, 4)
    apic_ids: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class GuestStatus(ByteLayout):
    """GUEST_STATUS: handle in, the rest out."""

    SIZE: ClassVar[int] = 0x0D
    handle: int = at(0x00, 4)
    policy: int = at(0x04, 4)
    asid: int = at(0x08, 4)
    state: int = at(0x0C, 1)


@dataclass(frozen=True, slots=True)
class LaunchStart(ByteLayout):
    """LAUNCH_START; ``handle`` is in and out."""

    SIZE: ClassVar[int] = 0x24
    handle: int = at(0x00, 4)
    policy: int = at(0x04, 4)
    dh_certificate_address: int = at(0x08, 8)
    dh_certificate_length: int = at(0x10, 4)
    session_address: int = at(0x18, 8)
    session_length: int = at(0x20, 4)


@dataclass(frozen=True, slots=True)
class LaunchUpdateData(ByteLayout):
    """LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA."""

    SIZE: ClassVar[int] = 0x14
    handle: int = at(0x00, 4)
    address: int = at(0x08, 8)
    length: int = at(0x10, 4)


@dataclass(frozen=True, slots=True)
class LaunchMeasure(ByteLayout):
    """LAUNCH_MEASURE; ``length`` is in and out."""

    SIZE: ClassVar[int] = 0x14
    handle: int = at(0x00, 4)
    address: int = at(0x08, 8)
    length: int = at(0x10, 4)


@dataclass(frozen=True, slots=True)
class LaunchUpdateVmsa(ByteLayout):
    """LAUNCH_UPDATE_VMSA."""

    SIZE: ClassVar[int] = 0x14
    handle: int = at(0x00, 4)
    address: int = at(0x08, 8)
    length: int = at(0x10, 4)


@dataclass(frozen=True, slots=True)
class LaunchSecret(ByteLayout):
    """LAUNCH_SECRET."""

    SIZE: ClassVar[int] = 0x34
    handle: int = at(0x00, 4)
    header_address: int = at(0x08, 8)
    header_length: int = at(0x10, 4)
    guest_address: int = at(0x18, 8)
    guest_length: int = at(0x20, 4)
    transport_address: int = at(0x28, 8)
    transport_length: int = at(0x30, 4)


@dataclass(frozen=True, slots=True)
class SendStart(ByteLayout):
    """SEND_START; ``policy`` is out, ``session_length`` in and out.

    ``chain`` are the target's PEK, OCA and CEK, ``amd`` the ASK and ARK above its CEK.
    """

    SIZE: ClassVar[int] = 0x44
    handle: int = at(0x00, 4)
    policy: int = at(0x04, 4)
    pdh_address: int = at(0x08, 8)
    pdh_length: int = at(0x10, 4)
    chain_address: int = at(0x18, 8)
    chain_length: int = at(0x20, 4)
    amd_address: int = at(0x28, 8)
    amd_length: int = at(0x30, 4)
    session_address: int = at(0x38, 8)
    session_length: int = at(0x40, 4)


@dataclass(frozen=True, slots=True)
class SendUpdate(ByteLayout):
    """SEND_UPDATE_* and RECEIVE_UPDATE_*; in SEND the lengths of header and transport are in and out.

    Linux has no reserved word behind the handle for SEND_UPDATE_VMSA; sev-tool has, and Linux never sends it.
    """

    SIZE: ClassVar[int] = 0x34
    handle: int = at(0x00, 4)
    header_address: int = at(0x08, 8)
    header_length: int = at(0x10, 4)
    guest_address: int = at(0x18, 8)
    guest_length: int = at(0x20, 4)
    transport_address: int = at(0x28, 8)
    transport_length: int = at(0x30, 4)


@dataclass(frozen=True, slots=True)
class Copy(ByteLayout):
    """COPY."""

    SIZE: ClassVar[int] = 0x18
    handle: int = at(0x00, 4)
    length: int = at(0x04, 4)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class Attestation(ByteLayout):
    """ATTESTATION; ``length`` is in and out."""

    SIZE: ClassVar[int] = 0x24
    handle: int = at(0x00, 4)
    address: int = at(0x08, 8)
    mnonce: bytes = at(0x10, 16, bytes(16))
    length: int = at(0x20, 4)


@dataclass(frozen=True, slots=True)
class AttestationReport(ByteLayout):
    """What ATTESTATION writes; the PEK signs what lies before ``signature_usage``."""

    SIZE: ClassVar[int] = 0xD0
    mnonce: bytes = at(0x00, 16, bytes(16))
    digest: bytes = at(0x10, 32, bytes(32))
    policy: int = at(0x30, 4)
    signature_usage: int = at(0x34, 4)
    signature_algorithm: int = at(0x38, 4)
    signature: bytes = at(0x40, 144, bytes(144))


@dataclass(frozen=True, slots=True)
class Debug(ByteLayout):
    """DBG_DECRYPT and DBG_ENCRYPT."""

    SIZE: ClassVar[int] = 0x1C
    handle: int = at(0x00, 4)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)
    length: int = at(0x18, 4)


@dataclass(frozen=True, slots=True)
class Output(ByteLayout):
    """PEK_CSR, GET_ID: where to write; ``length`` is in and out."""

    SIZE: ClassVar[int] = 0x0C
    address: int = at(0x00, 8)
    length: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class PdhCertExport(ByteLayout):
    """PDH_CERT_EXPORT; lengths are in and out."""

    SIZE: ClassVar[int] = 0x1C
    pdh_address: int = at(0x00, 8)
    pdh_length: int = at(0x08, 4)
    chain_address: int = at(0x10, 8)
    chain_length: int = at(0x18, 4)


@dataclass(frozen=True, slots=True)
class PekCertImport(ByteLayout):
    """PEK_CERT_IMPORT."""

    SIZE: ClassVar[int] = 0x1C
    pek_address: int = at(0x00, 8)
    pek_length: int = at(0x08, 4)
    oca_address: int = at(0x10, 8)
    oca_length: int = at(0x18, 4)


@dataclass(frozen=True, slots=True)
class SnpInitEx(ByteLayout):
    """SNP_INIT_EX."""

    SIZE: ClassVar[int] = 0x40
    flags: int = at(0x00, 4)
    range_list_address: int = at(0x08, 8)
    max_snp_asid: int = at(0x10, 2)


@dataclass(frozen=True, slots=True)
class SnpAddress(ByteLayout):
    """Commands whose buffer is one address: PLATFORM_STATUS."""

    SIZE: ClassVar[int] = 0x08
    address: int = at(0x00, 8)


@dataclass(frozen=True, slots=True)
class GuestContextPage(ByteLayout):
    """SNP_GCTX_CREATE, SNP_DECOMMISSION: the guest context page."""

    SIZE: ClassVar[int] = 0x08
    address: int = at(0x00, 8)


@dataclass(frozen=True, slots=True)
class SnpPlatformStatus(ByteLayout):
    """The status page of SNP_PLATFORM_STATUS."""

    SIZE: ClassVar[int] = 0x20
    api_major: int = at(0x00, 1)
    api_minor: int = at(0x01, 1)
    state: int = at(0x02, 1)
    flags: int = at(0x03, 1)
    build: int = at(0x04, 4)
    policy_flags: int = at(0x08, 4)
    guest_count: int = at(0x0C, 4)
    current_tcb: int = at(0x10, 8)
    reported_tcb: int = at(0x18, 8)


@dataclass(frozen=True, slots=True)
class SnpGuestRequest(ByteLayout):
    """SNP_GUEST_REQUEST: a guest's message, and where the answer goes."""

    SIZE: ClassVar[int] = 0x18
    gctx: int = at(0x00, 8)
    request: int = at(0x08, 8)
    response: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class SnpActivate(ByteLayout):
    """SNP_ACTIVATE."""

    SIZE: ClassVar[int] = 0x0C
    gctx: int = at(0x00, 8)
    asid: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class SnpActivateEx(ByteLayout):
    """SNP_ACTIVATE_EX, as ACTIVATE_EX."""

    SIZE: ClassVar[int] = 0x20
    length: int = at(0x00, 4)
    gctx: int = at(0x08, 8)
    asid: int = at(0x10, 4)
    count: int = at(0x14, 4)
    apic_ids: int = at(0x18, 8)


@dataclass(frozen=True, slots=True)
class SnpGuestStatus(ByteLayout):
    """SNP_GUEST_STATUS."""

    SIZE: ClassVar[int] = 0x10
    gctx: int = at(0x00, 8)
    address: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class SnpGuestStatusPage(ByteLayout):
    """What SNP_GUEST_STATUS writes."""

    SIZE: ClassVar[int] = 0x20
    policy: int = at(0x00, 8)
    asid: int = at(0x08, 4)
    state: int = at(0x0C, 1)


SNP_START_MA = 1 << 0
"""LAUNCH_START flag: the guest has a migration agent."""
SNP_START_IMI = 1 << 1
"""LAUNCH_START flag: some of its pages are an initial migration image."""
SNP_UPDATE_IMI = 1 << 4
"""LAUNCH_UPDATE flag: the page is of that image."""


@dataclass(frozen=True, slots=True)
class SnpLaunchStart(ByteLayout):
    """SNP_LAUNCH_START."""

    SIZE: ClassVar[int] = 0x30
    gctx: int = at(0x00, 8)
    policy: int = at(0x08, 8)
    ma_gctx: int = at(0x10, 8)
    flags: int = at(0x18, 4)
    desired_tsc_khz: int = at(0x1C, 4)
    gosvw: bytes = at(0x20, 16, bytes(16))


@dataclass(frozen=True, slots=True)
class SnpLaunchUpdate(ByteLayout):
    """SNP_LAUNCH_UPDATE; ``flags`` holds page size (bit 0), page type (3:1) and IMI (4)."""

    SIZE: ClassVar[int] = 0x20
    gctx: int = at(0x00, 8)
    flags: int = at(0x08, 4)
    address: int = at(0x10, 8)
    permissions: int = at(0x18, 4)

    @classmethod
    def of(cls, gctx: int, page_type: int, address: int) -> SnpLaunchUpdate:
        """A 4 KiB page of a type."""
        return cls(gctx=gctx, flags=page_type << 1, address=address)

    @property
    def large(self) -> bool:
        """Whether the page is 2 MiB."""
        return bool(self.flags & 1)

    @property
    def page_type(self) -> int:
        """The PAGE_TYPE field."""
        return self.flags >> 1 & 7

    @property
    def vmpl_permissions(self) -> tuple[int, int, int]:
        """Permissions of VMPL 1, 2 and 3."""
        return self.permissions >> 8 & 0xFF, self.permissions >> 16 & 0xFF, self.permissions >> 24

    @property
    def is_well_formed(self) -> bool:
        """Whether flags and permissions have only bits that mean something; VMPL0 has none to be set."""
        return not (self.flags & ~_LAUNCH_UPDATE_FLAGS or self.permissions & ~_LAUNCH_UPDATE_PERMISSIONS)

    @property
    def imi(self) -> bool:
        """The IMI_PAGE bit."""
        return bool(self.flags & 1 << 4)


@dataclass(frozen=True, slots=True)
class SnpLaunchFinish(ByteLayout):
    """SNP_LAUNCH_FINISH."""

    SIZE: ClassVar[int] = 0x40
    gctx: int = at(0x00, 8)
    id_block_address: int = at(0x08, 8)
    id_auth_address: int = at(0x10, 8)
    flags: int = at(0x18, 4)
    host_data: bytes = at(0x20, 32, bytes(32))


@dataclass(frozen=True, slots=True)
class SnpDebug(ByteLayout):
    """SNP_DBG_DECRYPT, SNP_DBG_ENCRYPT: a page each."""

    SIZE: ClassVar[int] = 0x18
    gctx: int = at(0x00, 8)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class SnpPageReclaim(ByteLayout):
    """SNP_PAGE_RECLAIM; bit 0 of ``address`` is the page size."""

    SIZE: ClassVar[int] = 0x08
    address: int = at(0x00, 8)


@dataclass(frozen=True, slots=True)
class SnpPageUnsmash(ByteLayout):
    """SNP_PAGE_UNSMASH."""

    SIZE: ClassVar[int] = 0x08
    address: int = at(0x00, 8)


@dataclass(frozen=True, slots=True)
class SnpConfig(ByteLayout):
    """SNP_CONFIG."""

    SIZE: ClassVar[int] = 0x40
    reported_tcb: int = at(0x00, 8)
    flags: int = at(0x08, 4)
    reserved: bytes = at(0x0C, 0x34, bytes(0x34))


@dataclass(frozen=True, slots=True)
class SnpCommit(ByteLayout):
    """SNP_COMMIT."""

    SIZE: ClassVar[int] = 0x04
    length: int = at(0x00, 4)


@dataclass(frozen=True, slots=True)
class SnpVlekLoad(ByteLayout):
    """SNP_VLEK_LOAD."""

    SIZE: ClassVar[int] = 0x10
    length: int = at(0x00, 4)
    version: int = at(0x04, 1)
    address: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class SnpShutdownEx(ByteLayout):
    """SNP_SHUTDOWN_EX."""

    SIZE: ClassVar[int] = 0x08
    length: int = at(0x00, 4)
    flags: int = at(0x04, 4)


@dataclass(frozen=True, slots=True)
class SnpFeatureInfo(ByteLayout):
    """SNP_FEATURE_INFO."""

    SIZE: ClassVar[int] = 0x10
    length: int = at(0x00, 4)
    ecx_in: int = at(0x04, 4)
    address: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class SnpVerifyMitigation(ByteLayout):
    """SNP_VERIFY_MITIGATION; ``vector`` has one bit set."""

    SIZE: ClassVar[int] = 0x40
    length: int = at(0x00, 4)
    subcommand: int = at(0x04, 2)
    vector: int = at(0x08, 8)
    flags: int = at(0x10, 4)
    source: int = at(0x18, 8)
    destination: int = at(0x20, 8)
