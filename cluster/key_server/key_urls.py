"""What the URLs of AMD's key distribution service ask for (57230, as its clients use them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import parse_qsl, urlsplit

from psp.product_line import PRODUCT_LINES, ProductLine
from psp.tcb_version import TcbComponent

MOST_SVN = 127
"""Of all components but the microcode, whose may be anything that fits a byte."""
_MOST_MICROCODE = 255
_MOST_FIELDS = 16
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_DECIMAL = re.compile(r"[0-9]{1,3}")
_POINT_DIGITS = 128


class Kind(Enum):
    """What can be asked for."""

    VCEK = auto()
    VLEK = auto()
    CEK = auto()
    VCEK_CHAIN = auto()
    VLEK_CHAIN = auto()
    CRL = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: of a line (None for a CEK), of a chip, for a TCB version, where its kind has these."""

    kind: Kind
    line: ProductLine | None = None
    chip_id: bytes = b""
    tcb: int = 0


class BadUrlError(ValueError):
    """A URL of the service's shape that asks for nothing there can be; the message says what is wrong."""


class UnknownUrlError(ValueError):
    """No URL of the service's."""


_FILES: Mapping[tuple[str, str], Kind] = {
    ("vcek", "cert_chain"): Kind.VCEK_CHAIN,
    ("vlek", "cert_chain"): Kind.VLEK_CHAIN,
    ("vcek", "crl"): Kind.CRL,
    ("vlek", "crl"): Kind.CRL,
}
_NUMBERS = {
    TcbComponent.FMC: "fmcSPL",
    TcbComponent.BOOT_LOADER: "blSPL",
    TcbComponent.TEE: "teeSPL",
    TcbComponent.SNP: "snpSPL",
    TcbComponent.MICROCODE: "ucodeSPL",
}


def parsed(target: str) -> Asked:
    """What a request target asks for. Raises BadUrlError and UnknownUrlError."""
    try:
        url = urlsplit(target)
        strict = bool(url.query)
        query = parse_qsl(url.query, keep_blank_values=True, strict_parsing=strict, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise BadUrlError("query: expected name=value, a few of them") from None
    match url.path.split("/")[1:]:
        case ["cek", "id", chip]:
            return Asked(Kind.CEK, chip_id=_chip_id(chip))
        case ["vcek" | "vlek" as family, "v1", name, last]:
            line = PRODUCT_LINES.get(name)
            if line is None or line.tcb is None:
                known = ", ".join(one.name for one in PRODUCT_LINES.values() if one.tcb)
                raise UnknownUrlError(f"product: expected {known}, got {name[:40]!r}")
            if (family, last) in _FILES:
                return Asked(_FILES[family, last], line)
            if family == "vcek":
                return Asked(Kind.VCEK, line, _chip_id_of(line, last), _tcb(line, query))
            if last == "cert":
                return Asked(Kind.VLEK, line, tcb=_tcb(line, query))
    raise UnknownUrlError("expected /vcek/v1/..., /vlek/v1/... or /cek/id/...")


def vcek_url(line: ProductLine, chip_id: bytes, tcb: int) -> str:
    """The URL of a VCEK's certificate, as AMD's own tools write it. ValueError for a line without SEV-SNP."""
    return f"/vcek/v1/{line.name}/{chip_id.hex()}?{_query(line, tcb)}"


def vlek_url(line: ProductLine, tcb: int) -> str:
    """The URL of a VLEK's certificate. ValueError for a line without SEV-SNP."""
    return f"/vlek/v1/{line.name}/cert?{_query(line, tcb)}"


def _query(line: ProductLine, tcb: int) -> str:
    if line.tcb is None:
        raise ValueError(f"{line.name} has no SEV-SNP")
    versions = line.tcb.unpack(tcb)
    return "&".join(f"{name}={versions[one]:02d}" for one, name in _NUMBERS.items() if one in versions)


def _tcb(line: ProductLine, query: list[tuple[str, str]]) -> int:
    assert line.tcb is not None
    wanted = {name: one for one, name in _NUMBERS.items() if one in line.tcb.value}
    given = dict(query)
    if len(given) != len(query):
        raise BadUrlError("query: expected each number once")
    for name in given:
        if name not in wanted:
            raise BadUrlError(f"query: expected {', '.join(wanted)}, got {name[:40]!r}")
    versions: dict[TcbComponent, int] = {}
    for name, one in wanted.items():
        most = _MOST_MICROCODE if one is TcbComponent.MICROCODE else MOST_SVN
        text = given.get(name, "")
        if not _DECIMAL.fullmatch(text) or int(text) > most:
            raise BadUrlError(f"{name}: expected a number from 0 to {most}, got {text[:40]!r}")
        versions[one] = int(text)
    return line.tcb.pack(versions)


def _chip_id(text: str) -> bytes:
    if not _HEX.fullmatch(text) or len(text) > _POINT_DIGITS:
        raise BadUrlError(f"chip id: expected up to {_POINT_DIGITS} hexadecimal digits, got {text[:40]!r}")
    return bytes.fromhex(text)


def _chip_id_of(line: ProductLine, text: str) -> bytes:
    chip_id = _chip_id(text)
    if len(chip_id) != line.chip_id_bytes:
        raise BadUrlError(f"chip id: expected {2 * line.chip_id_bytes} digits for {line.name}, got {len(text)}")
    return chip_id
