"""The CPUID page a hypervisor offers an SNP guest: what firmware checks and then encrypts.

Layout: SNP firmware ABI (56860), 8.17.2.6, the CPUID_FUNCTION table: u32 count,
12 reserved bytes, then up to 64 entries of 48 bytes. The contents are not
measured; firmware compares them with the processor instead.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from node.cpu_features import feature_registers
from node.generation import Generation

CPUID_PAGE_BYTES = 4096
MAX_CPUID_ENTRIES = 64
_HEADER = struct.Struct("<I4xQ")
_ENTRY = struct.Struct("<IIQQIIIIQ")

_VENDOR = b"AuthenticAMD"
_NONE = (0, 0, 0, 0)

EXTENDED_LEAVES = 0x8000_0000
"""The function whose EAX is the last of the extended functions."""
ENCRYPTION_LEAF = 0x8000_001F
"""What is encrypted, in EAX, and in EBX bits 5:0 the C-bit's place (APM volume 3, appendix E)."""
_ENCRYPTION_BITS: Mapping[Generation, int] = {
    Generation.SEV: 1 << 1,
    Generation.SEV_ES: 1 << 1 | 1 << 3,
    Generation.SEV_SNP: 1 << 1 | 1 << 3 | 1 << 4,
    Generation.SEV_TIO: 1 << 1 | 1 << 3 | 1 << 4,
}


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One leaf: the inputs and the four registers a guest shall see."""

    eax_in: int
    ecx_in: int = 0
    xcr0_in: int = 0
    xss_in: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def encryption_bits(generation: Generation) -> int:
    """EAX of the encryption leaf as a guest of a generation must find it: SEV, SEV-ES and SEV-SNP."""
    return _ENCRYPTION_BITS.get(generation, 0)


@cache  # Each host of a fleet asks for those of all generations.
def cpuid_entries(
    cpuid_signature: int, generation: Generation = Generation.SEV_SNP, c_bit: int = 51, reduced_bits: int = 1,
    features: frozenset[str] = frozenset(),
) -> tuple[CpuidEntry, ...]:  # fmt: skip
    """The leaves of identification, vendor and signature, basic and extended, that of encryption, and features.

    No guest program of the laboratory asks for more; caches, topology and the sizes of what XSAVE
    stores are left out rather than guessed.
    """
    vendor = [int.from_bytes(_VENDOR[i : i + 4], "little") for i in (0, 8, 4)]
    shown = {(base + 1, 0): (cpuid_signature, 0, 0, 0) for base in (0, EXTENDED_LEAVES)}
    bits = encryption_bits(generation)
    if bits:
        shown[ENCRYPTION_LEAF, 0] = (bits, c_bit | reduced_bits << 6, 0, 0)
    for leaf, registers in feature_registers(features).items():
        eax, ebx, ecx, edx = (ours | more for ours, more in zip(shown.get(leaf, _NONE), registers, strict=True))
        shown[leaf] = eax, ebx, ecx, edx
    for base in (0, EXTENDED_LEAVES):
        last = max([function for function, _ in shown if function & EXTENDED_LEAVES == base])
        shown[base, 0] = (last, vendor[0], vendor[1], vendor[2])
    return tuple([CpuidEntry(*leaf, 0, 0, *registers) for leaf, registers in sorted(shown.items())])


def cpuid_page(entries: Sequence[CpuidEntry]) -> bytes:
    """The page as LAUNCH_UPDATE takes it; ValueError for more entries than it holds."""
    if len(entries) > MAX_CPUID_ENTRIES:
        raise ValueError(f"CPUID page: expected at most {MAX_CPUID_ENTRIES} entries, found {len(entries)}")
    body = b"".join(
        _ENTRY.pack(e.eax_in, e.ecx_in, e.xcr0_in, e.xss_in, e.eax, e.ebx, e.ecx, e.edx, 0) for e in entries
    )
    return (_HEADER.pack(len(entries), 0) + body).ljust(CPUID_PAGE_BYTES, b"\0")


def parse_cpuid_page(page: bytes) -> tuple[CpuidEntry, ...]:
    """The leaves of a page that firmware has checked; ValueError if it is none."""
    if len(page) != CPUID_PAGE_BYTES:
        raise ValueError(f"CPUID page: expected {CPUID_PAGE_BYTES} bytes, found {len(page)}")
    count, _ = _HEADER.unpack_from(page)
    if count > MAX_CPUID_ENTRIES:
        raise ValueError(f"CPUID page: expected at most {MAX_CPUID_ENTRIES} entries, found {count}")
    at = range(_HEADER.size, _HEADER.size + count * _ENTRY.size, _ENTRY.size)
    return tuple([CpuidEntry(*_ENTRY.unpack_from(page, start)[:8]) for start in at])
