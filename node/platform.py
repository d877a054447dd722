"""How one host is set up beyond its line of processors: firmware settings, and what a laboratory switches off."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.card_slot import CardSlot
from node.memory_cipher import CipherMode, XtsSector
from node.product import Product
from node.vmexit import ExitCode
from psp.installed_firmware import TcbOf
from psp.key_messages import RootTcb


class HostMode(StrEnum):
    """How a host encrypts memory that belongs to no guest's key (APM volume 2, 7.10)."""

    NONE = "none"
    SME = "sme"
    """SYSCFG.MemEncryptionModeEn: pages mapped with the C-bit go through the host's key."""
    TSME = "tsme"
    """Firmware's setting: everything without a guest's key goes through the host's, whoever asks."""


class Protection(StrEnum):
    """Mechanisms that a laboratory can switch off in the chip, one at a time, to see what they stop."""

    RMP_WRITE_CHECK = "rmp write check"
    """Of the host's stores and of guests' to shared memory; what devices do is ``IOMMU_CHECK``'s."""
    GPA_MATCH = "gpa match"
    """Of an entry's guest address with the one accessed, or named by PVALIDATE, RMPADJUST and RMPQUERY."""
    VALIDATED_BIT = "validated bit"
    """Its being asked for by accesses, RMPADJUST, RMPQUERY and VMRUN; PVALIDATE sets it and tells of it as ever."""
    IOMMU_CHECK = "iommu check"
    """Of devices' accesses against the RMP; page tables still say what a device reaches."""
    IOMMU_LOG_CHECK = "iommu log check"
    """Of the IOMMU's own records against the RMP, on parts and with firmware that have it."""
    TWEAK = "tweak"
    SAVE_AREA_INTEGRITY = "save area integrity"
    """Of SEV-ES save areas, at VMRUN."""
    RESTRICTED_INJECTION = "restricted injection"
    """VMRUN's keeping to it, in a guest that asked for it."""
    ALTERNATE_INJECTION = "alternate injection"
    """Likewise."""
    BTB_ISOLATION = "branch target buffer isolation"
    """In a guest that asked for it."""
    PMC_VIRTUALIZATION = "performance counter virtualization"
    """Likewise."""
    REGISTER_NONCE = "register nonce"
    """A new one at each exit, in a guest that asked for masked registers; without, the one of its launch stays."""
    MESSAGE_SEQUENCE = "message sequence"
    """Firmware's look at the numbers of guest messages."""
    TARGET_CHAIN = "target chain"
    """SEND_START's look at the certificates of the platform that a SEV guest goes to, and at what its policy wants."""
    SWAP_TAG = "swap tag"
    """SNP_PAGE_SWAP_IN's comparison of a page with the tag in its entry."""
    SWAP_ENTRY = "swap entry"
    """Its clearing of that entry."""
    EXPORT_DECOMMISSIONS = "export decommissions"
    """The end of a guest's context here when a migration agent exports it."""
    TLB_ID = "tlb id"
    """VMRUN's match of PCPU_ID and TLB_ID in an SNP guest's save area with the thread's last."""
    IDE = "ide"
    """All that it does to packets: without, they cross as they are, on streams that are called Secure all the same."""
    IDE_MAC = "ide mac"
    """A root port's and a card's look at the MACs of protected packets."""
    IDE_PACKET_NUMBER = "ide packet number"
    """Their counting of packets: without, one that is repeated, or comes after one that is lost, passes."""
    SESSION_ENCRYPTION = "session encryption"
    """Firmware's and cards' wanting it of the sessions in which keys of links go: without, a MAC alone will do."""
    MMIO_VALIDATION = "mmio validation"
    """PVALIDATE's refusal of pages of devices, which firmware alone validates.

    Inferred: the sheet says that it is not used for them, no text at hand what comes of it. Without, whoever the host
    gives a page of a trusted device has its registers.
    """
    MMIO_ROUTE = "mmio route"
    """Firmware's look whether pages that a device reports lie behind its own root port."""
    MMIO_GIVEN_BACK = "mmio given back"
    """Firmware's look whether a guest still has valid pages of a TDI that it binds."""
    SECURE_DEVICE_ENTRY = "secure device table entry"
    """The IOMMU's look at whose a trusted request's device is, on which stream it came, and what its guest permits.

    Without, it acts for whichever guest owns the page that the host's table leads to; the RMP is asked as ever.
    """


