"""X.509 certificates and revocation lists as AMD issues them, read strictly (RFC 5280).

Every signature is RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes. We
read DER ourselves: AMD's VCEKs have serial 0, which libraries have begun to refuse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from psp.verifier import der

MOST_CERTIFICATE_BYTES = 1 << 13
MOST_CRL_BYTES = 1 << 18
_MOST_NAMES = 16
_MOST_EXTENSIONS = 32
_RSA, _EC, _P384 = "1.2.840.113549.1.1.1", "1.2.840.10045.2.1", "1.3.132.0.34"
_POINT_BYTES = 97
_SHA_384 = bytes.fromhex("300d06096086480165030402020500")
_PSS_DEFAULT_TRAILER = (
    bytes.fromhex("06092a864886f70d01010a3034a00f") + _SHA_384
    + bytes.fromhex("a11c301a06092a864886f70d010108") + _SHA_384 + bytes.fromhex("a203020130")
)  # fmt: skip
_PSS = _PSS_DEFAULT_TRAILER.replace(b"\x30\x34\xa0", b"\x30\x39\xa0") + bytes.fromhex("a303020101")
"""RFC 4055. AMD writes the trailer field, which DER would leave out; both are read."""


@dataclass(frozen=True, slots=True)
class Name:
    """A distinguished name: its bytes, and its attributes by object identifier."""

    der: bytes = field(repr=False)
    attributes: Mapping[str, str]

    @property
    def common_name(self) -> str:
        """Empty if it has none."""
        return self.attributes.get("2.5.4.3", "")


@dataclass(frozen=True, slots=True)
class RsaKey:
    """An RSA public key."""

    modulus: int
    exponent: int


@dataclass(frozen=True, slots=True)
class EcKey:
    """A P-384 public key: an uncompressed point that nobody has checked yet."""

    point: bytes


@dataclass(frozen=True, slots=True)
class Extension:
    """What is inside the octet string of an extension."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. Times are seconds since 1970; ``signed`` are the bytes that ``signature`` covers."""

    serial: int
    issuer: Name
    subject: Name
    not_before: int
    not_after: int
    key: RsaKey | EcKey
    key_digest: str
    """SHA-256 of the SubjectPublicKeyInfo, in hexadecimal."""
    extensions: Mapping[str, Extension]
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list of serial numbers that its issuer has taken back."""

    issuer: Name
    this_update: int
    next_update: int
    serials: frozenset[int]
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def parse_certificate(data: bytes) -> Certificate:
    """Raises DerError."""
    body, signed, algorithm, signature = _signed(data, MOST_CERTIFICATE_BYTES)
    if der.integer(der.only(body.take(der.context(0)).body, der.INTEGER)) != 2:
        raise der.DerError("expected a certificate of version 3")
    serial = der.integer(body.take(der.INTEGER))
    _check_algorithm(body.take(der.SEQUENCE), algorithm)
    issuer = _name(body.take(der.SEQUENCE))
    validity = body.take(der.SEQUENCE).inside()
    not_before, not_after = der.time(validity), der.time(validity)
    validity.finish()
    subject = _name(body.take(der.SEQUENCE))
    info = body.take(der.SEQUENCE)
    extensions = _extensions(body.take(der.context(3)))
    body.finish()
    digest = hashlib.sha256(info.whole).hexdigest()
    return Certificate(
        serial, issuer, subject, not_before, not_after, _key(info), digest, extensions, signed, signature
    )


def parse_revocation_list(data: bytes) -> RevocationList:
    """Raises DerError. What extensions say is not read: no serial becomes more valid by them."""
    body, signed, algorithm, signature = _signed(data, MOST_CRL_BYTES)
    version = body.optional(der.INTEGER)
    if version is not None and der.integer(version) != 1:
        raise der.DerError("expected a revocation list of version 1 or 2")
    _check_algorithm(body.take(der.SEQUENCE), algorithm)
    issuer = _name(body.take(der.SEQUENCE))
    this_update, next_update = der.time(body), der.time(body)
    serials = set()
    revoked = body.optional(der.SEQUENCE)
    if revoked is not None:
        entries = revoked.inside()
        while entries.next_tag() is not None:
            entry = entries.take(der.SEQUENCE).inside()
            serials.add(der.integer(entry.take(der.INTEGER)))
            der.time(entry)
            entry.optional(der.SEQUENCE)
            entry.finish()
    body.optional(der.context(0))
    body.finish()
    return RevocationList(issuer, this_update, next_update, frozenset(serials), signed, signature)


def _signed(data: bytes, most: int) -> tuple[der.Reader, bytes, der.Element, bytes]:
    """(reader of what is signed, its bytes, the signature's algorithm, signature)."""
    if len(data) > most:
        raise der.DerError(f"expected at most {most} bytes, got {len(data)}")
    outer = der.only(data, der.SEQUENCE).inside()
    body = outer.take(der.SEQUENCE)
    algorithm = outer.take(der.SEQUENCE)
    signature = der.bits(outer.take(der.BIT_STRING))
    outer.finish()
    return body.inside(), body.whole, algorithm, signature


def _check_algorithm(inside: der.Element, outside: der.Element) -> None:
    if inside.body not in {_PSS, _PSS_DEFAULT_TRAILER}:
        raise der.DerError("expected a signature by RSASSA-PSS with SHA-384 and a salt of 48 bytes")
    if inside.body != outside.body:  # RFC 5280, 4.1.1.2: only what is inside is signed.
        raise der.DerError("expected the same signature algorithm outside as inside")


def _name(found: der.Element) -> Name:
    attributes: dict[str, str] = {}
    names = found.inside()
    while names.next_tag() is not None:
        pair = der.only(names.take(der.SET).body, der.SEQUENCE).inside()
        kind = der.oid(pair.take(der.OID))
        value = pair.take(pair.next_tag() or der.UTF8_STRING)
        pair.finish()
        if kind in attributes or len(attributes) == _MOST_NAMES:
            raise der.DerError("expected a name with each attribute once")
        attributes[kind] = der.text(value)
    return Name(found.whole, attributes)


def _key(info: der.Element) -> RsaKey | EcKey:
    reader = info.inside()
    algorithm = reader.take(der.SEQUENCE).inside()
    kind = der.oid(algorithm.take(der.OID))
    if kind == _RSA:
        algorithm.take(der.NULL)
    elif kind != _EC or der.oid(algorithm.take(der.OID)) != _P384:
        raise der.DerError("expected a key of RSA or P-384")
    algorithm.finish()
    octets = der.bits(reader.take(der.BIT_STRING))
    reader.finish()
    if kind == _EC:
        if len(octets) != _POINT_BYTES or octets[0] != 4:
            raise der.DerError("expected an uncompressed point")
        return EcKey(octets)
    numbers = der.only(octets, der.SEQUENCE).inside()
    key = RsaKey(der.integer(numbers.take(der.INTEGER)), der.integer(numbers.take(der.INTEGER)))
    numbers.finish()
    return key


def _extensions(found: der.Element) -> Mapping[str, Extension]:
    extensions: dict[str, Extension] = {}
    entries = der.only(found.body, der.SEQUENCE).inside()
    while entries.next_tag() is not None:
        entry = entries.take(der.SEQUENCE).inside()
        kind = der.oid(entry.take(der.OID))
        critical = entry.optional(der.BOOLEAN)
        if critical is not None and not der.boolean(critical):
            raise der.DerError("expected a default left out")
        value = entry.take(der.OCTET_STRING).body
        entry.finish()
        if kind in extensions or len(extensions) == _MOST_EXTENSIONS:
            raise der.DerError("expected each extension once")
        extensions[kind] = Extension(critical is not None, value)
    return extensions
