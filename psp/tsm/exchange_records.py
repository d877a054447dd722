"""What lies in buffers between firmware and host: a header, and one data object (``spec/tio/tio-overview.md``, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.status import PspError, Status
from tio.spdm.binding import Packet

PAYLOAD_UNIT = 32
"""Payloads of buffers are whole units; what a data object does not fill is zero."""
ENCRYPTED = 1 << 0
"""Flag of a buffer's header. Nothing that firmware leaves in a buffer needs it here."""
_MAJOR, _MINOR = 1, 0


class ObjectId(IntEnum):
    """What a data object is."""

    REQUEST = 1
    RESPONSE = 2
    CERTIFICATES = 4
    MEASUREMENTS = 5
    REPORT = 6


class DataType(IntEnum):
    """How a message travels: the type of its data object in PCI DOE."""

    SPDM = 1
    SECURED_SPDM = 2


@dataclass(frozen=True, slots=True)
class BufferHeader(ByteLayout):
    """Head of every buffer: ``capacity`` is the whole buffer, ``payload`` what lies behind the header."""

    SIZE: ClassVar[int] = 0x40
    capacity: int = at(0x00, 4)
    payload: int = at(0x04, 4)
    flags: int = at(0x08, 4)
    iv: bytes = at(0x10, 16, bytes(16))
    tag: bytes = at(0x20, 16, bytes(16))


@dataclass(frozen=True, slots=True)
class MessageObject(ByteLayout):
    """Head of a request or response; ``length`` is with it."""

    SIZE: ClassVar[int] = 0x10
    object_id: int = at(0x00, 4)
    length: int = at(0x04, 4)
    minor: int = at(0x08, 1, _MINOR)
    major: int = at(0x09, 1, _MAJOR)
    data_type: int = at(0x0A, 1)


@dataclass(frozen=True, slots=True)
class ResultObject(ByteLayout):
    """Head of certificates, measurements or a report; ``length`` is with it."""

    SIZE: ClassVar[int] = 0x20
    object_id: int = at(0x00, 4)
    length: int = at(0x04, 4)
    minor: int = at(0x08, 1, _MINOR)
    major: int = at(0x09, 1, _MAJOR)
    requester: int = at(0x10, 2)
    segment: int = at(0x12, 1)
    kind: int = at(0x13, 1, 1)
    """The only kind that there is of each."""


def padded(length: int) -> int:
    """A length in whole units."""
    return -(-length // PAYLOAD_UNIT) * PAYLOAD_UNIT


def pack_message(object_id: ObjectId, packet: Packet) -> bytes:
    """The data object of a packet."""
    kind = DataType.SECURED_SPDM if packet.secured else DataType.SPDM
    length = MessageObject.SIZE + len(packet.payload)
    return MessageObject(object_id, length, data_type=kind).pack() + packet.payload


def parse_message(object_id: ObjectId, data: bytes) -> Packet:
    """The packet of a data object; what follows its length is padding.

    Raises PspError(RESYNC_REQ) for what is no such object.
    """
    if len(data) < MessageObject.SIZE:
        raise PspError(Status.RESYNC_REQ)
    head = MessageObject.parse(data)
    known = (head.object_id, head.major, head.minor) == (object_id, _MAJOR, _MINOR)
    if not known or not MessageObject.SIZE <= head.length <= len(data) or len(data) - head.length >= PAYLOAD_UNIT:
        raise PspError(Status.RESYNC_REQ)
    if head.data_type not in tuple(DataType):
        raise PspError(Status.RESYNC_REQ)
    payload = data[MessageObject.SIZE : head.length]
    return Packet(payload, secured=head.data_type == DataType.SECURED_SPDM)
