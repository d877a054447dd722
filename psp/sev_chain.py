"""A platform's certificate chain, as a guest owner checks it before trusting a PDH with anything.

AMD made the chip: ARK, ASK, CEK, PEK, PDH sign each the next. And this owner runs it: OCA, PEK.
"""

from __future__ import annotations

from dataclasses import dataclass

from psp import amd_certificate, sev_certificate
from psp.amd_certificate import AmdCertificate
from psp.sev_certificate import KeyUsage, SevCertificate


@dataclass(frozen=True, slots=True)
class PlatformChain:
    """PDH_CERT_EXPORT's four certificates."""

    pdh: SevCertificate
    pek: SevCertificate
    oca: SevCertificate
    cek: SevCertificate

    def pack(self) -> bytes:
        """The export's chain buffer: all but the PDH."""
        return self.pek.pack() + self.oca.pack() + self.cek.pack()

    @classmethod
    def parse(cls, pdh: bytes, chain: bytes, *, checks_point: bool = True) -> PlatformChain:
        """From the two buffers of the export; ``checks_point`` is the PDH's. Raises CertificateError."""
        size = SevCertificate.SIZE
        if len(chain) != 3 * size:
            raise sev_certificate.CertificateError(f"chain: expected {3 * size} bytes, got {len(chain)}")
        pek, oca, cek = (chain[at : at + size] for at in range(0, 3 * size, size))
        certificates = (
            sev_certificate.parse(pdh, KeyUsage.PDH, checks_point=checks_point),
            sev_certificate.parse(pek, KeyUsage.PEK),
            sev_certificate.parse(oca, KeyUsage.OCA),
            sev_certificate.parse(cek, KeyUsage.CEK),
        )
        for one in certificates:
            sev_certificate.check_slots(one)
        return cls(*certificates)


def check_chain(chain: PlatformChain, ark: AmdCertificate, ask: AmdCertificate) -> None:
    """Raise CertificateError unless every signature verifies. ``ark`` must be known to be AMD's in some other way."""
    amd_certificate.check_signed(ark, ark)
    amd_certificate.check_signed(ask, ark)
    amd_certificate.check_cek(chain.cek, ask)
    sev_certificate.check_signed(chain.pek, chain.cek)
    check_owned(chain)


def check_owned(chain: PlatformChain) -> None:
    """Raise CertificateError unless OCA, PEK and PDH sign each the next, whosever chip that may be."""
    sev_certificate.check_signed(chain.oca, chain.oca)
    sev_certificate.check_signed(chain.pek, chain.oca)
    sev_certificate.check_signed(chain.pdh, chain.pek)
