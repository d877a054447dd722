"""Firmware levels of each product that somebody has seen, as a table: versions of the interfaces and security versions.

Sources are named in each row: real reports and certificates in public test data, and issue threads. ``doubts`` says
what in a row has none. Microcode's security version is that of the host when it was seen; hosts load newer patches
without other firmware, so the same version is met with several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psp.installed_firmware import FirmwareLevel, Version
from psp.product_line import ProductLine
from psp.tcb_version import TcbComponent

_FMC, _BL, _TEE, _SNP, _UCODE = (
    TcbComponent.FMC, TcbComponent.BOOT_LOADER, TcbComponent.TEE, TcbComponent.SNP, TcbComponent.MICROCODE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KnownLevel:
    """One row; ``svns`` is empty for products without SEV-SNP, which have no TCB version."""

    version: Version
    svns: Mapping[TcbComponent, int]
    seen: str
    doubts: str = ""


_NO_SVNS: Mapping[TcbComponent, int] = {}
_LEGACY = (
    KnownLevel((0, 17, 11), _NO_SVNS, "CVE-2019-9836: the last that takes points off the curve", "recalled"),
    KnownLevel((0, 17, 22), _NO_SVNS, "CVE-2019-9836: the first that checks the owner's point", "recalled"),
    KnownLevel((0, 22, 0), _NO_SVNS, "certificates of a Rome in virtee/sev", "build unknown"),
    KnownLevel((0, 24, 15), _NO_SVNS, "range of versions at hosts' general availability", "build unknown"),
)
_GENOAS = (
    KnownLevel((1, 55, 21), {_BL: 0x07, _SNP: 0x0E, _UCODE: 0x48}, "floor that a public verifier demands of Genoa",
               "version unknown"),
    KnownLevel((1, 55, 40), {_BL: 0x0A, _SNP: 0x17, _UCODE: 0x54}, "v3 report of a Genoa in confidential-containers"),
)  # fmt: skip
_SIBLINGS = "Genoa's, and the security version of its microcode too"

LEVELS: Mapping[str, tuple[KnownLevel, ...]] = {
    "Naples": _LEGACY,
    "Rome": _LEGACY,
    "Milan": (
        KnownLevel((1, 49, 3), {_BL: 0x02, _SNP: 0x05, _UCODE: 0x44}, "v2 report in google/go-sev-guest"),
        KnownLevel((1, 52, 4), {_BL: 0x03, _SNP: 0x08, _UCODE: 0x73}, "v2 report in virtee/sev"),
        KnownLevel((1, 55, 29), {_BL: 0x04, _SNP: 0x18, _UCODE: 0xDB}, "v3 report in confidential-containers"),
    ),
    "Genoa": _GENOAS,
    "Bergamo": tuple(KnownLevel(one.version, one.svns, one.seen, _SIBLINGS) for one in _GENOAS),
    "Siena": tuple(KnownLevel(one.version, one.svns, one.seen, _SIBLINGS) for one in _GENOAS),
    "Turin": (
        KnownLevel((1, 58, 1), {_FMC: 1, _BL: 1, _TEE: 1, _SNP: 4, _UCODE: 0x52}, "TCB in a public verifier's tests",
                   "version unsourced"),
    ),
}  # fmt: skip
"""By product, from the oldest to the newest."""


def known_level(product: str, version: Version) -> KnownLevel:
    """The row of a version. KeyError for a product or a version that is not in the table."""
    for one in LEVELS[product]:
        if one.version == version:
            return one
    raise KeyError(version)


def firmware_level(product: str, line: ProductLine, version: Version, tcb: int | None = None) -> FirmwareLevel:
    """A product's level of a version, with a TCB version if that is given.

    A version that is not in the table has the security versions of the newest one below it, or of the oldest.
    KeyError for a product that is not in the table.
    """
    if tcb is not None:
        return FirmwareLevel(version, tcb)
    known = LEVELS[product]
    row = next((one for one in reversed(known) if one.version <= version), known[0])
    return FirmwareLevel(version, 0 if line.tcb is None else line.tcb.pack(row.svns))
