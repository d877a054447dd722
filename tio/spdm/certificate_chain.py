"""Certificate chains: the structure in a slot, and what makes one trustworthy (DSP0274, 10.6).

A chain is trusted if its root is one that the verifier pinned, every certificate is signed by an authority,
the one before it, and valid at the verifier's time, and the leaf holds a key for signatures of the negotiated kind.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ObjectIdentifier

from tio.spdm.algorithms import BaseAsym, HashAlgorithm
from tio.spdm.faults import PeerUntrusted
from tio.spdm.signing import PublicKey, fits

DEVICE_INFO = ObjectIdentifier("1.3.6.1.4.1.412.274.1")
HARDWARE_IDENTITY = ObjectIdentifier("1.3.6.1.4.1.412.274.2")
RESPONDER_AUTHENTICATION = ObjectIdentifier("1.3.6.1.4.1.412.274.3")
REQUESTER_AUTHENTICATION = ObjectIdentifier("1.3.6.1.4.1.412.274.4")
SPDM_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.412.274.6")

LONGEST_CHAIN_BYTES = 0xFFFF
_PROCESSED = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
"""Extensions whose meaning is minded here; any other that is critical refuses its certificate."""
_HEAD_BYTES = 4
_MOST_CERTIFICATES = 16
_SEQUENCE = 0x30


def pack_chain(algorithm: HashAlgorithm, certificates: Iterable[bytes]) -> bytes:
    """The structure of a slot from DER certificates, root first. Raises ValueError for one too long."""
    listed = tuple(certificates)
    body = algorithm.digest(listed[0]) + b"".join(listed)
    size = _HEAD_BYTES + len(body)
    if size > LONGEST_CHAIN_BYTES:
        raise ValueError(f"certificate chain: expected at most {LONGEST_CHAIN_BYTES} bytes, found {size}")
    return size.to_bytes(2, "little") + bytes(2) + body


@dataclass(frozen=True, slots=True)
class CertificateChain:
    """A chain as it was received: ``raw`` is the whole structure."""

    raw: bytes
    root_hash: bytes
    certificates: tuple[bytes, ...]
    """DER, root first; the root itself may be missing."""

    @property
    def leaf(self) -> x509.Certificate:
        """The device's own certificate. Raises PeerUntrusted for what is none."""
        return _load(self.certificates[-1])


def parse_chain(raw: bytes, algorithm: HashAlgorithm) -> CertificateChain:
    """The parts of a structure. Raises PeerUntrusted where it is none."""
    start = _HEAD_BYTES + algorithm.size_bytes
    if len(raw) <= start or int.from_bytes(raw[:2], "little") != len(raw):
        raise PeerUntrusted(f"certificate chain: expected its own length, found {len(raw)} bytes")
    certificates: list[bytes] = []
    at = start
    while at < len(raw):
        end = at + _der_bytes(raw, at)
        if end > len(raw) or len(certificates) == _MOST_CERTIFICATES:
            raise PeerUntrusted(f"certificate chain: expected whole certificates, at most {_MOST_CERTIFICATES}")
        certificates.append(raw[at:end])
        at = end
    return CertificateChain(raw, raw[_HEAD_BYTES:start], tuple(certificates))


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """Roots that a verifier pinned, in DER, and the time by which it judges."""

    roots: tuple[bytes, ...] | None = None
    """None believes the root that a chain brings itself."""
    now: dt.datetime | None = None
    """With a time zone. None judges no validity: whoever has a clock hands in what it shows."""


