"""PCI Data Object Exchange: framing of data objects, and the discovery protocol.

Sources: PCIe base specification 6.1, section 6.30; the opening that spdm-emu
puts on the wire is a test vector. The length of a message inside an object is
not carried: an object's payload is a multiple of 4 bytes, and the protocol
above must know how many of the last three count.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

PCI_SIG = 0x0001
DISCOVERY_VERSION = 0

_HEADER = struct.Struct("<HBxI")
_DWORD_BYTES = 4
_LENGTH_BITS = 18
_MAX_DWORDS = 1 << _LENGTH_BITS
_LENGTH_MASK = _MAX_DWORDS - 1

MAX_PAYLOAD_BYTES = _MAX_DWORDS * _DWORD_BYTES - _HEADER.size
"""1 MiB with the header; its length field is then 0."""


class ObjectType(IntEnum):
    """Data object types of PCI-SIG (vendor 0001)."""

    DISCOVERY = 0
    CMA_SPDM = 1
    SECURED_CMA_SPDM = 2
    CMA_SPDM_CONNECTION_ID = 3
    SECURED_CMA_SPDM_CONNECTION_ID = 4


class DoeError(ValueError):
    """Bytes that are no data object. Names the field and what was expected."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"DOE {field}: expected {expected}, found {found}")
        self.field = field


@dataclass(frozen=True, slots=True)
class DataObject:
    """One object. ``payload`` is what is inside, with padding if it was parsed."""

    vendor_id: int
    object_type: int
    payload: bytes

    def pack(self) -> bytes:
        """The object's bytes, zero-padded to a DWORD; ValueError for one that cannot exist."""
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload: expected at most {MAX_PAYLOAD_BYTES} bytes, found {len(self.payload)}")
        if not 0 <= self.vendor_id <= 0xFFFF or not 0 <= self.object_type <= 0xFF:
            raise ValueError(f"object: expected u16 vendor and u8 type, found {self.vendor_id}, {self.object_type}")
        padding = bytes(-len(self.payload) % _DWORD_BYTES)
        dwords = (_HEADER.size + len(self.payload) + len(padding)) // _DWORD_BYTES
        return _HEADER.pack(self.vendor_id, self.object_type, dwords & _LENGTH_MASK) + self.payload + padding


def parse_data_object(data: bytes) -> DataObject:
    """The object that ``data`` is, whole; reserved bits are ignored, as receivers must."""
    if len(data) < _HEADER.size:
        raise DoeError("header", f"{_HEADER.size} bytes", str(len(data)))
    vendor_id, object_type, word = _HEADER.unpack_from(data)
    size = ((word & _LENGTH_MASK) or _MAX_DWORDS) * _DWORD_BYTES
    if size < _HEADER.size:
        raise DoeError("length", "at least 2 DWORDs", str(size // _DWORD_BYTES))
    if size != len(data):
        raise DoeError("length", f"{len(data)} bytes as received", str(size))
    return DataObject(vendor_id, object_type, bytes(data[_HEADER.size :]))


@dataclass(frozen=True, slots=True)
class Protocol:
    """One row of discovery: what an instance speaks."""

    vendor_id: int
    object_type: int


_DISCOVERY_REQUEST = struct.Struct("<BBxx")
_DISCOVERY_RESPONSE = struct.Struct("<HBB")

NO_PROTOCOL = 0xFFFF
"""Vendor id of the answer to an index that names nothing."""


def discovery_request(index: int) -> DataObject:
    """Ask which protocol an instance has at ``index``."""
    return DataObject(PCI_SIG, ObjectType.DISCOVERY, _DISCOVERY_REQUEST.pack(index, DISCOVERY_VERSION))


def parse_discovery_response(answer: DataObject) -> tuple[Protocol, int]:
    """The protocol at the index that was asked for, and the next index; 0 ends the list."""
    if (answer.vendor_id, answer.object_type) != (PCI_SIG, ObjectType.DISCOVERY):
        raise DoeError("type", "a discovery object", f"{answer.vendor_id:#06x}/{answer.object_type}")
    if len(answer.payload) != _DISCOVERY_RESPONSE.size:
        raise DoeError("discovery response", f"{_DISCOVERY_RESPONSE.size} bytes", str(len(answer.payload)))
    vendor_id, object_type, following = _DISCOVERY_RESPONSE.unpack(answer.payload)
    return Protocol(vendor_id, object_type), following


class DiscoveryTable:
    """The protocols of one DOE instance, discovery itself first, as every instance must have it."""

    def __init__(self, object_types: Sequence[int]) -> None:
        self._rows = (Protocol(PCI_SIG, ObjectType.DISCOVERY), *(Protocol(PCI_SIG, kind) for kind in object_types))
        if len(self._rows) > 0xFF:
            raise ValueError(f"DOE discovery: expected at most 254 types, found {len(object_types)}")

    def answer(self, request: DataObject) -> DataObject | None:
        """The response to a discovery request; None for anything else, which an instance drops."""
        if (request.vendor_id, request.object_type) != (PCI_SIG, ObjectType.DISCOVERY):
            return None
        if len(request.payload) != _DISCOVERY_REQUEST.size:
            return None
        index, _version = _DISCOVERY_REQUEST.unpack(request.payload)
        if index >= len(self._rows):
            return DataObject(PCI_SIG, ObjectType.DISCOVERY, _DISCOVERY_RESPONSE.pack(NO_PROTOCOL, 0, 0))
        row = self._rows[index]
        following = (index + 1) % len(self._rows)
        body = _DISCOVERY_RESPONSE.pack(row.vendor_id, row.object_type, following)
        return DataObject(PCI_SIG, ObjectType.DISCOVERY, body)
