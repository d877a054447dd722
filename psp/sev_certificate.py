"""Certificates of the SEV interface: OCA, CEK, PEK, PDH and a guest owner's DH key (SEV API, appendix C).

Whoever reads one of somebody else parses it here; what is wrong is a
``CertificateError`` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar

from cryptography.hazmat.primitives import hashes

from psp import elliptic
from psp.byte_layout import ByteLayout, at

SIGNED_BYTES = 0x414
_VERSION = 1


class CertificateError(ValueError):
    """A certificate that is not what it should be; one line that names certificate and field."""


class KeyUsage(IntEnum):
    """What a key is for."""

    ARK = 0x0000
    ASK = 0x0013
    INVALID = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


class KeyAlgorithm(IntEnum):
    """How a key signs or agrees."""

    NONE = 0
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103


ECDSA_HASHES: Mapping[int, hashes.HashAlgorithm] = {
    KeyAlgorithm.ECDSA_SHA256: hashes.SHA256(),
    KeyAlgorithm.ECDSA_SHA384: hashes.SHA384(),
}
_SIGNING = frozenset(ECDSA_HASHES)
_AGREEING = frozenset({KeyAlgorithm.ECDH_SHA256, KeyAlgorithm.ECDH_SHA384})
_ALGORITHMS = {
    KeyUsage.OCA: _SIGNING,
    KeyUsage.PEK: _SIGNING,
    KeyUsage.PDH: _AGREEING,
    KeyUsage.CEK: _SIGNING,
}


_SIGNERS = {
    KeyUsage.OCA: (KeyUsage.OCA,),
    KeyUsage.PEK: (KeyUsage.OCA, KeyUsage.CEK),
    KeyUsage.PDH: (KeyUsage.PEK,),
    KeyUsage.CEK: (KeyUsage.ASK,),
}
"""Whose signatures a platform's certificates carry."""


@dataclass(frozen=True, slots=True)
class SevCertificate(ByteLayout):
    """One certificate with its two signature slots; an empty slot has usage INVALID."""

    SIZE: ClassVar[int] = 0x824
    version: int = at(0x000, 4, _VERSION)
    api_major: int = at(0x004, 1)
    api_minor: int = at(0x005, 1)
    reserved: int = at(0x006, 2)
    usage: int = at(0x008, 4)
    algorithm: int = at(0x00C, 4)
    public_key: bytes = at(0x010, elliptic.PUBLIC_KEY_BYTES, bytes(elliptic.PUBLIC_KEY_BYTES))
    first_usage: int = at(0x414, 4, KeyUsage.INVALID)
    first_algorithm: int = at(0x418, 4)
    first_signature: bytes = at(0x41C, elliptic.SIGNATURE_BYTES, bytes(elliptic.SIGNATURE_BYTES))
    second_usage: int = at(0x61C, 4, KeyUsage.INVALID)
    second_algorithm: int = at(0x620, 4)
    second_signature: bytes = at(0x624, elliptic.SIGNATURE_BYTES, bytes(elliptic.SIGNATURE_BYTES))

    @property
    def signed(self) -> bytes:
        """What signatures cover."""
        return self.pack()[:SIGNED_BYTES]

    def slots(self) -> tuple[tuple[int, int, bytes], ...]:
        """(usage of the signer, algorithm, signature) of both slots, whose order is free."""
        return (
            (self.first_usage, self.first_algorithm, self.first_signature),
            (self.second_usage, self.second_algorithm, self.second_signature),
        )

    def signature_by(self, usage: KeyUsage) -> tuple[int, bytes]:
        """Algorithm and bytes of the signature by a key of this usage. Raises CertificateError if there is not one."""
        found = [(algorithm, signature) for by, algorithm, signature in self.slots() if by == usage]
        if len(found) != 1:
            raise CertificateError(f"{self.name} certificate: expected one signature by {usage.name}, got {len(found)}")
        return found[0]

    @property
    def name(self) -> str:
        """What the certificate says it is, for people."""
        return KeyUsage(self.usage).name if self.usage in KeyUsage._value2member_map_ else f"usage {self.usage:#x}"


