"""ASN.1 values as DER (X.690), as far as AMD's certificates need them: functions from values to bytes."""

from __future__ import annotations

from datetime import UTC, datetime

TRUE = b"\x01\x01\xff"
NULL = b"\x05\x00"
_FIRST_YEAR_WITHOUT_UTC_TIME = 2050


def encoded(tag: int, content: bytes) -> bytes:
    """Tag, length in the shortest form, content."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def integer(value: int) -> bytes:
    """Of any size, never negative."""
    if value < 0:
        raise ValueError(f"integer: expected no negative number, got {value}")
    # One bit more than needed, or the highest would be the sign.
    return encoded(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def bit_string(data: bytes, unused: int = 0) -> bytes:
    """Whole bytes but for ``unused`` bits of the last."""
    return encoded(0x03, bytes([unused]) + data)


def octet_string(data: bytes) -> bytes:
    """Bytes."""
    return encoded(0x04, data)


def object_identifier(dotted: str) -> bytes:
    """From the usual notation."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    return encoded(0x06, b"".join(_base_128(arc) for arc in (40 * first + second, *rest)))


def utf8_string(text: str) -> bytes:
    """Any text."""
    return encoded(0x0C, text.encode())


def printable_string(text: str) -> bytes:
    """Letters and digits."""
    return encoded(0x13, text.encode("ascii"))


def ia5_string(text: str) -> bytes:
    """ASCII."""
    return encoded(0x16, text.encode("ascii"))


def time(moment: datetime) -> bytes:
    """To the second, in the form that RFC 5280 wants for the year."""
    moment = moment.astimezone(UTC)
    if moment.year < _FIRST_YEAR_WITHOUT_UTC_TIME:
        return encoded(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return encoded(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE, and SEQUENCE OF."""
    return encoded(0x30, b"".join(parts))


def set_of(part: bytes) -> bytes:
    """A SET OF one."""
    return encoded(0x31, part)


def explicit(number: int, content: bytes) -> bytes:
    """A context tag around a value."""
    return encoded(0xA0 | number, content)


def implicit(number: int, content: bytes) -> bytes:
    """A context tag in place of a primitive value's own."""
    return encoded(0x80 | number, content)


def _base_128(arc: int) -> bytes:
    out = [arc & 0x7F]
    while arc := arc >> 7:
        out.append(0x80 | arc & 0x7F)
    return bytes(reversed(out))
