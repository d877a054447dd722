"""Reports and certificates of a chip that never was, any field of which may be forged.

Written from the tables of the specifications, apart from the verifier and from the firmware.
The two RSA keys beside this file were made for these tests and protect nothing.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

from psp.verifier import Evidence, root_of

NOW = 1_700_000_000
YEAR = 365 * 86400
OURS = "1.3.6.1.4.1.3704.1."
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
PSS_IDENTIFIER = bytes.fromhex(
    "304606092a864886f70d01010a3039a00f300d06096086480165030402020500a11c301a06092a864886f70d010108"
    "300d06096086480165030402020500a203020130a303020101"
)
CHIP_ID = bytes(range(1, 65))
TCB = bytes([3, 0, 0, 0, 0, 0, 8, 115])
EC_KEY = ec.derive_private_key(0x5EF1EE7, ec.SECP384R1())

OFFSETS = {
    # name: (offset, bytes)
    "version": (0x000, 4), "guest_svn": (0x004, 4), "policy": (0x008, 8), "family_id": (0x010, 16),
    "image_id": (0x020, 16), "vmpl": (0x030, 4), "signature_algo": (0x034, 4), "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8), "key_info": (0x048, 4), "reserved_4c": (0x04C, 4), "report_data": (0x050, 64),
    "measurement": (0x090, 48), "host_data": (0x0C0, 32), "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48), "report_id": (0x140, 32), "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8), "cpuid": (0x188, 3), "reserved_18b": (0x18B, 21), "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8), "current_version": (0x1E8, 3), "reserved_1eb": (0x1EB, 1),
    "committed_version": (0x1EC, 3), "reserved_1ef": (0x1EF, 1), "launch_tcb": (0x1F0, 8),
    "launch_mitigations": (0x1F8, 8), "current_mitigations": (0x200, 8), "reserved_208": (0x208, 152),
}  # fmt: skip
GOOD_REPORT = {
    "version": 3, "policy": 0x30000, "signature_algo": 1, "current_tcb": TCB, "platform_info": 0x25,
    "report_data": bytes(range(64)), "measurement": b"\x11" * 48, "report_id": b"\x22" * 32,
    "report_id_ma": b"\xff" * 32, "reported_tcb": TCB, "cpuid": bytes([0x19, 0x01, 0x01]), "chip_id": CHIP_ID,
    "committed_tcb": TCB, "current_version": bytes([29, 55, 1]), "committed_version": bytes([29, 55, 1]),
    "launch_tcb": TCB, "guest_svn": 4,
}  # fmt: skip


def report(key=EC_KEY, **fields):
    """A report signed by a key; fields are numbers or bytes."""
    data = bytearray(0x2A0)
    for name, value in (GOOD_REPORT | fields).items():
        offset, width = OFFSETS[name]
        octets = value.to_bytes(width, "little") if isinstance(value, int) else value
        assert len(octets) == width, name
        data[offset : offset + width] = octets
    r, s = utils.decode_dss_signature(key.sign(bytes(data), ec.ECDSA(hashes.SHA384())))
    return bytes(data) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


# DER.


def tlv(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + body


def integer(value):
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted):
    first, second, *rest = map(int, dotted.split("."))
    out = b""
    for number in (40 * first + second, *rest):
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.append(number & 0x7F | 0x80)
        out += bytes(reversed(octets))
    return tlv(6, out)


def name(common_name, **changes):
    attributes = {"11": "Engineering", "6": "US", "7": "Santa Clara", "8": "CA", "10": "Advanced Micro Devices"}
    attributes |= {kind.removeprefix("a"): value for kind, value in changes.items()}
    attributes["3"] = common_name
    rows = (
        tlv(0x31, tlv(0x30, oid(f"2.5.4.{kind}"), tlv(0x13 if kind == "6" else 0x0C, value.encode())))
        for kind, value in attributes.items()
    )
    return tlv(0x30, *rows)


def moment(seconds):
    at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return tlv(0x17, at.strftime("%y%m%d%H%M%SZ").encode())


@cache
def rsa_key(which):
    pem = Path(__file__).with_name(f"{which}_key.pem").read_bytes()
    return serialization.load_pem_private_key(pem, None)


def spki(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def location(*places):
    def point(place):
        return tlv(0x30, tlv(0xA0, tlv(0xA0, tlv(0x86, place.encode()))))

    return tlv(0x30, *(point(place) for place in places))


CRL_AT = location("https://kdsintf.amd.com/vcek/v1/Milan/crl")
ARK_EXTENSIONS = {
    "2.5.29.15": (True, bytes.fromhex("03020106")),
    "2.5.29.14": (False, tlv(4, b"\x01" * 20)),
    "2.5.29.19": (True, bytes.fromhex("30030101ff")),
    "2.5.29.31": (False, CRL_AT),
}
ASK_EXTENSIONS = {
    "2.5.29.14": (False, tlv(4, b"\x02" * 20)),
    "2.5.29.35": (False, tlv(0x30, tlv(0x80, b"\x01" * 20))),
    "2.5.29.19": (True, bytes.fromhex("30060101ff020100")),
    "2.5.29.15": (True, bytes.fromhex("03020104")),
    "2.5.29.31": (False, CRL_AT),
}


def vcek_extensions(chip_id=CHIP_ID, tcb=TCB, product="Milan-B0"):
    """AMD's order and encoding."""
    levels = {"3.1": tcb[0], "3.2": tcb[1], "3.4": 0, "3.5": 0, "3.6": 0, "3.7": 0, "3.3": tcb[6], "3.8": tcb[7]}
    found = {f"{OURS}1": (False, integer(0)), f"{OURS}2": (False, tlv(0x16, product.encode()))}
    found |= {OURS + suffix: (False, integer(level)) for suffix, level in levels.items()}
    return found | {f"{OURS}4": (False, chip_id)}


