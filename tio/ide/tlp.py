"""Transaction layer packets as far as a protected link tells them apart: their headers, and what they carry.

Source: PCI Express base specification, sections 2.2.1 (common fields), 2.2.4 (addresses and requester ids), 2.2.5
(byte enables), 2.2.7 (requests) and 2.2.9 (completions). Local prefixes, ECRC and data link framing are not part of
a packet here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

DWORD_BYTES = 4
MOST_PAYLOAD_BYTES = 4096
"""The largest Max_Payload_Size (7.5.3.4)."""
_BORDER = 4096
"""No request crosses an address border of 4 KiB (2.2.7)."""

_FIRST = struct.Struct(">BBH")
_REQUEST = struct.Struct(">HBBQ")
_COMPLETION = struct.Struct(">HHHBB")
_LENGTH = 0x3FF
_POISONED = 1 << 6
_ONE_DWORD, _MORE_DWORDS = 0x0F, 0xFF
"""Last and first byte enables: all bytes, and no last double word where there is one alone (2.2.5)."""


class SubStream(IntEnum):
    """The flow-control class of a packet, which is its sub-stream (6.33.3)."""

    PR = 0
    """Posted requests."""
    NPR = 1
    """Non-posted requests."""
    CPL = 2
    """Completions."""


class TlpKind(IntEnum):
    """Fmt and Type, the first byte of a header (table 2-3)."""

    MEMORY_READ = 0x20
    MEMORY_WRITE = 0x60
    CONFIG_READ = 0x04
    CONFIG_WRITE = 0x44
    IDE_MESSAGE = 0x30
    """A message of the link's ends to each other; routed to the root complex."""
    COMPLETION = 0x0A
    COMPLETION_DATA = 0x4A


_SUB_STREAMS = {
    TlpKind.MEMORY_READ: SubStream.NPR,
    TlpKind.MEMORY_WRITE: SubStream.PR,
    TlpKind.CONFIG_READ: SubStream.NPR,
    TlpKind.CONFIG_WRITE: SubStream.NPR,
    TlpKind.IDE_MESSAGE: SubStream.PR,
    TlpKind.COMPLETION: SubStream.CPL,
    TlpKind.COMPLETION_DATA: SubStream.CPL,
}
_WITH_DATA = frozenset({TlpKind.MEMORY_WRITE, TlpKind.CONFIG_WRITE, TlpKind.COMPLETION_DATA})
_HEADER_BYTES = {
    kind: 12 if kind in (TlpKind.COMPLETION, TlpKind.COMPLETION_DATA, TlpKind.CONFIG_READ, TlpKind.CONFIG_WRITE) else 16
    for kind in TlpKind
}
_SORTS = {int(kind): (kind, _SUB_STREAMS[kind], _HEADER_BYTES[kind], kind in _WITH_DATA) for kind in TlpKind}
"""By the first byte of a header."""


