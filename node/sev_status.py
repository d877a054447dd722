"""SEV_STATUS (MSR C001_0131): what a guest is told, by the processor itself, of how it runs.

Bits 0 to 2 are SEV, SEV-ES and SEV-SNP; SEV_FEATURES bit n of the save area is bit n + 2 (APM volume 2, 15.34.10).
"""

from __future__ import annotations

from collections.abc import Mapping

from node.generation import Generation
from node.vmsa import SevFeature

SEV, ES, SNP = 1 << 0, 1 << 1, 1 << 2

_GENERATION_BITS: Mapping[Generation, int] = {
    Generation.SEV: SEV,
    Generation.SEV_ES: SEV | ES,
    Generation.SEV_SNP: SEV | ES | SNP,
    Generation.SEV_TIO: SEV | ES | SNP,
}


def sev_status(generation: Generation, features: int) -> int | None:
    """The register of a guest with these SEV_FEATURES; None for one that has no such register."""
    bits = _GENERATION_BITS.get(generation)
    return None if bits is None else bits | (features & ~int(SevFeature.SNP_ACTIVE)) << 2


def expected_status(generation: Generation, features: int = 0) -> int | None:
    """What a kernel of this laboratory runs with: its generation, the features it was built for, and none besides."""
    return sev_status(generation, features)
