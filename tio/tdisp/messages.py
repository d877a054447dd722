"""TDISP's messages: sixteen bytes of header, and what follows by message.

Source: PCI Express base specification 6.x, chapter 11.3. All integers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

VERSION = 0x10
HEADER_BYTES = 16
NONCE_BYTES = 32
_HEADER = struct.Struct("<BBxxI8s")
_LOCK = struct.Struct("<HBxQQ")
_PORTION = struct.Struct("<HH")
_CAPABILITIES = struct.Struct("<I16sH3xBBB")
_ERROR = struct.Struct("<II")


class Request(IntEnum):
    """Requests of a TSM (table 11-4)."""

    GET_TDISP_VERSION = 0x81
    GET_TDISP_CAPABILITIES = 0x82
    LOCK_INTERFACE_REQUEST = 0x83
    GET_DEVICE_INTERFACE_REPORT = 0x84
    GET_DEVICE_INTERFACE_STATE = 0x85
    START_INTERFACE_REQUEST = 0x86
    STOP_INTERFACE_REQUEST = 0x87
    BIND_P2P_STREAM_REQUEST = 0x88
    UNBIND_P2P_STREAM_REQUEST = 0x89
    SET_MMIO_ATTRIBUTE_REQUEST = 0x8A
    VDM_REQUEST = 0x8B


class Response(IntEnum):
    """Responses of a DSM (table 11-5)."""

    TDISP_VERSION = 0x01
    TDISP_CAPABILITIES = 0x02
    LOCK_INTERFACE_RESPONSE = 0x03
    DEVICE_INTERFACE_REPORT = 0x04
    DEVICE_INTERFACE_STATE = 0x05
    START_INTERFACE_RESPONSE = 0x06
    STOP_INTERFACE_RESPONSE = 0x07
    BIND_P2P_STREAM_RESPONSE = 0x08
    UNBIND_P2P_STREAM_RESPONSE = 0x09
    SET_MMIO_ATTRIBUTE_RESPONSE = 0x0A
    VDM_RESPONSE = 0x0B
    TDISP_ERROR = 0x7F


class ErrorCode(IntEnum):
    """What TDISP_ERROR says (table 11-27)."""

    INVALID_REQUEST = 0x0001
    BUSY = 0x0003
    INVALID_INTERFACE_STATE = 0x0004
    UNSPECIFIED = 0x0005
    UNSUPPORTED_REQUEST = 0x0007
    VERSION_MISMATCH = 0x0041
    VENDOR_SPECIFIC = 0x00FF
    INVALID_INTERFACE = 0x0101
    INVALID_NONCE = 0x0102
    INSUFFICIENT_ENTROPY = 0x0103
    INVALID_DEVICE_CONFIGURATION = 0x0104


class TdiState(IntEnum):
    """As DEVICE_INTERFACE_STATE says it."""

    CONFIG_UNLOCKED = 0
    CONFIG_LOCKED = 1
    RUN = 2
    ERROR = 3


class LockFlags(IntFlag):
    """FLAGS of LOCK_INTERFACE_REQUEST."""

    NO_FW_UPDATE = 1 << 0
    SYSTEM_CACHE_LINE_SIZE = 1 << 1
    """Set for 128 bytes."""
    LOCK_MSIX = 1 << 2
    BIND_P2P = 1 << 3
    ALL_REQUEST_REDIRECT = 1 << 4


class TdispError(Exception):
    """A request that a DSM refuses, or a response that a TSM cannot take."""

    def __init__(self, code: ErrorCode, why: str, data: int = 0) -> None:
        super().__init__(f"{code.name}: {why}")
        self.code = code
        self.data = data


@dataclass(frozen=True, slots=True)
class InterfaceId:
    """Which TDI: the requester id of its function, and its segment where that is said."""

    requester: int
    segment: int | None = None

    def pack(self) -> bytes:
        """FUNCTION_ID and the reserved rest, 12 bytes."""
        segment = 0 if self.segment is None else self.segment << 16 | 1 << 24
        return (self.requester | segment).to_bytes(4, "little") + bytes(8)


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``interface`` are the 12 bytes that every answer gives back."""

    code: int
    interface: bytes
    payload: bytes = b""
    version: int = VERSION

    def pack(self) -> bytes:
        """The message's bytes."""
        function = int.from_bytes(self.interface[:4], "little")
        return _HEADER.pack(self.version, self.code, function, self.interface[4:]) + self.payload


