"""What CPUID tells each vCPU of itself, which no CPUID page can have: it is one for all of a guest's vCPUs.

Functions and bits: APM volume 3, appendix E; Linux asks its hypervisor for these alone (arch/x86/coco/sev,
snp_cpuid_postprocess) and works out the sizes of what XSAVE stores, in function 0xD, for itself.
"""

from __future__ import annotations

from collections.abc import Mapping

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX and EDX."""

FEATURES, TOPOLOGY, PROCESSOR = 1, 0xB, 0x8000_001E
_WORD = 0xFFFF_FFFF

BITS_BY_VCPU: Mapping[int, Registers] = {
    FEATURES: (0, 0xFF << 24, 0, 1 << 9), TOPOLOGY: (0, 0, 0, _WORD), PROCESSOR: (_WORD, 0xFF, 0xFF, 0),
}  # fmt: skip
"""Of each function what differs: the APIC ID, whether the APIC is on, and numbers of core and node."""


def with_apic_id(function: int, shown: Registers, vcpu: int) -> Registers:
    """A leaf as this vCPU finds it: its APIC ID is its number; core and node are left out as all topology is."""
    eax, ebx, ecx, edx = shown
    if function == FEATURES:
        return eax, ebx & ~(0xFF << 24) | (vcpu & 0xFF) << 24, ecx, edx
    if function == TOPOLOGY:
        return eax, ebx, ecx, vcpu
    return (vcpu, ebx, ecx, edx) if function == PROCESSOR else shown


def merged(shown: Registers, told: Registers, bits: Registers) -> Registers:
    """What was shown to all, but for ``bits`` as this vCPU was told them."""
    eax, ebx, ecx, edx = (ours & ~mask | its & mask for ours, its, mask in zip(shown, told, bits, strict=True))
    return eax, ebx, ecx, edx
