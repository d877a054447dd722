"""AMD's X.509 certificates as they are, element by element: what stands in each, unsigned.

Checked against AMD's published Milan chain and real VCEKs. Of a VLEK, a Turin
VCEK and a revocation list only descriptions are public: the order of their
extensions, and the list's own extensions, are the laboratory's.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from psp import der
from psp.elliptic import PublicKey
from psp.product_line import ProductLine
from psp.tcb_version import TcbComponent

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""When a laboratory's certificates are issued, unless somebody says otherwise."""
ROOT_YEARS, VCEK_YEARS, VLEK_YEARS = 25, 7, 1
LIST_YEARS = 7
"""AMD renews its lists sooner. Here one lasts as long as the VCEKs that it lies beside in a folder."""

_AMD = "1.3.6.1.4.1.3704.1"
_SHA384 = der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.2"), der.NULL)
_MGF1 = der.sequence(der.object_identifier("1.2.840.113549.1.1.8"), _SHA384)
SIGNATURE_ALGORITHM = der.sequence(
    der.object_identifier("1.2.840.113549.1.1.10"),
    der.sequence(
        der.explicit(0, _SHA384),
        der.explicit(1, _MGF1),
        der.explicit(2, der.integer(48)),
        der.explicit(3, der.integer(1)),
    ),
)
"""RSASSA-PSS with SHA-384, MGF1 with the same, a salt of 48 bytes."""

_SECURITY_VERSIONS = {
    TcbComponent.BOOT_LOADER: 1,
    TcbComponent.TEE: 2,
    TcbComponent.SNP: 3,
    TcbComponent.SPL_4: 4,
    TcbComponent.SPL_5: 5,
    TcbComponent.SPL_6: 6,
    TcbComponent.SPL_7: 7,
    TcbComponent.MICROCODE: 8,
    TcbComponent.FMC: 9,
}
"""Last number of each component's object identifier."""
# DER would leave out two bits; AMD's leave out one.
_CERTIFICATE_SIGN = der.bit_string(b"\x04", 1)
_CERTIFICATE_AND_LIST_SIGN = der.bit_string(b"\x06", 1)


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs with an RSA key: common name, modulus, exponent."""

    name: str
    modulus: int
    exponent: int

    @property
    def key(self) -> bytes:
        """The key alone, as the bit string of its certificate has it (PKCS #1)."""
        return der.sequence(der.integer(self.modulus), der.integer(self.exponent))

    @property
    def key_id(self) -> bytes:
        """SHA-1 of the key (RFC 5280, 4.2.1.2)."""
        return hashlib.sha1(self.key, usedforsecurity=False).digest()


# What is signed.


def root(ark: Authority, serial: int, crl_url: str, issued: datetime) -> bytes:
    """An ARK's."""
    extensions = (
        _extension("2.5.29.15", _CERTIFICATE_AND_LIST_SIGN, critical=True),
        _extension("2.5.29.14", der.octet_string(ark.key_id)),
        _extension("2.5.29.19", der.sequence(der.TRUE), critical=True),
        _distribution_point(crl_url),
    )
    return _certificate(serial, ark.name, ark.name, _years(issued, ROOT_YEARS), _rsa_key(ark), extensions)


def intermediate(key: Authority, ark: Authority, serial: int, crl_url: str, issued: datetime) -> bytes:
    """An ASK's or ASVK's."""
    extensions = (
        _extension("2.5.29.14", der.octet_string(key.key_id)),
        _authority(ark),
        _extension("2.5.29.19", der.sequence(der.TRUE, der.integer(0)), critical=True),
        _extension("2.5.29.15", _CERTIFICATE_SIGN, critical=True),
        _distribution_point(crl_url),
    )
    return _certificate(serial, ark.name, key.name, _years(issued, ROOT_YEARS), _rsa_key(key), extensions)


def vcek(key: PublicKey, line: ProductLine, chip_id: bytes, tcb: int, issuer: str, issued: datetime) -> bytes:
    """A chip's for one TCB version. The chip id has no tag of its own."""
    extensions = (*_versions(line, line.certificate_name, tcb), _extension(f"{_AMD}.4", chip_id))
    return _certificate(0, issuer, "SEV-VCEK", _years(issued, VCEK_YEARS), _elliptic_key(key), extensions)


def vlek(key: PublicKey, line: ProductLine, provider: str, tcb: int, issuer: str, issued: datetime) -> bytes:
    """A cloud provider's for one TCB version; ``provider`` like ``CN=cc-us-east-2.amazonaws.com``, ASCII."""
    extensions = (*_versions(line, line.name, tcb), _extension(f"{_AMD}.5", der.ia5_string(provider)))
    return _certificate(0, issuer, "SEV-VLEK", _years(issued, VLEK_YEARS), _elliptic_key(key), extensions)


def revocation_list(ark: Authority, serials: tuple[int, ...], number: int, issued: datetime) -> bytes:
    """An ARK's list, revoking since it was issued; none revoked, no element (RFC 5280, 5.1.2.6)."""
    moment, following = der.time(issued), der.time(_later(issued, LIST_YEARS))
    revoked = [der.sequence(der.integer(serial), moment) for serial in serials]
    return der.sequence(
        der.integer(1),
        SIGNATURE_ALGORITHM,
        _name(ark.name),
        moment,
        following,
        *([der.sequence(*revoked)] if revoked else []),
        der.explicit(0, der.sequence(_authority(ark), _extension("2.5.29.20", der.integer(number)))),
    )


def signed(content: bytes, signature: bytes) -> bytes:
    """A certificate or list with its signature."""
    return der.sequence(content, SIGNATURE_ALGORITHM, der.bit_string(signature))


def pem(data: bytes, kind: str = "CERTIFICATE") -> str:
    """As text (RFC 7468)."""
    text = base64.b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])


