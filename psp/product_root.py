"""The laboratory's stand-in for AMD: for each product line the keys ARK, ASK and ASVK, and what they sign.

From Milan on one key has two encodings, as AMD's have: X.509 for SEV-SNP, and
the SEV interface's own format for platforms' CEKs; Naples and Rome have only the
latter. Private keys are a function of the laboratory's seed. They protect nothing,
and no real platform's certificates verify against them, whatever names they bear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from psp import amd_certificate, x509_profile
from psp.amd_certificate import HASHES, HEADER, AmdCertificate
from psp.elliptic import SIGNATURE_BYTES, PublicKey
from psp.product_line import ProductLine
from psp.rsa_signing import EXPONENT, RsaKey, rsa_key, sign_pss
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.x509_profile import EPOCH, Authority

KeyMaker = Callable[[bytes, int], RsaKey]
"""From a seed and a number of bits; the same each time."""

_PURPOSE = b"sevfleet laboratory root, not AMD's"


class RootName(StrEnum):
    """The RSA keys of a line."""

    ARK = "ARK"
    ASK = "ASK"
    ASVK = "ASVK"


_COMMON_NAMES = {RootName.ARK: "ARK-{}", RootName.ASK: "SEV-{}", RootName.ASVK: "SEV-VLEK-{}"}
_USAGES = {KeyUsage.ARK: RootName.ARK, KeyUsage.ASK: RootName.ASK}


@lru_cache(maxsize=8)
def laboratory_root(line: ProductLine) -> ProductRoot:
    """The root of laboratory 0, whose public keys the emulated firmwares are built with; its keys are found anew."""
    return ProductRoot(line)


class ProductRoot:
    """The root of one line. ``make_key`` may remember keys of former runs: they take seconds to find."""

    def __init__(self, line: ProductLine, seed: bytes = b"0", make_key: KeyMaker = rsa_key) -> None:
        self.line = line
        self._seed = seed
        self._make_key = make_key
        self._keys: dict[RootName, RsaKey] = {}
        self._certificates: dict[RootName, bytes] = {}
        self._amd: dict[KeyUsage, AmdCertificate] = {}
        self._list: tuple[tuple[tuple[int, ...], int, datetime], bytes] | None = None
        """The revocation list that was last asked for, and what that was."""

    def key(self, name: RootName) -> RsaKey:
        """A private key."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = self._make_key(self.key_seed(name), self.line.root_bits)
        return key

    def key_seed(self, name: RootName) -> bytes:
        """What a key is made of."""
        words = (_PURPOSE, self._seed, self.line.name.encode(), name.encode())
        return hashlib.sha256(b"".join(len(word).to_bytes(4, "little") + word for word in words)).digest()

    # X.509. ValueError where the line has no SEV-SNP.

    def certificate(self, name: RootName) -> bytes:
        """The key's certificate, DER."""
        made = self._certificates.get(name)
        if made is None:
            made = self._certificates[name] = self._signed(self._unsigned(name), RootName.ARK)
        return made

    def vcek(self, key: PublicKey, chip_id: bytes, tcb: int, issued: datetime = EPOCH) -> bytes:
        """A chip's certificate for a TCB version, DER."""
        issuer = self._common_name(RootName.ASK)
        return self._signed(x509_profile.vcek(key, self.line, chip_id, tcb, issuer, issued), RootName.ASK)

    def vlek(self, key: PublicKey, provider: str, tcb: int, issued: datetime = EPOCH) -> bytes:
        """A cloud provider's certificate for a TCB version, DER."""
        issuer = self._common_name(RootName.ASVK)
        return self._signed(x509_profile.vlek(key, self.line, provider, tcb, issuer, issued), RootName.ASVK)

    def revocation_list(
        self, revoked: Iterable[int] = (), number: int = 1, issued: datetime = EPOCH
    ) -> bytes:
        """The ARK's list of serial numbers that are valid no more, DER."""
        asked = tuple(sorted(revoked)), number, issued
        if self._list is None or self._list[0] != asked:
            content = x509_profile.revocation_list(self._authority(RootName.ARK), *asked)
            self._list = asked, self._signed(content, RootName.ARK)
        return self._list[1]

    # The SEV interface's own format.

    def amd_certificate(self, usage: KeyUsage) -> AmdCertificate:
        """ARK or ASK."""
        made = self._amd.get(usage)
        if made is None:
            made = self._amd[usage] = self._made_amd(usage)
        return made

    def certified_cek(self, cek: SevCertificate) -> SevCertificate:
        """The certificate that the key distribution service would give out for a chip's CEK."""
        bits = self.line.root_bits
        signature = sign_pss(self.key(RootName.ASK), cek.signed, HASHES[bits].name)[::-1]
        return replace(
            cek,
            first_usage=KeyUsage.ASK,
            first_algorithm=amd_certificate.ALGORITHMS[bits],
            first_signature=signature.ljust(SIGNATURE_BYTES, b"\0"),
        )

    def _made_amd(self, usage: KeyUsage) -> AmdCertificate:
        bits = self.line.root_bits
        size, key = bits // 8, self.key(_USAGES[usage])
        header = HEADER.pack(1, self._key_id(usage), self._key_id(KeyUsage.ARK), usage, bytes(16), bits, bits)
        body = header + EXPONENT.to_bytes(size, "little") + key.modulus.to_bytes(size, "little")
        signature = sign_pss(self.key(RootName.ARK), body, HASHES[bits].name)
        return amd_certificate.parse(body + signature[::-1], usage)

    def _key_id(self, usage: KeyUsage) -> bytes:
        return hashlib.sha256(b"key id" + self.key_seed(_USAGES[usage])).digest()[:16]

    def _unsigned(self, name: RootName) -> bytes:
        serial = self.line.first_serial
        if not serial:
            raise ValueError(f"{self.line.name} has no SEV-SNP")
        ark = self._authority(RootName.ARK)
        if name is RootName.ARK:
            return x509_profile.root(ark, serial, self._list_url("vcek"), EPOCH)
        serial += 1 if name is RootName.ASK else 2
        url = self._list_url("vcek" if name is RootName.ASK else "vlek")
        return x509_profile.intermediate(self._authority(name), ark, serial, url, EPOCH)

    def _list_url(self, kind: str) -> str:
        """AMD's own: clients that follow it, as clients of the real service may, find AMD's list and not ours."""
        return f"https://kdsintf.amd.com/{kind}/v1/{self.line.name}/crl"

    def _common_name(self, name: RootName) -> str:
        return _COMMON_NAMES[name].format(self.line.name)

    def _authority(self, name: RootName) -> Authority:
        return Authority(self._common_name(name), self.key(name).modulus, EXPONENT)

    def _signed(self, content: bytes, name: RootName) -> bytes:
        return x509_profile.signed(content, sign_pss(self.key(name), content, "sha384"))