def unsigned(key: elliptic.PublicKey, usage: KeyUsage, api: tuple[int, int]) -> SevCertificate:
    """A new certificate with both slots empty."""
    algorithm = KeyAlgorithm.ECDH_SHA256 if usage is KeyUsage.PDH else KeyAlgorithm.ECDSA_SHA256
    return SevCertificate(
        api_major=api[0], api_minor=api[1], usage=usage, algorithm=algorithm, public_key=elliptic.pack_public_key(key)
    )


def sign(certificate: SevCertificate, key: elliptic.PrivateKey, usage: KeyUsage) -> SevCertificate:
    """The certificate with a signature in its first empty slot."""
    algorithm = KeyAlgorithm.ECDSA_SHA256
    signature = elliptic.sign(key, certificate.signed, ECDSA_HASHES[algorithm])
    if certificate.first_usage == KeyUsage.INVALID:
        return replace(certificate, first_usage=usage, first_algorithm=algorithm, first_signature=signature)
    return replace(certificate, second_usage=usage, second_algorithm=algorithm, second_signature=signature)


def parse(data: bytes, usage: KeyUsage, *, checks_point: bool = True) -> SevCertificate:
    """A certificate of a P-384 key for a usage. Raises CertificateError for anything else, length included.

    Without ``checks_point`` its coordinates need be no point of the curve.
    """
    if len(data) != SevCertificate.SIZE:
        raise CertificateError(f"{usage.name} certificate: expected {SevCertificate.SIZE} bytes, got {len(data)}")
    certificate = SevCertificate.parse(data)
    if certificate.version != _VERSION:
        raise CertificateError(f"{usage.name} certificate: expected version {_VERSION}, got {certificate.version}")
    if certificate.usage != usage:
        raise CertificateError(f"{usage.name} certificate: expected usage {usage:#x}, got {certificate.usage:#x}")
    if certificate.algorithm not in _ALGORITHMS[usage]:
        expected = " or ".join(hex(one) for one in sorted(_ALGORITHMS[usage]))
        raise CertificateError(
            f"{usage.name} certificate: expected algorithm {expected}, got {certificate.algorithm:#x}"
        )
    if checks_point:
        public_key(certificate)
    else:
        coordinates(certificate)
    return certificate


def check_slots(certificate: SevCertificate) -> None:
    """Raise CertificateError unless each slot is empty, all of it, or has a signature of who signs such certificates.

    No signature covers the slots, so what lies there besides is somebody else's.
    """
    usage = KeyUsage(certificate.usage)
    for name, (by, algorithm, signature) in zip(("first", "second"), certificate.slots(), strict=True):
        if by == KeyUsage.INVALID:
            if algorithm or any(signature):
                raise CertificateError(f"{usage.name} certificate: expected nothing in the empty {name} signature slot")
        elif by not in _SIGNERS[usage]:
            expected = " or ".join(one.name for one in _SIGNERS[usage])
            raise CertificateError(
                f"{usage.name} certificate: expected a {name} signature by {expected}, got one by usage {by:#x}"
            )


def coordinates(certificate: SevCertificate) -> tuple[int, int]:
    """The coordinates of a certificate's key, on the curve or not. Raises CertificateError if there are none."""
    try:
        return elliptic.coordinates(certificate.public_key)
    except ValueError as error:
        raise CertificateError(f"{certificate.name} certificate: {error}") from None


def public_key(certificate: SevCertificate) -> elliptic.PublicKey:
    """The certificate's key. Raises CertificateError if it is none."""
    try:
        return elliptic.parse_public_key(certificate.public_key)
    except ValueError as error:
        raise CertificateError(f"{certificate.name} certificate: {error}") from None


def check_signed(certificate: SevCertificate, issuer: SevCertificate) -> None:
    """Raise CertificateError unless ``issuer``'s key signed the certificate, in either slot."""
    usage = KeyUsage(issuer.usage)
    algorithm, signature = certificate.signature_by(usage)
    hashing = ECDSA_HASHES.get(algorithm)
    if hashing is None or not elliptic.verifies(public_key(issuer), signature, certificate.signed, hashing):
        raise CertificateError(f"{certificate.name} certificate: expected a signature by {usage.name} that verifies")