# Parts.


def _certificate(
    serial: int, issuer: str, subject: str, validity: bytes, key: bytes, extensions: tuple[bytes, ...]
) -> bytes:
    return der.sequence(
        der.explicit(0, der.integer(2)),
        der.integer(serial),
        SIGNATURE_ALGORITHM,
        _name(issuer),
        validity,
        _name(subject),
        key,
        der.explicit(3, der.sequence(*extensions)),
    )


def _name(common: str) -> bytes:
    parts = (
        (11, der.utf8_string("Engineering")),
        (6, der.printable_string("US")),
        (7, der.utf8_string("Santa Clara")),
        (8, der.utf8_string("CA")),
        (10, der.utf8_string("Advanced Micro Devices")),
        (3, der.utf8_string(common)),
    )
    return der.sequence(
        *(der.set_of(der.sequence(der.object_identifier(f"2.5.4.{kind}"), value)) for kind, value in parts)
    )


def _years(issued: datetime, years: int) -> bytes:
    return der.sequence(der.time(issued), der.time(_later(issued, years)))


def _later(moment: datetime, years: int) -> datetime:
    leap_day = moment.month == 2 and moment.day == 29
    return moment.replace(year=moment.year + years, day=28 if leap_day else moment.day)


def _rsa_key(authority: Authority) -> bytes:
    algorithm = der.sequence(der.object_identifier("1.2.840.113549.1.1.1"), der.NULL)
    return der.sequence(algorithm, der.bit_string(authority.key))


def _elliptic_key(key: PublicKey) -> bytes:
    numbers = key.public_numbers()
    point = b"\x04" + numbers.x.to_bytes(48, "big") + numbers.y.to_bytes(48, "big")
    algorithm = der.sequence(
        der.object_identifier("1.2.840.10045.2.1"), der.object_identifier("1.3.132.0.34")
    )
    return der.sequence(algorithm, der.bit_string(point))


def _versions(line: ProductLine, product: str, tcb: int) -> tuple[bytes, ...]:
    """Extensions in the order of the bytes of the TCB version, as Milan's certificates have them."""
    if line.tcb is None:
        raise ValueError(f"{line.name} has no SEV-SNP")
    return (
        _extension(f"{_AMD}.1", der.integer(line.structure_version)),
        _extension(f"{_AMD}.2", der.ia5_string(product)),
        *(
            _extension(f"{_AMD}.3.{_SECURITY_VERSIONS[component]}", der.integer(version))
            for component, version in line.tcb.unpack(tcb).items()
        ),
    )


def _extension(identifier: str, value: bytes, *, critical: bool = False) -> bytes:
    mark = der.TRUE if critical else b""
    return der.sequence(der.object_identifier(identifier), mark, der.octet_string(value))


def _authority(authority: Authority) -> bytes:
    return _extension("2.5.29.35", der.sequence(der.implicit(0, authority.key_id)))


def _distribution_point(url: str) -> bytes:
    name = der.implicit(6, url.encode("ascii"))
    return _extension("2.5.29.31", der.sequence(der.sequence(der.explicit(0, der.explicit(0, name)))))