def parse_message(data: bytes) -> Message:
    """The message that ``data`` is. Raises TdispError for less than a header."""
    if len(data) < HEADER_BYTES:
        raise TdispError(ErrorCode.INVALID_REQUEST, f"expected {HEADER_BYTES} bytes of header, found {len(data)}")
    version, code, _, _ = _HEADER.unpack_from(data)
    return Message(code, data[4:HEADER_BYTES], data[HEADER_BYTES:], version)


@dataclass(frozen=True, slots=True)
class LockRequest:
    """Payload of LOCK_INTERFACE_REQUEST. ``mmio_reporting_offset`` is signed and of whole pages."""

    flags: int
    stream_id: int
    mmio_reporting_offset: int = 0
    bind_p2p_address_mask: int = 0

    def pack(self) -> bytes:
        """20 bytes."""
        offset = self.mmio_reporting_offset & (1 << 64) - 1
        return _LOCK.pack(self.flags, self.stream_id, offset, self.bind_p2p_address_mask)

    @staticmethod
    def of(payload: bytes) -> LockRequest:
        """The request in 20 bytes."""
        flags, stream_id, offset, mask = _LOCK.unpack(payload)
        return LockRequest(flags, stream_id, offset - (1 << 64) if offset >> 63 else offset, mask)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Payload of TDISP_CAPABILITIES."""

    requests: frozenset[Request]
    lock_flags: int
    address_bits: int = 52

    def pack(self) -> bytes:
        """28 bytes; one request may wait at a time, for this TDI and for the device."""
        bitmap = sum([1 << (one & 0x7F) for one in self.requests])
        return _CAPABILITIES.pack(0, bitmap.to_bytes(16, "little"), self.lock_flags, self.address_bits, 0, 0)

    @staticmethod
    def of(payload: bytes) -> Capabilities:
        """The capabilities in 28 bytes. Raises TdispError."""
        if len(payload) != _CAPABILITIES.size:
            raise TdispError(ErrorCode.UNSPECIFIED, f"expected {_CAPABILITIES.size} bytes of capabilities")
        _, bitmap, flags, bits, _, _ = _CAPABILITIES.unpack(payload)
        known = int.from_bytes(bitmap, "little")
        return Capabilities(frozenset(one for one in Request if known >> (one & 0x7F) & 1), flags, bits)


def report_request(offset: int, length: int) -> bytes:
    """Payload of GET_DEVICE_INTERFACE_REPORT."""
    return _PORTION.pack(offset, length)


def report_range(payload: bytes) -> tuple[int, int]:
    """Offset and length that are asked for."""
    offset, length = _PORTION.unpack(payload)
    return offset, length


def report_response(portion: bytes, remainder: int) -> bytes:
    """Payload of DEVICE_INTERFACE_REPORT."""
    return _PORTION.pack(len(portion), remainder) + portion


def report_portion(payload: bytes) -> tuple[bytes, int]:
    """A portion of a report, and how much remains. Raises TdispError."""
    if len(payload) < _PORTION.size:
        raise TdispError(ErrorCode.UNSPECIFIED, "expected the length of a portion")
    length, remainder = _PORTION.unpack_from(payload)
    portion = payload[_PORTION.size :]
    if len(portion) != length:
        raise TdispError(ErrorCode.UNSPECIFIED, f"expected {length} bytes of report, found {len(portion)}")
    return portion, remainder


def error_payload(code: int, data: int) -> bytes:
    """Payload of TDISP_ERROR."""
    return _ERROR.pack(code, data)


def error_of(payload: bytes) -> TdispError:
    """The error that a TDISP_ERROR tells."""
    if len(payload) < _ERROR.size:
        return TdispError(ErrorCode.UNSPECIFIED, "an error without a code")
    code, data = _ERROR.unpack_from(payload)
    known = ErrorCode(code) if code in tuple(ErrorCode) else ErrorCode.UNSPECIFIED
    return TdispError(known, f"the device refuses ({code:#x}, {data:#x})", data)
