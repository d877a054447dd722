"""A platform's own keys: the chip's, which nothing changes, and those of its firmware and its owner.

What comes from the chip's fuses is in :mod:`psp.chip_identity`. OCA, PEK and PDH are the firmware's
persistent data; they outlive SHUTDOWN and go with PLATFORM_RESET. Seeds are
drawn when a command says so, keys and certificates made of them when somebody
asks (SEV API, chapters 2 and 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from psp import elliptic, sev_certificate
from psp.chip_identity import FUSE_BYTES, FUSES, ChipIdentity
from psp.installed_firmware import InstalledFirmware
from psp.product_line import PRODUCT_LINES, ProductLine
from psp.sev_certificate import CertificateError, KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.unchecked_point import unchecked_secret

_GENOA = PRODUCT_LINES["Genoa"]


class AlreadyOwned(Exception):
    """The platform has an external owner already."""


@dataclass(slots=True)
class PlatformKeys:
    """The keys of one platform. ``random`` gives bytes for (purpose, length).

    Certificates carry the interface (major, minor) of the firmware that made their key, which a later one
    does not change: an owner has signed it.
    """

    random: Callable[[str, int], bytes] = field(repr=False)
    firmware: InstalledFirmware
    line: ProductLine = _GENOA
    checks_points: bool = True
    """Whether who agrees on a key with the PDH must bring a point of its curve."""
    chip: ChipIdentity = field(init=False)
    oca_seed: bytes = field(default=b"", repr=False)
    pek_seed: bytes = field(default=b"", repr=False)
    pdh_seed: bytes = field(default=b"", repr=False)
    pek_api: tuple[int, int] = (0, 0)
    pdh_api: tuple[int, int] = (0, 0)
    owner: bytes = b""
    """Certificates of an external owner: its PEK, then its OCA."""

    def __post_init__(self) -> None:
        # Nothing else ever draws the fuses, so when that happens is of no matter.
        self.chip = ChipIdentity(self.line, lambda: self.random(f"{FUSES} {self.line.name}", FUSE_BYTES))

    # What commands do.

    def complete(self) -> None:
        """Make what is missing, as INIT does."""
        if not self.pek_seed:
            self.generate_pek()

    def generate_pek(self) -> None:
        """PEK_GEN: a new PEK and a new PDH, and the platform owns itself."""
        self.oca_seed = self._drawn("OCA")
        self.pek_seed = self._drawn("PEK")
        self.pek_api = self._api
        self.owner = b""
        self.generate_pdh()

    def generate_pdh(self) -> None:
        """PDH_GEN."""
        self.pdh_seed = self._drawn("PDH")
        self.pdh_api = self._api

    def _drawn(self, purpose: str) -> bytes:
        # As the fuses, so hosts of one name and seed share no key between product lines either.
        return self.random(f"{purpose} {self.line.name}", elliptic.SEED_BYTES)

    def forget(self) -> None:
        """PLATFORM_RESET."""
        self.oca_seed = self.pek_seed = self.pdh_seed = self.owner = b""

    def take_owner(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT. Raises AlreadyOwned, or CertificateError unless the OCA signed this platform's PEK."""
        if self.owner:
            raise AlreadyOwned
        signed, issuer = sev_certificate.parse(pek, KeyUsage.PEK), sev_certificate.parse(oca, KeyUsage.OCA)
        if signed.signed != self.pek_request().signed:
            raise CertificateError("PEK certificate: expected this platform's PEK")
        sev_certificate.check_signed(issuer, issuer)
        sev_certificate.check_signed(signed, issuer)
        # Or nobody would believe the chain that PDH_CERT_EXPORT shows from then on.
        sev_certificate.check_slots(issuer)
        self.owner = pek + oca

    # What others see.

    @property
    def _api(self) -> tuple[int, int]:
        major, minor, _ = self.firmware.current.version
        return major, minor

    @property
    def externally_owned(self) -> bool:
        """Whether an owner's OCA stands behind the PEK."""
        return bool(self.owner)

    @property
    def pdh_key(self) -> elliptic.PrivateKey:
        """What sessions are agreed with."""
        return elliptic.private_key(self.pdh_seed)

    def agreed(self, theirs: SevCertificate) -> bytes:
        """Z of the PDH and a key that was parsed as this firmware does. Raises CertificateError."""
        if self.checks_points:
            return elliptic.shared_secret(self.pdh_key, sev_certificate.public_key(theirs))
        x, y = sev_certificate.coordinates(theirs)
        return unchecked_secret(self.pdh_key.private_numbers().private_value, x, y)

    @property
    def pek_key(self) -> elliptic.PrivateKey:
        """What attestation reports are signed with."""
        return elliptic.private_key(self.pek_seed)

    def pek_request(self) -> SevCertificate:
        """PEK_CSR: the PEK before anybody signed it."""
        return sev_certificate.unsigned(self.pek_key.public_key(), KeyUsage.PEK, self.pek_api)

    def chain(self) -> PlatformChain:
        """PDH_CERT_EXPORT. The CEK carries no signature: AMD's comes from the key distribution service."""
        cek_key = self.chip.cek_key()
        oca, pek = self._owner_certificates()
        pdh = sev_certificate.unsigned(self.pdh_key.public_key(), KeyUsage.PDH, self.pdh_api)
        return PlatformChain(
            pdh=sev_certificate.sign(pdh, self.pek_key, KeyUsage.PEK),
            pek=sev_certificate.sign(pek, cek_key, KeyUsage.CEK),
            oca=oca,
            cek=sev_certificate.unsigned(cek_key.public_key(), KeyUsage.CEK, self._api),
        )

    @property
    def oca(self) -> SevCertificate:
        """The certificate of whoever owns the platform."""
        return self._owner_certificates()[0]

    def _owner_certificates(self) -> tuple[SevCertificate, SevCertificate]:
        """OCA, and the PEK as its owner signed it."""
        if self.owner:
            size = SevCertificate.SIZE
            signed = SevCertificate.parse(self.owner[:size])
            # An owner may have filled both slots; the chip's own signature takes the other one.
            algorithm, signature = signed.signature_by(KeyUsage.OCA)
            request = self.pek_request()
            pek = replace(
                request, first_usage=KeyUsage.OCA, first_algorithm=algorithm, first_signature=signature
            )
            return SevCertificate.parse(self.owner[size:]), pek
        key = elliptic.private_key(self.oca_seed)
        oca = sev_certificate.unsigned(key.public_key(), KeyUsage.OCA, self.pek_api)
        return (
            sev_certificate.sign(oca, key, KeyUsage.OCA),
            sev_certificate.sign(self.pek_request(), key, KeyUsage.OCA),
        )
