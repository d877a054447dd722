"""Strict DER (X.690): one way to write each value, nothing indefinite, nothing left over.

Whoever reads walks a certificate field by field, in its own order, so work is bounded
by the bytes given and depth by the reader's own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTF8_STRING, PRINTABLE_STRING, IA5_STRING, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x16, 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
_LONGEST_LENGTH = 4
_LONGEST_OID = 32
_TIMES = {UTC_TIME: ("%y%m%d%H%M%SZ", 13), GENERALIZED_TIME: ("%Y%m%d%H%M%SZ", 15)}
_CENTURY_TURNS = 50
"""RFC 5280, 4.1.2.5.1: years from 50 on are of the last century."""


class DerError(ValueError):
    """Bytes that are not the DER expected; one line that says where."""


def context(number: int, *, constructed: bool = True) -> int:
    """The tag of a context-specific field."""
    return (0xA0 if constructed else 0x80) | number


@dataclass(frozen=True, slots=True)
class Element:
    """One value: its tag, its contents, and the bytes with header."""

    tag: int
    body: bytes
    whole: bytes

    def inside(self) -> Reader:
        """A reader of what a constructed value holds."""
        return Reader(self.body)


class Reader:
    """Takes the values of a sequence one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def next_tag(self) -> int | None:
        """The tag that comes next; None at the end."""
        return self._data[self._at] if self._at < len(self._data) else None

    def take(self, tag: int) -> Element:
        """The next value, which must have this tag. Raises DerError."""
        start = self._at
        if self.next_tag() != tag:
            found = "the end" if self.next_tag() is None else f"{self.next_tag():#04x}"
            raise DerError(f"expected tag {tag:#04x}, got {found}")
        length, body = self._length(start + 1)
        if length > len(self._data) - body:
            raise DerError(f"expected {length} bytes behind tag {tag:#04x}, got {len(self._data) - body}")
        self._at = body + length
        return Element(tag, self._data[body : self._at], self._data[start : self._at])

    def optional(self, tag: int) -> Element | None:
        """The next value if it has this tag."""
        return self.take(tag) if self.next_tag() == tag else None

    def finish(self) -> None:
        """Raise DerError if anything is left."""
        if self._at != len(self._data):
            raise DerError(f"expected the end, got {len(self._data) - self._at} bytes more")

    def _length(self, at: int) -> tuple[int, int]:
        """(length, where the contents begin)."""
        if at >= len(self._data):
            raise DerError("expected a length, got the end")
        first = self._data[at]
        if first < 0x80:
            return first, at + 1
        size = first & 0x7F
        octets = self._data[at + 1 : at + 1 + size]
        if not 0 < size <= _LONGEST_LENGTH or len(octets) != size:
            raise DerError("expected a length of 1 to 4 bytes")
        length = int.from_bytes(octets, "big")
        if length < 0x80 or octets[0] == 0:
            raise DerError("expected a length in as few bytes as it needs")
        return length, at + 1 + size


def only(data: bytes, tag: int) -> Element:
    """The one value that ``data`` is. Raises DerError."""
    reader = Reader(data)
    found = reader.take(tag)
    reader.finish()
    return found


def integer(element: Element) -> int:
    """A number that is not negative. Raises DerError."""
    body = element.body
    if not body or body[0] & 0x80 or (len(body) > 1 and not body[0] and not body[1] & 0x80):
        raise DerError("expected a number that is not negative, in as few bytes as it needs")
    return int.from_bytes(body, "big")


def bits(element: Element) -> bytes:
    """A bit string of whole bytes. Raises DerError."""
    if not element.body or element.body[0]:
        raise DerError("expected a bit string of whole bytes")
    return element.body[1:]


def boolean(element: Element) -> bool:
    """Raises DerError for anything but DER's two ways."""
    if element.body not in {b"\x00", b"\xff"}:
        raise DerError("expected a boolean of 00 or ff")
    return element.body == b"\xff"


def oid(element: Element) -> str:
    """An object identifier in dots. Raises DerError."""
    body = element.body
    if not body or len(body) > _LONGEST_OID or body[-1] & 0x80:
        raise DerError("expected an object identifier")
    numbers, value = [], 0
    for octet in body:
        if not value and octet == 0x80:
            raise DerError("expected an object identifier in as few bytes as it needs")
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(value)
            value = 0
    root = min(numbers[0] // 40, 2)
    return ".".join(map(str, (root, numbers[0] - 40 * root, *numbers[1:])))


def text(element: Element) -> str:
    """A UTF-8, printable or IA5 string. Raises DerError."""
    coding = {UTF8_STRING: "utf-8", PRINTABLE_STRING: "ascii", IA5_STRING: "ascii"}.get(element.tag)
    if coding is None:
        raise DerError(f"expected a string, got tag {element.tag:#04x}")
    try:
        return element.body.decode(coding)
    except UnicodeDecodeError:
        raise DerError("expected text") from None


def time(reader: Reader) -> int:
    """The next value, a time to the second in UTC; seconds since 1970. Raises DerError."""
    tag = reader.next_tag()
    form, length = _TIMES.get(tag or 0, ("", 0))
    found = reader.take(tag if form and tag is not None else UTC_TIME).body
    if len(found) != length or not found[:-1].isdigit() or not found.endswith(b"Z"):
        raise DerError("expected a time to the second, ending in Z")
    written = found.decode("ascii")
    if tag == UTC_TIME:
        form, written = "%Y" + form[2:], ("19" if int(written[:2]) >= _CENTURY_TURNS else "20") + written
    try:
        return int(datetime.strptime(written, form).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise DerError("expected a time that exists") from None
