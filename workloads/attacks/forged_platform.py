"""A platform that is none: with a chip's CEK, whoever has it signs a PEK and a PDH of its own (A-01, A-02).

A SEV guest owner that checks the chain opens a session with it, and proves to itself a launch that never was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from psp import elliptic, sev_certificate
from psp.launch_digest import launch_measure
from psp.secret_packet import PacketHeader
from psp.sev_certificate import CertificateError, KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain
from psp.sev_session import NONCE_BYTES, Session, SessionError, TransportKeys, counter_mode, open_session
from workloads.attacks.claims import WorkedOut
from workloads.attacks.firmware_call import Steps
from workloads.attacks.owner_operations import OpenSession, ShowMeasurement
from workloads.attacks.small_sev_guest import SmallSevGuest


@dataclass(frozen=True, slots=True)
class ForgedPlatform:
    """Its keys are of the attacker's choosing, but for the CEK."""

    cek: ec.EllipticCurvePrivateKey = field(repr=False)
    genuine: PlatformChain
    """Of the chip whose CEK it is: AMD signs no other."""

    def certificates(self) -> OpenSession:
        """PDH and chain as an owner would ask for them."""
        api = self.genuine.pek.api_major, self.genuine.pek.api_minor
        oca_key, pek_key, pdh_key = (_key(usage) for usage in (KeyUsage.OCA, KeyUsage.PEK, KeyUsage.PDH))
        oca = sev_certificate.unsigned(oca_key.public_key(), KeyUsage.OCA, api)
        pek = sev_certificate.unsigned(pek_key.public_key(), KeyUsage.PEK, api)
        pdh = sev_certificate.unsigned(pdh_key.public_key(), KeyUsage.PDH, api)
        chain = PlatformChain(
            pdh=sev_certificate.sign(pdh, pek_key, KeyUsage.PEK),
            pek=sev_certificate.sign(sev_certificate.sign(pek, oca_key, KeyUsage.OCA), self.cek, KeyUsage.CEK),
            oca=sev_certificate.sign(oca, oca_key, KeyUsage.OCA),
            cek=self.genuine.cek,
        )
        return OpenSession(chain.pdh.pack(), chain.pack())

    def agreed(self, pdh: bytes, session: bytes, policy: int) -> TransportKeys:
        """The keys that somebody with this PDH has sealed for the platform. Raises CertificateError, SessionError."""
        theirs = sev_certificate.public_key(sev_certificate.parse(pdh, KeyUsage.PDH))
        return open_session(elliptic.shared_secret(_key(KeyUsage.PDH), theirs), policy, Session.parse(session))

    def take_secret(self, firmware: tuple[int, int, int], digest: bytes) -> Steps:
        """Open an owner's session, make up the measurement that it wants to see, and unpack what it sends."""
        (session,) = yield (self.certificates(),)
        if not isinstance(session, bytes):
            return
        size, end = SevCertificate.SIZE, SevCertificate.SIZE + Session.SIZE
        policy = int.from_bytes(session[end:], "little")
        try:
            keys = self.agreed(session[:size], session[size:end], policy)
        except (CertificateError, SessionError):
            return
        nonce = bytes(NONCE_BYTES)
        measured = launch_measure(keys.tik, firmware, policy, digest, nonce) + nonce
        (packed,) = yield (ShowMeasurement(measured, firmware),)
        if isinstance(packed, bytes):
            header = PacketHeader.parse(packed)
            yield (WorkedOut(counter_mode(keys.tek, header.iv, packed[PacketHeader.SIZE :])),)


def impersonate(guest: SmallSevGuest, cek: ec.EllipticCurvePrivateKey, digest: bytes) -> Steps:
    """Be the guest's platform, with its chip's CEK, for a launch of this digest."""
    shown = yield from guest.platform()
    try:
        genuine = PlatformChain.parse(shown.pdh, shown.chain)
    except CertificateError:
        return
    yield from ForgedPlatform(cek, genuine).take_secret(guest.firmware, digest)


def _key(usage: KeyUsage) -> elliptic.PrivateKey:
    seed = hashlib.shake_128(b"an attacker's " + usage.name.encode()).digest(elliptic.SEED_BYTES)
    return elliptic.private_key(seed)
