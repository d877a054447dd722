"""AMD's signing keys in the SEV interface's format: ARK and ASK (SEV API, appendix C; AMD's published files).

All numbers are little-endian, signatures RSA-PSS with a salt as long as the hash:
SHA-256 for keys of 2048 bits (Naples), SHA-384 for 4096 bits (Rome and later).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from psp.sev_certificate import CertificateError, KeyAlgorithm, KeyUsage, SevCertificate

HEADER = struct.Struct("<I16s16sI16sII")
_VERSION = 1
HASHES: dict[int, hashes.HashAlgorithm] = {2048: hashes.SHA256(), 4096: hashes.SHA384()}
ALGORITHMS = {2048: KeyAlgorithm.RSA_SHA256, 4096: KeyAlgorithm.RSA_SHA384}
"""How a key of each size signs a CEK."""


@dataclass(frozen=True, slots=True)
class AmdCertificate:
    """An ARK or ASK; ``body`` are the bytes that its signature covers."""

    usage: KeyUsage
    key_id: bytes
    issuer_id: bytes
    bits: int
    exponent: int
    modulus: int
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def pack(self) -> bytes:
        """The file."""
        return self.body + self.signature


def parse(data: bytes, usage: KeyUsage) -> AmdCertificate:
    """An ARK or ASK from a file. Raises CertificateError for anything else."""
    name = f"{usage.name} certificate"
    if len(data) < HEADER.size:
        raise CertificateError(f"{name}: expected at least {HEADER.size} bytes, got {len(data)}")
    version, key_id, issuer_id, found, _, exponent_bits, bits = HEADER.unpack_from(data)
    if version != _VERSION:
        raise CertificateError(f"{name}: expected version {_VERSION}, got {version}")
    if found != usage:
        raise CertificateError(f"{name}: expected usage {usage:#x}, got {found:#x}")
    if bits not in HASHES or exponent_bits != bits:
        raise CertificateError(f"{name}: expected a key of 2048 or 4096 bits, got {bits} and {exponent_bits}")
    size = bits // 8
    if len(data) != HEADER.size + 3 * size:
        raise CertificateError(f"{name}: expected {HEADER.size + 3 * size} bytes, got {len(data)}")
    body, signature = data[:-size], data[-size:]
    exponent = int.from_bytes(body[HEADER.size : HEADER.size + size], "little")
    modulus = int.from_bytes(body[HEADER.size + size :], "little")
    certificate = AmdCertificate(usage, key_id, issuer_id, bits, exponent, modulus, body, signature)
    _public_key(certificate)
    return certificate


def check_signed(certificate: AmdCertificate, issuer: AmdCertificate) -> None:
    """Raise CertificateError unless ``issuer``'s key signed the certificate."""
    if certificate.issuer_id != issuer.key_id:
        raise CertificateError(f"{certificate.usage.name} certificate: expected the key id of {issuer.usage.name}")
    _check(certificate.usage.name, issuer, certificate.signature, certificate.body)


def check_cek(cek: SevCertificate, ask: AmdCertificate) -> None:
    """Raise CertificateError unless the ASK signed a platform's CEK."""
    algorithm, signature = cek.signature_by(KeyUsage.ASK)
    size = ask.bits // 8
    if algorithm != ALGORITHMS[ask.bits] or any(signature[size:]):
        raise CertificateError(f"CEK certificate: expected a signature of {ask.bits} bits by the ASK")
    _check("CEK", ask, signature[:size], cek.signed)


def _public_key(certificate: AmdCertificate) -> rsa.RSAPublicKey:
    try:
        return rsa.RSAPublicNumbers(certificate.exponent, certificate.modulus).public_key()
    except ValueError as error:
        raise CertificateError(f"{certificate.usage.name} certificate: expected an RSA key ({error})") from None


def _check(name: str, issuer: AmdCertificate, signature: bytes, message: bytes) -> None:
    hashing = HASHES[issuer.bits]
    scheme = padding.PSS(padding.MGF1(hashing), hashing.digest_size)
    try:
        _public_key(issuer).verify(signature[::-1], message, scheme, hashing)
    except InvalidSignature:
        raise CertificateError(
            f"{name} certificate: expected a signature by {issuer.usage.name} that verifies"
        ) from None
