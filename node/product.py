"""The lines of AMD EPYC processors, as a table.

Sources: CPUID 8000001F of real parts, Linux ``arch/x86/kernel/cpu/amd.c`` and
dmesg of public hosts for ASIDs and address bits; host inventories of public
laboratories for cores and channels. A cell that rests on memory alone is named
in ``doubts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.cache_switches import CacheSwitches
from node.cpu_features import CpuidSwitches
from node.generation import Generation
from node.memory_cipher import CipherMode
from node.rmp_switches import RmpSwitches
from psp.product_line import PRODUCT_LINES, ProductLine

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_LIKELIER = RmpSwitches()
_ZEN_1 = CacheSwitches()
_CPUID = CpuidSwitches()
_ZEN_4 = CacheSwitches(invd_drops=False)
_SEV = frozenset({Generation.PLAIN, Generation.SME, Generation.SEV, Generation.SEV_ES})
_SNP = _SEV | {Generation.SEV_SNP}
_TIO = _SNP | {Generation.SEV_TIO}
_XEX = (CipherMode.AES_128_XEX,)
_XEX_OR_XTS = (CipherMode.AES_128_XEX, CipherMode.AES_256_XTS)
"""From Zen 4 on firmware chooses for the whole platform; which is its default is not known."""


@dataclass(frozen=True, slots=True)
class Product:
    """One line of processors in its usual one-socket server.

    ``memory_bandwidth_bytes_per_s`` is the channels' peak. ``min_sev_asid`` is
    the usual firmware setting of the ES/SNP split; a scenario may move it. ``ciphers``
    are those it can encrypt memory with, its default first.
    """

    name: str
    cpuid_1_eax: int
    cores: int
    base_hz: int
    memory_channels: int
    transfers_per_s: int
    max_memory_bytes: int
    max_asid: int
    min_sev_asid: int
    c_bit: int
    physical_address_bits: int
    reduced_bits: int
    generations: frozenset[Generation]
    firmware_api: tuple[int, int, int]
    coherent_across_keys: bool
    ciphers: tuple[CipherMode, ...]
    sockets: int = 1
    threads_per_core: int = 2
    cores_per_complex: int = 8
    """That share a level 3 cache; recalled, and 16 in some parts with dense cores."""
    llc_bytes_per_complex: int = 32 * MIB
    """Of that cache: 256 MiB of an EPYC 7713P and 384 MiB of a 9654 are in public inventories; others are recalled."""
    doubts: tuple[str, ...] = ()
    rmp: RmpSwitches = _LIKELIER
    caches: CacheSwitches = _ZEN_1
    can_hide_ciphertext: bool = False
    """One public list of mitigations has it on Genoa too."""
    signed_as: str = ""
    """The line whose root keys sign for its chips, where that is another's."""
    checks_points: bool = True
    """Whether firmware takes only points of P-384 for its PDH (CVE-2019-9836, CVE-2021-26408: not before Zen 3).

    Firmware 0.17 build 22 is said to check those of LAUNCH_START, a later one those of SEND_START: here a host's
    platform says whether it has the fix.
    """
    turns_psp_accesses: bool = False
    """A host can turn accesses of the security processor to its own fast registers (CVE-2025-61971, Zen 4 and 5)."""
    cpuid: CpuidSwitches = _CPUID

    @property
    def family(self) -> int:
        """CPUID family: the base field and the extended one added."""
        return (self.cpuid_1_eax >> 8 & 0xF) + (self.cpuid_1_eax >> 20 & 0xFF)

    @property
    def line(self) -> ProductLine:
        """Whose root keys sign for its chips."""
        return PRODUCT_LINES[self.signed_as or self.name]

    @property
    def threads(self) -> int:
        """Hardware threads of all sockets."""
        return self.sockets * self.cores * self.threads_per_core

    @property
    def memory_bandwidth_bytes_per_s(self) -> float:
        """Peak of all channels of all sockets, 8 bytes a transfer."""
        return float(self.sockets * self.memory_channels * self.transfers_per_s * 8)


_ROWS = (
    Product("Naples", 0x00800F12, 32, 2_200_000_000, 8, 2_666_000_000, 2 * TIB, 15, 9, 47, 48, 5, _SEV,
            (0, 24, 15), False, (CipherMode.AES_128_XEX_ZEN1, CipherMode.AES_128_XE),
            doubts=("min_sev_asid read on an embedded part of the same core", "firmware build unsourced",
                    "cores and clock are the EPYC 7601's, recalled", "which steppings encrypt with XE is not listed"),
            checks_points=False, cores_per_complex=4, llc_bytes_per_complex=8 * MIB),
    Product("Rome", 0x00830F10, 64, 2_250_000_000, 8, 3_200_000_000, 4 * TIB, 509, 100, 47, 48, 5, _SEV,
            (0, 24, 15), False, _XEX,
            doubts=("C-bit position recalled", "split taken from a Milan host", "firmware build unsourced",
                    "clock is the EPYC 7742's, recalled"),
            checks_points=False, cores_per_complex=4, llc_bytes_per_complex=16 * MIB),
    Product("Milan", 0x00A00F11, 64, 2_000_000_000, 8, 3_200_000_000, 4 * TIB, 509, 100, 51, 48, 5, _SNP,
            (1, 55, 29), True, _XEX, doubts=("clock is the EPYC 7713P's, recalled",)),
    Product("Genoa", 0x00A10F11, 96, 2_400_000_000, 12, 4_800_000_000, 6 * TIB, 1006, 99, 51, 52, 6, _SNP,
            (1, 55, 40), True, _XEX_OR_XTS,
            doubts=("clock is the EPYC 9654P's, recalled", "which cipher is the default is not published"),
            caches=_ZEN_4, turns_psp_accesses=True),
    Product("Bergamo", 0x00AA0F02, 128, 2_250_000_000, 12, 4_800_000_000, 6 * TIB, 1006, 99, 51, 52, 6, _SNP,
            (1, 55, 40), True, _XEX_OR_XTS,
            doubts=("split and firmware taken from a Genoa host", "clock is the EPYC 9754's, recalled"),
            caches=_ZEN_4, signed_as="Genoa", turns_psp_accesses=True, llc_bytes_per_complex=16 * MIB),
    Product("Siena", 0x00AA0F02, 64, 2_250_000_000, 6, 4_800_000_000, 3 * TIB // 2, 1006, 99, 51, 52, 6, _SNP,
            (1, 55, 40), True, _XEX_OR_XTS,
            doubts=("split and firmware taken from a Genoa host", "clock is the EPYC 8534P's, recalled"),
            caches=_ZEN_4, signed_as="Genoa", turns_psp_accesses=True, llc_bytes_per_complex=16 * MIB),
    Product("Turin", 0x00B00F21, 128, 2_700_000_000, 12, 6_000_000_000, 6 * TIB, 1006, 99, 51, 52, 6, _TIO,
            (1, 58, 1), True, _XEX_OR_XTS,
            doubts=("C-bit, reduction and split taken from Genoa", "CPUID signature unverified",
                    "firmware build unsourced", "clock is the EPYC 9755's, recalled",
                    "RMP taken to be segmented, as its hosts are usually set up"),
            rmp=RmpSwitches(segmented=True, rmpread=True), caches=_ZEN_4, can_hide_ciphertext=True,
            turns_psp_accesses=True),
)  # fmt: skip

PRODUCTS: Mapping[str, Product] = {product.name: product for product in _ROWS}
