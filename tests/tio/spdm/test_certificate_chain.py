"""Which chains a verifier believes: RFC 5280's path validation, and what SPDM asks of a leaf (DSP0274, 10.6)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tio.device_identity import CardKind, device_identity
from tio.spdm import PeerUntrusted
from tio.spdm.algorithms import BaseAsym, BaseHash
from tio.spdm.certificate_chain import (
    REQUESTER_AUTHENTICATION,
    RESPONDER_AUTHENTICATION,
    TrustAnchors,
    leaf_key,
    pack_chain,
    parse_chain,
)

SHA_384 = BaseHash.SHA_384.value
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
KEYS = [ec.derive_private_key(number, ec.SECP384R1()) for number in (11, 12, 13, 14)]
LEAF = 3
_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)


def usage(**bits: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**dict.fromkeys(_USES, False) | bits)


def certificate(depth: int, **other: Any) -> bytes:
    """One of root (0), two authorities and leaf (3): a proper one, but for what is ``other``."""
    by = max(0, depth - 1)
    proper = {
        "ca": depth < LEAF, "most": None, "uses": usage(key_cert_sign=True) if depth < LEAF else
        usage(digital_signature=True), "from": NOW - DAY, "until": NOW + DAY, "extended": None,
        "more": None, "critical": True,
    }  # fmt: skip
    given = proper | other
    subject, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"number {one}")]) for one in (depth, by)
    )
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(KEYS[depth].public_key())
        .serial_number(1 + depth).not_valid_before(given["from"]).not_valid_after(given["until"])
    )  # fmt: skip
    if given["ca"] is not None:
        builder = builder.add_extension(x509.BasicConstraints(given["ca"], given["most"]), critical=True)
    if given["uses"] is not None:
        builder = builder.add_extension(given["uses"], critical=True)
    if given["extended"] is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([given["extended"]]), critical=True)
    if given["more"] is not None:
        builder = builder.add_extension(given["more"], critical=given["critical"])
    return builder.sign(KEYS[by], hashes.SHA384()).public_bytes(Encoding.DER)


def judged(depth: int | None = None, now: dt.datetime | None = NOW, *, pinned: bool = True, **other: Any) -> Any:
    """The key that a chain of four vouches for, whose certificate at ``depth`` is another."""
    certificates = [certificate(one, **other if one == depth else {}) for one in range(LEAF + 1)]
    chain = parse_chain(pack_chain(SHA_384, certificates), SHA_384)
    roots = (certificates[0],) if pinned else None
    return leaf_key(chain, TrustAnchors(roots, now), SHA_384, BaseAsym.ECDSA_P384)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_proper_chain_vouches_for_its_leafs_key(pinned: bool) -> None:
    assert judged(pinned=pinned) == KEYS[LEAF].public_key()


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("depth", range(LEAF + 1))
def test_each_certificate_must_be_valid_at_the_time(depth: int, pinned: bool) -> None:
    for wrong in ({"until": NOW - dt.timedelta(seconds=1)}, {"from": NOW + dt.timedelta(seconds=1)}):
        with pytest.raises(PeerUntrusted, match=f"certificate {depth}: expected to be valid at 2026-06-01"):
            judged(depth, pinned=pinned, **wrong)
        # Who names no time judges none: what a verifier without a clock can do.
        assert judged(depth, None, pinned=pinned, **wrong) == KEYS[LEAF].public_key()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("ca", [False, None])
def test_only_authorities_issue(depth: int, ca: bool | None) -> None:
    with pytest.raises(PeerUntrusted, match=f"certificate {depth}: expected an authority"):
        judged(depth, ca=ca)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_authority_whose_key_is_not_for_certificates_issues_none(depth: int) -> None:
    """RFC 5280, 6.1.4 (n): where key usage is there, keyCertSign must be; an authority of old has none."""
    with pytest.raises(PeerUntrusted, match=f"certificate {depth}: expected a key for certificates"):
        judged(depth, uses=usage(digital_signature=True, crl_sign=True))
    assert judged(depth, uses=None) == KEYS[LEAF].public_key()


@pytest.mark.parametrize(("depth", "most", "holds"), [(0, 1, False), (0, 2, True), (1, 0, False), (1, 1, True)])
def test_no_more_authorities_follow_than_one_allows(depth: int, most: int, holds: bool) -> None:
    """RFC 5280, 6.1.4 (l): how many there are below it, without the leaf."""
    if holds:
        assert judged(depth, most=most) == KEYS[LEAF].public_key()
        return
    with pytest.raises(PeerUntrusted, match=f"certificate {depth}: expected at most {most} authorities below it"):
        judged(depth, most=most)


@pytest.mark.parametrize("uses", [None, usage(key_cert_sign=True), usage(key_agreement=True)])
def test_a_leafs_key_is_one_for_signatures_and_says_so(uses: x509.KeyUsage | None) -> None:
    with pytest.raises(PeerUntrusted, match="certificate 3: expected a key for digital signatures"):
        judged(LEAF, uses=uses)


def test_a_leaf_is_no_authority_and_no_requester() -> None:
    with pytest.raises(PeerUntrusted, match="certificate 3: expected a leaf"):
        judged(LEAF, ca=True)
    with pytest.raises(PeerUntrusted, match="certificate 3: expected a responder's key"):
        judged(LEAF, extended=REQUESTER_AUTHENTICATION)


@pytest.mark.parametrize("critical", [True, False])
@pytest.mark.parametrize("depth", range(LEAF + 1))
@pytest.mark.parametrize(
    "more",
    [
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\0"),
        x509.NameConstraints(None, [x509.DirectoryName(x509.Name([]))]),
    ],
    ids=["unknown", "name constraints"],
)
def test_what_is_critical_and_not_understood_refuses_its_certificate(
    more: x509.ExtensionType, depth: int, critical: bool
) -> None:
    if not critical:
        assert judged(depth, more=more, critical=False)
        return
    with pytest.raises(PeerUntrusted, match=f"certificate {depth}: expected no critical extension"):
        judged(depth, more=more)


def test_a_leaf_may_name_usages_of_others() -> None:
    assert judged(LEAF, extended=RESPONDER_AUTHENTICATION)
    assert judged(LEAF, extended=ExtendedKeyUsageOID.SERVER_AUTH)


@pytest.mark.parametrize("kind", CardKind)
def test_cards_of_the_laboratory_are_proper(kind: CardKind) -> None:
    identity = device_identity(kind, "0001", 1)
    chain = parse_chain(pack_chain(SHA_384, identity.certificates), SHA_384)
    anchors = TrustAnchors((identity.root,), NOW)
    assert leaf_key(chain, anchors, SHA_384, BaseAsym.ECDSA_P384) == identity.key.public_key()
