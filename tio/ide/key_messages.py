"""IDE_KM: the messages that read a port's IDE registers, program keys and start and stop them.

They travel inside secured messages of SPDM. Source: PCI Express base specification, 6.33.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from tio.ide.keys import KEY_BYTES, Direction
from tio.ide.tlp import SubStream

_IFV = struct.Struct("<II")
"""Upper double word first, as spdm-emu sends it."""
_QUERY = struct.Struct("<BxB")
_QUERY_RESP = struct.Struct("<BxBBBBB")
_KEY_OBJECT = struct.Struct("<B2xBBBB")
"""Object id, stream id, status or reserved, key and sub-stream, port index."""


class ObjectId(IntEnum):
    """First byte of a message."""

    QUERY = 0x00
    QUERY_RESP = 0x01
    KEY_PROG = 0x02
    KP_ACK = 0x03
    K_SET_GO = 0x04
    K_SET_STOP = 0x05
    K_GOSTOP_ACK = 0x06


class KeyStatus(IntEnum):
    """What KP_ACK says."""

    SUCCESS = 0
    INCORRECT_LENGTH = 1
    UNSUPPORTED_PORT_INDEX = 2
    UNSUPPORTED_VALUE = 3
    UNSPECIFIED_FAILURE = 4


class KeyMessageError(ValueError):
    """Bytes that are no message of IDE_KM."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"IDE_KM {field}: expected {expected}, found {found}")
        self.field = field


@dataclass(frozen=True, slots=True)
class KeySlot:
    """The byte that names a key: set in bit 0, direction in bit 1, sub-stream in bits 7:4."""

    key_set: int
    direction: Direction
    sub_stream: int

    def pack(self) -> int:
        """The byte."""
        return self.key_set | self.direction << 1 | self.sub_stream << 4

    @staticmethod
    def of(octet: int) -> KeySlot:
        """The slot that a byte names; bits 3:2 are reserved."""
        return KeySlot(octet & 1, Direction(octet >> 1 & 1), octet >> 4)


@dataclass(frozen=True, slots=True)
class KeyMessage:
    """KEY_PROG, KP_ACK, K_SET_GO, K_SET_STOP or K_GOSTOP_ACK. ``key`` and ``initial`` are KEY_PROG's alone."""

    object_id: ObjectId
    stream_id: int
    slot: KeySlot
    port_index: int
    status: int = 0
    key: bytes = b""
    """As AES takes it."""
    initial: int = 0

    def pack(self) -> bytes:
        """The message's bytes. A key goes with its last byte first: the highest double word holds AES key byte 0."""
        head = _KEY_OBJECT.pack(self.object_id, self.stream_id, self.status, self.slot.pack(), self.port_index)
        if self.object_id is not ObjectId.KEY_PROG:
            return head
        return head + self.key[::-1] + _IFV.pack(self.initial >> 32, self.initial & 0xFFFF_FFFF)


def parse_key_message(data: bytes) -> KeyMessage:
    """The message that ``data`` is; reserved fields are ignored. Raises KeyMessageError."""
    known = (ObjectId.KEY_PROG, ObjectId.KP_ACK, ObjectId.K_SET_GO, ObjectId.K_SET_STOP, ObjectId.K_GOSTOP_ACK)
    if not data or data[0] not in known:
        raise KeyMessageError("object id", "one of keys", data[:1].hex() or "nothing")
    object_id = ObjectId(data[0])
    with_key = object_id is ObjectId.KEY_PROG
    size = _KEY_OBJECT.size + (KEY_BYTES + _IFV.size) * with_key
    if len(data) != size:
        raise KeyMessageError("length", f"{size} bytes", str(len(data)))
    _, stream_id, status, slot, port_index = _KEY_OBJECT.unpack_from(data)
    key = data[_KEY_OBJECT.size : _KEY_OBJECT.size + KEY_BYTES][::-1]
    upper, lower = _IFV.unpack_from(data, _KEY_OBJECT.size + KEY_BYTES) if with_key else (0, 0)
    initial = upper << 32 | lower
    return KeyMessage(object_id, stream_id, KeySlot.of(slot), port_index, status, key, initial)


def query(port_index: int) -> bytes:
    """Ask for a port's IDE registers."""
    return _QUERY.pack(ObjectId.QUERY, port_index)


def parse_query(data: bytes) -> int:
    """The port index of a QUERY. Raises KeyMessageError."""
    if len(data) != _QUERY.size or data[0] != ObjectId.QUERY:
        raise KeyMessageError("QUERY", f"{_QUERY.size} bytes", data.hex())
    return int(_QUERY.unpack(data)[1])


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """Where a port is, how many there are, and its IDE extended capability as double words."""

    port_index: int
    device_function: int
    bus: int
    segment: int
    max_port_index: int
    registers: tuple[int, ...]

    def pack(self) -> bytes:
        """The message's bytes."""
        head = _QUERY_RESP.pack(
            ObjectId.QUERY_RESP, self.port_index, self.device_function, self.bus, self.segment, self.max_port_index
        )
        return head + struct.pack(f"<{len(self.registers)}I", *self.registers)


def parse_query_response(data: bytes) -> QueryResponse:
    """The QUERY_RESP that ``data`` is. Raises KeyMessageError."""
    size = len(data) - _QUERY_RESP.size
    if size < 0 or size % 4 or data[0] != ObjectId.QUERY_RESP:
        raise KeyMessageError("QUERY_RESP", f"{_QUERY_RESP.size} bytes and whole double words", f"{len(data)} bytes")
    _, port_index, device_function, bus, segment, max_port_index = _QUERY_RESP.unpack_from(data)
    registers = struct.unpack_from(f"<{size // 4}I", data, _QUERY_RESP.size)
    return QueryResponse(port_index, device_function, bus, segment, max_port_index, registers)


def sub_stream_of(slot: KeySlot) -> SubStream | None:
    """The sub-stream that a slot names; None for a reserved one."""
    return SubStream(slot.sub_stream) if slot.sub_stream in tuple(SubStream) else None
