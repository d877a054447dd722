"""The laboratory's stand-in for AMD: an ARK and an ASK in AMD's format that sign the CEKs of emulated chips.

Their private keys are a function of this file. They protect nothing, and no
real platform's certificates verify against them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from psp import amd_certificate
from psp.amd_certificate import HASHES, HEADER, AmdCertificate
from psp.elliptic import SIGNATURE_BYTES
from psp.rsa_signing import EXPONENT, RsaKey, rsa_key, sign_pss
from psp.sev_certificate import KeyUsage, SevCertificate

_SEED = b"sevfleet laboratory root, not AMD's"
_BITS = 2048
"""As Naples has it; the format of later products differs in the key's size alone."""
_HASH = HASHES[_BITS].name


@lru_cache(maxsize=1)
def laboratory_ark() -> AmdCertificate:
    """The root, signed by itself."""
    return _certificate(KeyUsage.ARK, KeyUsage.ARK)


@lru_cache(maxsize=1)
def laboratory_ask() -> AmdCertificate:
    """The signing key, signed by the root."""
    return _certificate(KeyUsage.ASK, KeyUsage.ARK)


def certified_cek(cek: SevCertificate) -> SevCertificate:
    """The certificate that the key distribution service would give out for a chip's CEK."""
    signature = sign_pss(_key(KeyUsage.ASK), cek.signed, _HASH)[::-1].ljust(SIGNATURE_BYTES, b"\0")
    return replace(
        cek, first_usage=KeyUsage.ASK, first_algorithm=amd_certificate.ALGORITHMS[_BITS], first_signature=signature
    )


def _certificate(usage: KeyUsage, issuer: KeyUsage) -> AmdCertificate:
    size, key = _BITS // 8, _key(usage)
    header = HEADER.pack(1, _key_id(usage), _key_id(issuer), usage, bytes(16), _BITS, _BITS)
    body = header + EXPONENT.to_bytes(size, "little") + key.modulus.to_bytes(size, "little")
    return amd_certificate.parse(body + sign_pss(_key(issuer), body, _HASH)[::-1], usage)


def _key(usage: KeyUsage) -> RsaKey:
    return rsa_key(_SEED + usage.name.encode(), _BITS)


def _key_id(usage: KeyUsage) -> bytes:
    return hashlib.sha256(_SEED + usage.name.encode()).digest()[:16]
