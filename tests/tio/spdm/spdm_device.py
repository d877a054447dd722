"""A device with a chain of its own, and a line on which a requester speaks to it, for tests."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Generator
from functools import cache
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tio.spdm import (
    PCI_DOE,
    Binding,
    Capability,
    CertificateSlot,
    Measurement,
    Packet,
    Personality,
    Requester,
    RequesterSettings,
    Responder,
    ResponderSettings,
    TrustAnchors,
    ValueType,
)
from tio.spdm.algorithms import BaseAsym, Scheme
from tio.spdm.device_personality import TEE_IO_CAPABILITIES
from tio.spdm.signing import PrivateKey, signer
from tio.steps import carry

T = TypeVar("T")
C = Capability
PSK_HINT, PSK = b"a hint", bytes(range(48))
EVERYTHING = TEE_IO_CAPABILITIES | C.PSK_WITH_CONTEXT
MEASUREMENTS = (
    Measurement(1, ValueType.IMMUTABLE_ROM, b"boot rom of the toy"),
    Measurement(2, ValueType.MUTABLE_FIRMWARE, b"firmware of the toy"),
    Measurement(0x10, ValueType.SECURITY_VERSION, (7).to_bytes(8, "little")),
    Measurement(0xFD, ValueType.MANIFEST, b"manifest"),
)


class Stream:
    """Random bytes that a seed tells."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed, 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(f"{self._seed} {self._count}".encode()).digest(length)


@cache
def key_of(asym: BaseAsym) -> PrivateKey:
    row = asym.value
    if row.scheme is Scheme.ECDSA:
        curve = {256: ec.SECP256R1, 384: ec.SECP384R1, 521: ec.SECP521R1}[row.key_bits]()
        return ec.derive_private_key(int.from_bytes(hashlib.sha256(row.name.encode()).digest(), "big"), curve)
    if row.scheme is Scheme.EDDSA:
        return ed25519.Ed25519PrivateKey.generate() if row.key_bits == 255 else ed448.Ed448PrivateKey.generate()
    return rsa.generate_private_key(65537, row.key_bits)


def certificate(subject: str, issuer: str, key: Any, signs: Any, *, ca: bool) -> x509.Certificate:
    uses = x509.KeyUsage(not ca, *[False] * 4, ca, *[False] * 3)
    name = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name[0])
        .issuer_name(name[1])
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(dt.datetime(2025, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2045, 1, 1, tzinfo=dt.UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(uses, critical=True)
    )
    return builder.sign(signs, hashes.SHA384())


@cache
def chain_of(asym: BaseAsym) -> tuple[bytes, ...]:
    """Root and leaf, in DER; the root's key is on P-384."""
    root_key = ec.derive_private_key(77, ec.SECP384R1())
    root = certificate("root", "root", root_key, root_key, ca=True)
    leaf = certificate("leaf", "root", key_of(asym), root_key, ca=False)
    return root.public_bytes(Encoding.DER), leaf.public_bytes(Encoding.DER)


def personality(asym: BaseAsym = BaseAsym.ECDSA_P384, **more: Any) -> Personality:
    slot = CertificateSlot(chain_of(asym), signer(key_of(asym)))
    return Personality({0: slot}, lambda: MEASUREMENTS, lambda hint: PSK if hint == PSK_HINT else None, **more)


Between = Callable[[int, str, Packet], Packet]
"""Whoever carries packets: their number, which way, and the packet."""


class Line:
    """A requester and a responder of one device."""

    def __init__(
        self,
        binding: Binding = PCI_DOE,
        requester: RequesterSettings | None = None,
        responder: ResponderSettings | None = None,
        device: Personality | None = None,
        asym: BaseAsym = BaseAsym.ECDSA_P384,
    ) -> None:
        anchored = RequesterSettings(anchors=TrustAnchors(chain_of(asym)[:1]), capabilities=REQUESTER)
        self.requester = Requester(requester or anchored, binding, Stream("requester"))
        settings = responder or ResponderSettings(capabilities=EVERYTHING)
        self.responder = Responder(device or personality(asym), settings, binding, Stream("responder"))
        self.binding = binding
        self.between: Between = lambda _, __, packet: packet
        self.packets: list[tuple[str, Packet]] = []
        self.now_ns = 0

    def do(self, steps: Generator[Packet, Packet, T]) -> T:
        """Carry each packet there and its answer back, as the transport does."""
        return carry(steps, self.carry)

    def carry(self, packet: Packet) -> Packet:
        asked = self._over("asked", packet)
        return self._over("answered", self.responder.answer(asked, self.now_ns))

    def _over(self, way: str, packet: Packet) -> Packet:
        packet = self.between(len(self.packets), way, packet)
        self.packets.append((way, packet))
        return self.binding.unwrap(self.binding.wrap(packet))

    def connected(self) -> Line:
        self.do(self.requester.connect())
        self.do(self.requester.digests())
        self.do(self.requester.certificates())
        return self


REQUESTER = C.CERT | C.ENCRYPT | C.MAC | C.KEY_EX | C.HBEAT | C.KEY_UPD | C.PSK
