"""From a trusted root to the key that signed the report: names, profiles, signatures, time, revocation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from psp.verifier import der
from psp.verifier.amd_extensions import Endorsement, read_endorsement
from psp.verifier.certificate import Certificate, EcKey, Extension, Name, RevocationList, RsaKey
from psp.verifier.product_line import LINES, ProductLine
from psp.verifier.reasons import Reason, Trail

_AMD_NAMES = {
    "2.5.4.11": "Engineering",
    "2.5.4.6": "US",
    "2.5.4.7": "Santa Clara",
    "2.5.4.8": "CA",
    "2.5.4.10": "Advanced Micro Devices",
}
_COMMON_NAME = "2.5.4.3"
_RSA_BITS = 4096
_EXPONENT = 65537
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384.digest_size)

_KEY_USAGE, _CONSTRAINTS, _CRL_LOCATIONS = "2.5.29.15", "2.5.29.19", "2.5.29.31"
_SUBJECT_KEY_ID, _ISSUER_KEY_ID = "2.5.29.14", "2.5.29.35"
_CERTIFICATES, _LISTS = 0x04, 0x02
"""Bits of a key usage: may sign certificates, may sign revocation lists."""
_ROOT_CONSTRAINTS = bytes.fromhex("30030101ff")
_ISSUER_CONSTRAINTS = bytes.fromhex("30060101ff020100")
"""A CA, and one below which no other may be."""
_PROFILED = {_KEY_USAGE, _CONSTRAINTS, _CRL_LOCATIONS}
_MAY = {_SUBJECT_KEY_ID, _ISSUER_KEY_ID}
_REVOCATION = (
    Reason.CRL_MISSING, Reason.CRL_ISSUER, Reason.CRL_SIGNATURE, Reason.CRL_NOT_YET_VALID, Reason.CRL_EXPIRED,
    Reason.ASK_REVOKED, Reason.LEAF_REVOKED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Certificates:
    """The chain, root first, and the revocation lists that were given."""

    ark: Certificate
    ask: Certificate
    leaf: Certificate
    crls: tuple[RevocationList, ...]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """The key that a chain ends in, and what its certificate says about its chip."""

    line: ProductLine
    endorsement: Endorsement
    public_key: ec.EllipticCurvePublicKey


def check_chain(
    chain: Certificates, roots: Mapping[str, frozenset[str]], now: int, trail: Trail, *, crl_demanded: bool
) -> TrustedKey:
    """The key to believe. ``roots`` maps a line to the digests of the keys trusted as its root. Raises Rejected."""
    line = _check_root(chain.ark, roots, now, trail)
    vlek = _check_issuer(chain, line, now, trail)
    key = _check_leaf(chain, line, now, trail, vlek=vlek)
    _check_revocation(chain, now, trail, demanded=crl_demanded)
    return key


def _check_root(ark: Certificate, roots: Mapping[str, frozenset[str]], now: int, trail: Trail) -> ProductLine:
    name = ark.subject.common_name
    line = LINES.get(name.removeprefix("ARK-"))
    trail.demand(Reason.UNKNOWN_PRODUCT, line and name.startswith("ARK-"), f'"{name}"')
    assert line is not None
    trail.demand(Reason.ARK_KEY, _usable(ark))
    # Nothing is worth checking with a key that anybody may have made.
    trusted = ark.key_digest in roots.get(line.name, frozenset())
    trail.demand(Reason.ROOT_UNKNOWN, trusted, f"SHA-256 {ark.key_digest}")
    named = _amd_names(ark.subject, name) and ark.issuer.der == ark.subject.der
    trail.demand(Reason.ARK_NAMES, named, f'"{name}", issued by "{ark.issuer.common_name}"')
    trail.demand(Reason.ARK_PROFILE, _profile(ark, _CERTIFICATES | _LISTS, _ROOT_CONSTRAINTS))
    trail.demand(Reason.ARK_SIGNATURE, _signed_by(ark.signature, ark.signed, ark))
    trail.demand(Reason.ARK_NOT_YET_VALID, ark.not_before <= now)
    trail.demand(Reason.ARK_EXPIRED, now <= ark.not_after)
    return line


def _check_issuer(chain: Certificates, line: ProductLine, now: int, trail: Trail) -> bool:
    """Whether it issues VLEKs, not VCEKs."""
    ask, ark = chain.ask, chain.ark
    name = ask.subject.common_name
    kinds = {f"SEV-{line.name}": False, f"SEV-VLEK-{line.name}": True}
    trail.demand(Reason.ASK_NAMES, name in kinds and _amd_names(ask.subject, name), f'"{name}"')
    trail.demand(Reason.ASK_ISSUER, ask.issuer.der == ark.subject.der, f'"{ask.issuer.common_name}"')
    trail.demand(Reason.ASK_KEY, _usable(ask))
    trail.demand(Reason.ASK_PROFILE, _profile(ask, _CERTIFICATES, _ISSUER_CONSTRAINTS))
    trail.demand(Reason.ASK_SIGNATURE, _signed_by(ask.signature, ask.signed, ark))
    trail.demand(Reason.ASK_NOT_YET_VALID, ask.not_before <= now)
    trail.demand(Reason.ASK_EXPIRED, now <= ask.not_after)
    return kinds[name]


def _check_leaf(chain: Certificates, line: ProductLine, now: int, trail: Trail, *, vlek: bool) -> TrustedKey:
    leaf, ask = chain.leaf, chain.ask
    name = "SEV-VLEK" if vlek else "SEV-VCEK"
    named = leaf.subject.common_name == name and _amd_names(leaf.subject, name)
    trail.demand(Reason.LEAF_NAMES, named, f'"{leaf.subject.common_name}"')
    trail.demand(Reason.LEAF_ISSUER, leaf.issuer.der == ask.subject.der, f'"{leaf.issuer.common_name}"')
    trail.demand(Reason.LEAF_SIGNATURE, _signed_by(leaf.signature, leaf.signed, ask))
    key = _point(leaf)
    trail.demand(Reason.LEAF_KEY, key)
    assert key is not None
    try:
        endorsement, problem = read_endorsement(leaf.extensions, line, vlek=vlek), ""
    except der.DerError as error:
        endorsement, problem = None, str(error)
    trail.demand(Reason.LEAF_PROFILE, endorsement, problem)
    assert endorsement is not None
    product = endorsement.product.partition("-")[0]
    trail.demand(Reason.LEAF_PRODUCT, product == line.name or product in line.models, f'"{endorsement.product}"')
    trail.demand(Reason.LEAF_NOT_YET_VALID, leaf.not_before <= now)
    trail.demand(Reason.LEAF_EXPIRED, now <= leaf.not_after)
    return TrustedKey(line, endorsement, key)


def _check_revocation(chain: Certificates, now: int, trail: Trail, *, demanded: bool) -> None:
    crls, ark = chain.crls, chain.ark
    if not crls and not demanded:
        for reason in _REVOCATION:
            trail.leave_out(reason)
        return
    trail.demand(Reason.CRL_MISSING, crls)
    stranger = next((one.issuer for one in crls if one.issuer.der != ark.subject.der), None)
    trail.demand(Reason.CRL_ISSUER, stranger is None, f'"{stranger.common_name}"' if stranger else "")
    trail.demand(Reason.CRL_SIGNATURE, all(_signed_by(one.signature, one.signed, ark) for one in crls))
    begun = [one for one in crls if one.this_update <= now]
    trail.demand(Reason.CRL_NOT_YET_VALID, begun)
    trail.demand(Reason.CRL_EXPIRED, any(now <= one.next_update for one in begun))
    # What its root has once taken back stays so, whichever list says it.
    serials = frozenset().union(*(one.serials for one in crls))
    trail.demand(Reason.ASK_REVOKED, chain.ask.serial not in serials, chain.ask.serial)
    # A VCEK's serial is 0: a list with 0 on it takes back all of a product.
    trail.demand(Reason.LEAF_REVOKED, chain.leaf.serial not in serials, chain.leaf.serial)


def _amd_names(name: Name, common_name: str) -> bool:
    return name.attributes == _AMD_NAMES | {_COMMON_NAME: common_name}


def _usable(certificate: Certificate) -> bool:
    key = certificate.key
    if not isinstance(key, RsaKey):
        return False
    return key.modulus.bit_length() == _RSA_BITS and key.modulus % 2 == 1 and key.exponent == _EXPONENT


def _profile(certificate: Certificate, usage: int, constraints: bytes) -> bool:
    extensions = certificate.extensions
    if not _PROFILED <= extensions.keys() <= _PROFILED | _MAY:
        return False
    limits = extensions[_CONSTRAINTS]
    allowed = _usage(extensions[_KEY_USAGE]) == usage and limits == Extension(critical=True, value=constraints)
    return allowed and _one_location(extensions[_CRL_LOCATIONS].value)


def _usage(extension: Extension) -> int | None:
    """The bits of a critical key usage of one byte. AMD's ASKs count one unused bit too few, so none are counted."""
    value = extension.value
    return value[3] if extension.critical and len(value) == 4 and value[:2] == b"\x03\x02" and value[2] < 8 else None


def _one_location(value: bytes) -> bool:
    """Whether the extension names one place, by URI (RFC 5280, 4.2.1.13)."""
    try:
        point = der.only(der.only(value, der.SEQUENCE).body, der.SEQUENCE)
        place = der.only(der.only(point.body, der.context(0)).body, der.context(0))
        der.only(place.body, der.context(6, constructed=False)).body.decode("ascii")
    except ValueError:
        return False
    return True


def _signed_by(signature: bytes, signed: bytes, issuer: Certificate) -> bool:
    key = issuer.key
    assert isinstance(key, RsaKey)
    try:
        public = rsa.RSAPublicNumbers(key.exponent, key.modulus).public_key()
        public.verify(signature, signed, _PSS, hashes.SHA384())
    except (InvalidSignature, ValueError):
        return False
    return True


def _point(leaf: Certificate) -> ec.EllipticCurvePublicKey | None:
    if not isinstance(leaf.key, EcKey):
        return None
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), leaf.key.point)
    except ValueError:
        return None