def leaf_key(chain: CertificateChain, anchors: TrustAnchors, algorithm: HashAlgorithm, asym: BaseAsym) -> PublicKey:
    """The key that a chain vouches for.

    Raises PeerUntrusted, and says which certificate does not hold and why. Source: RFC 5280, 6.1, and DSP0274, 10.6.
    """
    if not chain.certificates:
        raise PeerUntrusted("certificate chain: expected a certificate, found none")
    certificates = [_load(der) for der in chain.certificates]
    first = certificates[0]
    if anchors.roots is None:
        root = first
    else:
        pinned = {algorithm.digest(der): der for der in anchors.roots}.get(chain.root_hash)
        if pinned is None:
            raise PeerUntrusted("certificate chain: expected a root that is pinned")
        root = _load(pinned)
    if algorithm.digest(chain.certificates[0]) == chain.root_hash:
        below = certificates[1:]
        if anchors.roots is None:
            _signed_by(first, first, 0)
    else:
        below = certificates
    issuer = root
    for depth, certificate in enumerate(below, start=1):
        _may_issue(issuer, depth - 1, len(below) - depth)
        _signed_by(certificate, issuer, depth)
        issuer = certificate
    for depth, certificate in enumerate((root, *below)):
        _valid_now(certificate, anchors.now, depth)
        _understood(certificate, depth)
    return _checked_leaf(issuer, asym, len(below))


def _checked_leaf(leaf: x509.Certificate, asym: BaseAsym, depth: int) -> PublicKey:
    """The leaf's key, if the certificate is one for signing and of the negotiated algorithm."""
    key = leaf.public_key()
    if not fits(key, asym):
        raise PeerUntrusted(f"certificate {depth}: expected a key for {asym.value.name}")
    if not any(isinstance(one.value, x509.KeyUsage) and one.value.digital_signature for one in leaf.extensions):
        raise PeerUntrusted(f"certificate {depth}: expected a key for digital signatures")
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise PeerUntrusted(f"certificate {depth}: expected a leaf, found an authority")
        # SPDM's own usages are optional, also beside critical ones of others (DMTF's own leaves name serverAuth); who
        # names one must name the responder's.
        usages = set(value) if isinstance(value, x509.ExtendedKeyUsage) else set()
        if usages & {REQUESTER_AUTHENTICATION, RESPONDER_AUTHENTICATION} == {REQUESTER_AUTHENTICATION}:
            raise PeerUntrusted(f"certificate {depth}: expected a responder's key")
    return key  # type: ignore[return-value]  # fits() let only these types pass


def _may_issue(issuer: x509.Certificate, depth: int, authorities: int) -> None:
    """Whether a certificate may have issued the next; so many more authorities follow below it."""
    said = {type(one.value): one.value for one in issuer.extensions}
    constraints, uses = said.get(x509.BasicConstraints), said.get(x509.KeyUsage)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise PeerUntrusted(f"certificate {depth}: expected an authority")
    if isinstance(uses, x509.KeyUsage) and not uses.key_cert_sign:
        raise PeerUntrusted(f"certificate {depth}: expected a key for certificates")
    if constraints.path_length is not None and authorities > constraints.path_length:
        raise PeerUntrusted(
            f"certificate {depth}: expected at most {constraints.path_length} authorities below it, found {authorities}"
        )


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate, depth: int) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise PeerUntrusted(f"certificate {depth}: expected the signature of the one above it") from None


def _valid_now(certificate: x509.Certificate, now: dt.datetime | None, depth: int) -> None:
    if now is not None and not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise PeerUntrusted(f"certificate {depth}: expected to be valid at {now:%Y-%m-%d}")


def _understood(certificate: x509.Certificate, depth: int) -> None:
    """RFC 5280, 6.1.4 (o) and 6.1.5 (f)."""
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _PROCESSED):
            raise PeerUntrusted(f"certificate {depth}: expected no critical extension {extension.oid.dotted_string}")


def _load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Read what is read later: the library parses extensions and keys only when they are asked for.
        certificate.extensions, certificate.public_key()
    except Exception as error:  # noqa: BLE001 - a parser of hostile bytes has many words for no
        raise PeerUntrusted(f"certificate: expected X.509, found {type(error).__name__}") from None
    return certificate


def _der_bytes(raw: bytes, at: int) -> int:
    """How long the DER sequence at a place is, with its head."""
    if raw[at] != _SEQUENCE or at + 2 > len(raw):
        raise PeerUntrusted(f"certificate: expected a DER sequence at {at}")
    short = raw[at + 1]
    if short < 0x80:
        return 2 + short
    width = short & 0x7F
    if not 1 <= width <= 4 or at + 2 + width > len(raw):
        raise PeerUntrusted(f"certificate: expected a DER length at {at}")
    return 2 + width + int.from_bytes(raw[at + 2 : at + 2 + width], "big")
