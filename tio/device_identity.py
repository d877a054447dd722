"""A device's keys and certificates, and what it measures: a function of its kind, its serial number and a seed.

The root stands for the maker's and is one for all devices of a seed. Certificates are as SPDM wants them (DSP0274,
10.6; OIDs of DMTF): root, maker's authority, and the device's own with its name in subjectAltName.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tio.spdm.certificate_chain import (
    DEVICE_INFO,
    HARDWARE_IDENTITY,
    RESPONDER_AUTHENTICATION,
    SPDM_EXTENSION,
)
from tio.spdm.device_personality import CertificateSlot
from tio.spdm.measurement import Measurement, ValueType
from tio.spdm.signing import signer

_ORDER_MINUS_1 = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52972
_FROM, _UNTIL = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2075, 1, 1, tzinfo=dt.UTC)
_UTF8_STRING, _OID, _SEQUENCE = 0x0C, 0x06, 0x30
_NORMAL_MODE, _NO_DEBUG, _INVASIVE_DEBUG = 1 << 2, 0, 1 << 1
_MAKER = "sevfleet"


class CardKind(Enum):
    """What a card is."""

    GPU = "gpu"
    NIC = "nic"
    NVME = "nvme"


@dataclass(frozen=True, slots=True)
class Firmware:
    """What runs on a card; ``image`` stands for its bits."""

    version: str = "1.0"
    security_version: int = 1
    image: bytes = b""

    def bits(self, kind: CardKind) -> bytes:
        """What is measured."""
        return self.image or f"{kind.value} firmware {self.version}".encode()


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Root, authority and device, in DER, and the device's key."""

    certificates: tuple[bytes, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def root(self) -> bytes:
        """What a verifier pins, in DER."""
        return self.certificates[0]

    @property
    def slot(self) -> CertificateSlot:
        """As SPDM has it."""
        return CertificateSlot(self.certificates, signer(self.key))


def device_identity(kind: CardKind, serial: str, seed: int) -> DeviceIdentity:
    """The identity of one device."""
    root_key = _key(seed, "root")
    authority_key = _key(seed, f"{kind.value} authority")
    key = _key(seed, f"{kind.value} {serial}")
    root_name, authority_name = _name("sevfleet device root"), _name(f"sevfleet {kind.value} authority")
    root = _authority(root_name, root_name, root_key, root_key, 1)
    authority = _authority(authority_name, root_name, authority_key, root_key, 2)
    leaf = (
        _builder(_name(f"sevfleet {kind.value} {serial}"), authority_name, key, 3)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([_device_info(kind, serial)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([RESPONDER_AUTHENTICATION]), critical=False)
        .add_extension(x509.UnrecognizedExtension(SPDM_EXTENSION, _hardware_identity()), critical=False)
        .sign(authority_key, hashes.SHA384(), ecdsa_deterministic=True)
    )
    der = tuple([one.public_bytes(Encoding.DER) for one in (root, authority, leaf)])
    return DeviceIdentity(der, key)


def measured(kind: CardKind, firmware: Firmware, *, debug: bool = False) -> tuple[Measurement, ...]:
    """What a device measures: boot ROM, firmware, configuration, versions, and its mode."""
    mode_words = _NORMAL_MODE, _NORMAL_MODE, *[_INVASIVE_DEBUG if debug else _NO_DEBUG] * 2
    mode = b"".join([word.to_bytes(4, "little") for word in mode_words])
    return (
        Measurement(1, ValueType.IMMUTABLE_ROM, f"{kind.value} boot ROM 1".encode()),
        Measurement(2, ValueType.MUTABLE_FIRMWARE, firmware.bits(kind)),
        Measurement(3, ValueType.HARDWARE_CONFIGURATION, f"{kind.value} board 1".encode()),
        Measurement(4, ValueType.FIRMWARE_CONFIGURATION, b"as delivered"),
        Measurement(5, ValueType.VERSION, firmware.version.encode()),
        Measurement(6, ValueType.SECURITY_VERSION, firmware.security_version.to_bytes(8, "little")),
        Measurement(0xFE, ValueType.DEVICE_MODE, mode),
    )


def _key(seed: int, name: str) -> ec.EllipticCurvePrivateKey:
    drawn = hashlib.shake_256(f"sevfleet device key {seed} {name}".encode()).digest(56)
    return ec.derive_private_key(int.from_bytes(drawn, "big") % _ORDER_MINUS_1 + 1, ec.SECP384R1())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sevfleet"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, number: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(number)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
    )


def _authority(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, number: int
) -> x509.Certificate:
    return (
        _builder(subject, issuer, key, number)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(by, hashes.SHA384(), ecdsa_deterministic=True)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def device_of(certificate: x509.Certificate) -> tuple[CardKind, str] | None:
    """Kind and serial number that a device's certificate tells; None for one of a stranger."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    for one in names.get_values_for_type(x509.OtherName):
        if one.type_id == DEVICE_INFO and one.value[:1] == bytes((_UTF8_STRING,)):
            maker, kind, *serial = one.value[2:].decode("utf-8", "replace").split(":")
            if maker == _MAKER and kind in {each.value for each in CardKind} and len(serial) == 1:
                return CardKind(kind), serial[0]
    return None


def _device_info(kind: CardKind, serial: str) -> x509.OtherName:
    """manufacturer:product:serial, a UTF8String."""
    text = f"{_MAKER}:{kind.value}:{serial}".encode()
    return x509.OtherName(DEVICE_INFO, _der(_UTF8_STRING, text))


def _hardware_identity() -> bytes:
    """A sequence of one sequence with one OID: the key is the hardware's own."""
    arcs = [int(part) for part in HARDWARE_IDENTITY.dotted_string.split(".")]
    body = bytes((40 * arcs[0] + arcs[1],)) + b"".join([_arc(one) for one in arcs[2:]])
    return _der(_SEQUENCE, _der(_SEQUENCE, _der(_OID, body)))


def _arc(number: int) -> bytes:
    octets = [number & 0x7F]
    while number := number >> 7:
        octets.append(number & 0x7F | 0x80)
    return bytes(reversed(octets))


def _der(tag: int, body: bytes) -> bytes:
    return bytes((tag, len(body))) + body