class TlpError(ValueError):
    """Bytes or values that are no packet. Names the field and what was expected."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"TLP {field}: expected {expected}, found {found}")
        self.field = field


class CompletionStatus(IntEnum):
    """2.2.9.1."""

    SUCCESSFUL = 0
    UNSUPPORTED_REQUEST = 1
    COMPLETER_ABORT = 4


@dataclass(frozen=True, slots=True)
class Tlp:
    """One packet: its header as it crosses the link, 12 or 16 bytes, and its payload in whole double words."""

    header: bytes
    payload: bytes = b""

    @property
    def kind(self) -> TlpKind:
        """What kind of packet it is. Raises TlpError where nobody here knows such."""
        return self._sort[0]

    @property
    def sub_stream(self) -> SubStream:
        """Which sub-stream it travels on. Raises TlpError."""
        return self._sort[1]

    @property
    def requester(self) -> int:
        """Bus, device and function of whoever asked."""
        at = 8 if self.sub_stream is SubStream.CPL else 4
        return int.from_bytes(self.header[at : at + 2], "big")

    @property
    def tag(self) -> int:
        """By which a completion finds its request."""
        return self.header[10 if self.sub_stream is SubStream.CPL else 6]

    @property
    def address(self) -> int:
        """Of a memory request."""
        return int.from_bytes(self.header[8:16], "big") & ~0b11

    @property
    def poisoned(self) -> bool:
        """Whether its sender says that what it carries is wrong (2.7.2.2)."""
        return bool(self.header[2] & _POISONED)

    @property
    def length_bytes(self) -> int:
        """How many bytes it carries or asks for."""
        header = self.header
        return ((header[2] << 8 | header[3]) & _LENGTH or _LENGTH + 1) * DWORD_BYTES

    def as_poisoned(self) -> Tlp:
        """The same with its mark that what it carries is wrong."""
        header = self.header
        return Tlp(header[:2] + bytes((header[2] | _POISONED,)) + header[3:], self.payload)

    def checked(self) -> Self:
        """Itself. Raises TlpError where header and payload do not go together."""
        _, _, header_bytes, with_data = self._sort
        if len(self.header) != header_bytes:
            raise TlpError("header", f"{header_bytes} bytes", str(len(self.header)))
        expected = self.length_bytes if with_data else 0
        if len(self.payload) != expected:
            raise TlpError("payload", f"{expected} bytes as its header says", str(len(self.payload)))
        return self

    @property
    def _sort(self) -> tuple[TlpKind, SubStream, int, bool]:
        """Kind, sub-stream, length of the header and whether there is a payload. Raises TlpError."""
        found = _SORTS.get(self.header[0])
        if found is None:
            raise TlpError("type", "a request, completion or message", f"{self.header[0]:#x}")
        return found


def memory_write(requester: int, address: int, data: bytes, tag: int = 0) -> Tlp:
    """A posted write. Raises TlpError."""
    return Tlp(_request(TlpKind.MEMORY_WRITE, requester, tag, address, len(data)), bytes(data))


def memory_read(requester: int, address: int, length: int, tag: int = 0) -> Tlp:
    """A read, to be answered by completions with its tag. Raises TlpError."""
    return Tlp(_request(TlpKind.MEMORY_READ, requester, tag, address, length))


def completion(
    completer: int,
    requester: int,
    tag: int,
    data: bytes,
    status: CompletionStatus = CompletionStatus.SUCCESSFUL,
    *,
    byte_count: int | None = None,
    lower_address: int = 0,
) -> Tlp:
    """The answer to a non-posted request, whole; with ``byte_count``, so much of it is still to come with this one.

    Raises TlpError.
    """
    kind = TlpKind.COMPLETION_DATA if data else TlpKind.COMPLETION
    first = _first(kind, _dwords(len(data)) if data else 0)
    count = len(data) if byte_count is None else byte_count
    return Tlp(
        first + _COMPLETION.pack(completer, status << 13 | count & 0xFFF, requester, tag, lower_address), bytes(data)
    )


def message(requester: int, code: int, words: int = 0) -> Tlp:
    """A message without data; ``words`` are the two double words that its code gives a meaning."""
    return Tlp(_first(TlpKind.IDE_MESSAGE, 0) + _REQUEST.pack(requester, 0, code, words))


def _request(kind: TlpKind, requester: int, tag: int, address: int, length: int) -> bytes:
    if address < 0 or address % DWORD_BYTES or address >> 64:
        raise TlpError("address", "a multiple of 4 in 64 bits", f"{address:#x}")
    if address % _BORDER + length > _BORDER:
        raise TlpError("address", "a request inside 4 KiB", f"{length} bytes at {address:#x}")
    if not 0 <= requester <= 0xFFFF or not 0 <= tag <= 0xFF:
        raise TlpError("requester", "16 bits, and a tag of 8", f"{requester:#x}, {tag:#x}")
    enables = _ONE_DWORD if length == DWORD_BYTES else _MORE_DWORDS
    return _first(kind, _dwords(length)) + _REQUEST.pack(requester, tag, enables, address)


def _first(kind: TlpKind, dwords: int) -> bytes:
    return _FIRST.pack(kind, 0, dwords & _LENGTH)


def _dwords(length: int) -> int:
    dwords, rest = divmod(length, DWORD_BYTES)
    if rest or not 0 < length <= MOST_PAYLOAD_BYTES:
        raise TlpError("length", f"whole double words, at most {MOST_PAYLOAD_BYTES} bytes", str(length))
    return dwords
