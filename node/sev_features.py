"""Which bits of SEV_FEATURES a line of processors has: VMRUN refuses a save area that asks for another.

From EAX of CPUID Fn8000_001F where a real part's is at hand (Milan: 0101FD3F); bits without one there come with
SEV-SNP (APM volume 2, table 15-35). Cells of later lines rest on what was published of each feature; ``doubts`` names
those that nobody has confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping

from node.hypervisor_port import LaunchRefused
from node.vmsa import SevFeature

_F = SevFeature
_MILAN = (
    _F.SNP_ACTIVE | _F.VTOM | _F.REFLECT_VC | _F.RESTRICTED_INJECTION | _F.ALTERNATE_INJECTION | _F.DEBUG_SWAP
    | _F.PREVENT_HOST_IBS | _F.BTB_ISOLATION | _F.SECURE_TSC | _F.VMSA_REGISTER_PROTECTION
)  # fmt: skip
_GENOA = _MILAN | _F.VMPL_SSS | _F.VMGEXIT_PARAMETER | _F.IBS_VIRTUALIZATION | _F.SMT_PROTECTION | _F.IBPB_ON_ENTRY
_TURIN = _GENOA | _F.PMC_VIRTUALIZATION

SEV_FEATURES: Mapping[str, SevFeature] = {
    "Milan": _MILAN,
    "Genoa": _GENOA,
    "Bergamo": _GENOA,
    "Siena": _GENOA,
    "Turin": _TURIN,
}
"""By product; one that is not here has none."""

DOUBTS: Mapping[str, SevFeature] = {
    "Genoa": _GENOA & ~_MILAN,
    "Bergamo": _GENOA & ~_MILAN,
    "Siena": _GENOA & ~_MILAN,
    "Turin": _GENOA & ~_MILAN,
}
"""Bits that public sources give to "some" of these lines. A test that needs another answer may set it so."""


WITHOUT_EFFECT = (
    _F.REFLECT_VC | _F.PREVENT_HOST_IBS | _F.VMPL_SSS | _F.VMGEXIT_PARAMETER | _F.IBS_VIRTUALIZATION
)  # fmt: skip
"""What parts have and nothing here acts by: VMRUN takes a save area with it, but no launch asks for it in vain."""


def features_of(product: str) -> SevFeature:
    """What a line has."""
    return SEV_FEATURES.get(product, SevFeature(0))


def launch_features(product: str, wanted: int) -> int:
    """SEV_FEATURES of a guest that asks for some. Raises LaunchRefused for one that the line lacks."""
    missing, idle = SevFeature(wanted & ~features_of(product)), SevFeature(wanted & WITHOUT_EFFECT)
    if missing:
        raise LaunchRefused(f"sev_features: {product} has no {missing.name or hex(missing)}")
    if idle:
        raise LaunchRefused(f"sev_features: {idle.name or hex(idle)} is not modelled")
    return int(SevFeature.SNP_ACTIVE) | wanted