def vlek_extensions(csp="cc-us-east-2.amazonaws.com"):
    found = vcek_extensions(product="Milan")
    del found[f"{OURS}4"]
    return found | {f"{OURS}5": (False, tlv(0x16, csp.encode()))}


def turin_extensions(chip_id, tcb):
    levels = {"3.9": tcb[0], "3.1": tcb[1], "3.2": tcb[2], "3.3": tcb[3], "3.5": 0, "3.6": 0, "3.7": 0, "3.8": tcb[7]}
    found = {f"{OURS}1": (False, integer(1)), f"{OURS}2": (False, tlv(0x16, b"Turin"))}
    found |= {OURS + suffix: (False, integer(level)) for suffix, level in levels.items()}
    return found | {f"{OURS}4": (False, chip_id)}


@dataclass(frozen=True)
class Form:
    """What one certificate says, and who signs it."""

    subject: bytes
    issuer: bytes
    signer: str
    key: str | bytes
    """An RSA key by name, or a SubjectPublicKeyInfo."""
    extensions: dict = field(hash=False)
    serial: int = 0
    not_before: int = NOW - YEAR
    not_after: int = NOW + 7 * YEAR


def certificate(form, twice=""):
    """Signed and in DER; the extension ``twice`` stands there again."""
    rows = [
        tlv(0x30, oid(kind), *([b"\x01\x01\xff"] if critical else []), tlv(4, value))
        for kind, (critical, value) in form.extensions.items()
        for _ in range(1 + (kind == twice))
    ]
    body = tlv(
        0x30,
        tlv(0xA0, integer(2)),
        integer(form.serial),
        PSS_IDENTIFIER,
        form.issuer,
        tlv(0x30, moment(form.not_before), moment(form.not_after)),
        form.subject,
        form.key if isinstance(form.key, bytes) else spki(rsa_key(form.key)),
        tlv(0xA3, tlv(0x30, *rows)),
    )
    return signed(body, form.signer)


def crl(*serials, issuer=None, signer="root", this_update=NOW - 86400, next_update=NOW + 86400):
    entries = [tlv(0x30, integer(serial), moment(NOW - YEAR)) for serial in serials]
    body = tlv(
        0x30,
        integer(1),
        PSS_IDENTIFIER,
        issuer or name("ARK-Milan"),
        moment(this_update),
        moment(next_update),
        *([tlv(0x30, *entries)] if entries else []),
    )
    return signed(body, signer)


@cache
def signed(body, signer):
    signature = rsa_key(signer).sign(body, PSS, hashes.SHA384())
    return tlv(0x30, body, PSS_IDENTIFIER, tlv(3, b"\0", signature))


ARK = Form(name("ARK-Milan"), name("ARK-Milan"), "root", "root", ARK_EXTENSIONS, 65536, not_after=NOW + 20 * YEAR)
ASK = Form(name("SEV-Milan"), name("ARK-Milan"), "root", "issuer", ASK_EXTENSIONS, 65537, not_after=NOW + 20 * YEAR)
VCEK = Form(name("SEV-VCEK"), name("SEV-Milan"), "issuer", spki(EC_KEY), vcek_extensions())
ASVK = replace(ASK, subject=name("SEV-VLEK-Milan"), serial=65538)
VLEK = replace(VCEK, subject=name("SEV-VLEK"), issuer=name("SEV-VLEK-Milan"), extensions=vlek_extensions())
ROOTS = {"Milan": frozenset(root_of(certificate(ARK))["Milan"])}

TURIN_CHIP_ID = bytes(range(8)) + bytes(56)
TURIN_TCB = bytes([1, 2, 3, 4, 0, 0, 0, 72])


def evidence(ark=ARK, ask=ASK, leaf=VCEK, crl=None, report_bytes=None, **fields):
    """What a host would send; certificates as forms or bytes, and fields of the report."""

    def der(one):
        return certificate(one) if isinstance(one, Form) else one

    lists = () if crl is None else crl if isinstance(crl, tuple) else (crl,)
    return Evidence(report(**fields) if report_bytes is None else report_bytes, der(ark), der(ask), der(leaf), lists)


def turin_evidence(**fields):
    """The same under Turin's roots, which have other formats."""
    ark, ask = (
        replace(form, subject=name(subject), issuer=name("ARK-Turin"))
        for form, subject in ((ARK, "ARK-Turin"), (ASK, "SEV-Turin"))
    )
    leaf = replace(VCEK, issuer=name("SEV-Turin"), extensions=turin_extensions(TURIN_CHIP_ID[:8], TURIN_TCB))
    tcbs = dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), TURIN_TCB)
    given = tcbs | {"chip_id": TURIN_CHIP_ID, "cpuid": bytes([0x1A, 0x02, 0x01])} | fields
    return evidence(ark, ask, leaf, **given)