NO_FLOOR = bytes(32)
"""HOST_DATA of a migration agent that takes guests from firmware of any age."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Settings of one host."""

    mode: HostMode = HostMode.NONE
    disabled: frozenset[Protection] = frozenset()
    """Mechanisms that do not work; empty outside of experiments that show what each is good for."""
    max_snp_asid: int = 0
    """Last ASID for SNP guests, whose ciphertext the host then asks firmware to hide; 0 for no hiding."""
    firmware_api: tuple[int, int, int] | None = None
    """Version of the security processor's firmware (major, minor, build); None for the product's row."""
    firmware_tcb: int | None = None
    """TCB version of that firmware; None for the one that a host of the product was seen with."""
    report_version: int | None = None
    """Version of the attestation reports that it makes, 2 to 5; None for what firmware of its age makes."""
    derived_keys: RootTcb = RootTcb.ASKED
    """For which TCB version the chip's key is derived that keys of guests rest on."""
    reports_signed_for: TcbOf = TcbOf.REPORTED
    """And that which signs reports; they differ only where firmware is provisional, or reported lower than it is."""
    fabric_locked: bool = True
    """Boot firmware locks the data fabric's routes; False for one that leaves the call out (CVE-2025-54510)."""
    fabric_lock_checked: bool = False
    """Firmware of the security processor that starts SNP only on a locked data fabric (AMD-SB-3034)."""
    migration_agent: bool = False
    """The host has a migration agent, with which SEV-SNP guests may be launched, from its beginning on."""
    migration_agent_floor: bytes = NO_FLOOR
    """HOST_DATA of that agent, which says how old firmware may be that it takes guests from: see ``floor_data``."""
    iommu_supports_snp: bool = True
    """SNPSup of the IOMMU on a product with SNP; False for a board whose firmware leaves it out."""
    iommu_write_safe: bool = False
    """Firmware that keeps the IOMMU's own log writes inside of its logs (AMD-SB-3016, CVE-2023-20585; family 19h).

    Where it is missing, records may land outside of a short log, past the RMP. With it, records are checked, and
    SNP_INIT demands logs of full length. Other families are taken to be safe.
    """
    memory_cipher: CipherMode | None = None
    """How memory is encrypted, of what the product offers; None for its default.

    The early steppings of Zen 1 are Naples with AES_128_XE.
    """
    xts_sector: XtsSector = XtsSector.LINE
    tlb_entries: int | None = None
    """Translations that each hardware thread remembers; None where every access walks anew, as after a flush."""
    ghost_line: int = 0
    """An address bit that a module's SPD claims and its chips do not have, from boot on (BadRAM); 0 for none."""
    alias_check: bool = False
    """Boot firmware that looks for DRAM aliases (AMD-SB-3015) and does not let SNP start where it finds one."""
    caches: bool = False
    """Whether cores have data caches that hold something. Without, every line is as good as written back at once."""
    cache_timing: bool = False
    """Whether loads take as long as the line's place says; has caches with it. Without, all take the same."""
    invd_writes_back: bool = False
    """Microcode that lets INVD act as WBINVD whatever HWCR.INVDWBINVD says (AMD-SB-3005).

    Without it the bit decides, which is the hypervisor's to set and to clear; the cores start with it clear.
    """
    numa_nodes: int = 1
    """NUMA nodes that boot firmware cuts the socket into (NPS): 1, 2 or 4, each with its part of memory and cores."""
    stack_engine_fixed: bool = False
    """Microcode with which one thread does not stop the stack engine of the other (AMD-SB-3027)."""
    save_area_refused: ExitCode = ExitCode.SHUTDOWN
    """How VMRUN exits with an SEV-ES save area whose integrity value does not fit.

    Public sources name SHUTDOWN and INVALID.
    """
    alternate_injection_refuses: bool = True
    """VMRUN exits with VMEXIT_INVALID where the hypervisor injects into a guest with alternate injection.

    Without, its fields are not looked at. Public sources say that it may not inject, not what becomes of it if it does.
    """
    point_check: bool = False
    """Firmware that takes only points of P-384 for its PDH (fixes of CVE-2019-9836 and CVE-2021-26408).

    Products that always did need no fix.
    """
    rmp_init_barrier: bool = False
    """Cores cannot store to the RMP while firmware zeroes it (the fix of AMD-SB-3020).

    Without it, dirty lines of the table outlive SNP_INIT, which is one instant here: a
    store before it stands for one that races with it.
    """

    psp_least_privilege: bool = False
    """A security processor without the right to switch off what the IOMMU checks (AMD-SB-3030, psp_least_priv)."""
    context_tweaked: bool = True
    """Whether the ciphertext of a guest's context depends on the Context page's address.

    Memory is encrypted so; of the security processor's own key nobody has published it.
    """

    cards: tuple[CardSlot, ...] = ()
    """What is in the host's slots. On a product with SEV-TIO the RMP covers their MMIO.

    That is an option of boot firmware, which AMD asks for with SEV-TIO; here it is always set.
    """

    key_refresh_ns: int = 0
    """After how long the host has links of trusted devices in use given fresh keys, again and again; 0 for never."""
    peers_open: bool = False
    """What a trusted device asks of another's memory goes there by its address, as through a switch without access
    control; otherwise the RMP is asked, as of any page."""
    ide_reorder_check: bool = False
    """Both ends of links bind what was posted before it into the MAC of every other packet (CVE-2025-9612)."""
    ide_tag_fence: bool = False
    """They use no tag again before the late completion of a request that timed out has come (CVE-2025-9613)."""
    ide_rekey_flush: bool = False
    """Firmware gives a device's streams fresh keys before a TDI that another had may be locked again, and nothing is
    taken any more that was sent under the old ones (CVE-2025-9614)."""

    context_mac: bool = False
    """Whether contexts carry an integrity value. Hypothetical: AMD's have none."""

    def cipher_of(self, product: Product) -> CipherMode:
        """How memory of this product is encrypted. Raises ValueError for a cipher that it does not offer."""
        chosen = self.memory_cipher or product.ciphers[0]
        if chosen not in product.ciphers:
            offered = ", ".join(product.ciphers)
            raise ValueError(f"memory_cipher: expected one of {offered} on {product.name}, got {chosen}")
        return chosen


AS_USUAL = Platform()
"""A host as it comes: no encryption of its own memory, every mechanism at work."""
