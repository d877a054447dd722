"""What a transport makes of messages: bindings to PCI DOE, MCTP and TCP (DSP0275 to DSP0277, DSP0287; PCIe 6.31)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tio.doe import PCI_SIG, DataObject, DoeError, ObjectType, parse_data_object
from tio.spdm.faults import MalformedMessage
from tio.spdm.message_layout import DOE_PADDING_BYTES


@dataclass(frozen=True, slots=True)
class Packet:
    """One SPDM message or, if ``secured``, one record. ``delay_us`` is how long to wait before it is sent."""

    payload: bytes
    secured: bool = False
    delay_us: int = 0


_MCTP_SPDM = 0x05
_MCTP_SECURED = 0x06
_TCP_VERSION = 1
_TCP_PLAIN = 0x05
_TCP_SECURED = 0x06
_TCP_HEADER_BYTES = 4
_TCP_LENGTH_BYTES = 2
LARGEST_TCP_BYTES = 0xFFFF - 2


@dataclass(frozen=True, slots=True)
class Binding:
    """How one transport carries packets. ``unwrap`` raises MalformedMessage for what it does not carry."""

    name: str
    wrap: Callable[[Packet], bytes]
    unwrap: Callable[[bytes], Packet]
    sequence_bytes: int = 0
    """How much of the sequence number a record shows."""
    enclose: Callable[[bytes], bytes] = bytes
    """What is inside of a record for a message."""
    disclose: Callable[[bytes], bytes] = bytes
    """The message inside of a record. Raises MalformedMessage."""
    excess_bytes: int = 0
    """How many bytes may follow a message or a record."""
    random_bytes: int = 0
    """The most random bytes inside a record."""


def _doe_wrap(packet: Packet) -> bytes:
    kind = ObjectType.SECURED_CMA_SPDM if packet.secured else ObjectType.CMA_SPDM
    return DataObject(PCI_SIG, kind, packet.payload).pack()


def _doe_unwrap(data: bytes) -> Packet:
    try:
        found = parse_data_object(data)
    except DoeError as error:
        raise MalformedMessage(f"data object {error.field}", "a whole object", f"{len(data)} bytes") from None
    if found.vendor_id != PCI_SIG or found.object_type not in {ObjectType.CMA_SPDM, ObjectType.SECURED_CMA_SPDM}:
        raise MalformedMessage("data object type", "SPDM", f"{found.vendor_id:#06x}/{found.object_type}")
    return Packet(found.payload, secured=found.object_type == ObjectType.SECURED_CMA_SPDM)


def _mctp_wrap(packet: Packet) -> bytes:
    return bytes((_MCTP_SECURED if packet.secured else _MCTP_SPDM,)) + packet.payload


def _mctp_unwrap(data: bytes) -> Packet:
    if data[:1] not in {bytes((_MCTP_SPDM,)), bytes((_MCTP_SECURED,))}:
        raise MalformedMessage("MCTP message type", "SPDM", data[:1].hex() or "nothing")
    return Packet(data[1:], secured=data[0] == _MCTP_SECURED)


def _tcp_wrap(packet: Packet) -> bytes:
    kind = _TCP_SECURED if packet.secured else _TCP_PLAIN
    length = len(packet.payload) + _TCP_HEADER_BYTES - _TCP_LENGTH_BYTES
    return length.to_bytes(_TCP_LENGTH_BYTES, "little") + bytes((_TCP_VERSION, kind)) + packet.payload


def _tcp_unwrap(data: bytes) -> Packet:
    if len(data) < _TCP_HEADER_BYTES:
        raise MalformedMessage("TCP binding header", f"{_TCP_HEADER_BYTES} bytes", len(data))
    length = int.from_bytes(data[:_TCP_LENGTH_BYTES], "little")
    if length != len(data) - _TCP_LENGTH_BYTES:
        raise MalformedMessage("TCP binding length", str(len(data) - _TCP_LENGTH_BYTES), length)
    if data[2] != _TCP_VERSION or data[3] not in {_TCP_PLAIN, _TCP_SECURED}:
        raise MalformedMessage("TCP binding header", "version 1 and an SPDM message", data[2:4].hex())
    return Packet(data[_TCP_HEADER_BYTES:], secured=data[3] == _TCP_SECURED)


def _mctp_disclose(content: bytes) -> bytes:
    if content[:1] != bytes((_MCTP_SPDM,)):
        raise MalformedMessage("record", "an SPDM message", content[:1].hex())
    return content[1:]


def _tcp_disclose(content: bytes) -> bytes:
    packet = _tcp_unwrap(content)
    if packet.secured:
        raise MalformedMessage("record", "a message", "a record")
    return packet.payload


PCI_DOE = Binding("pci-doe", _doe_wrap, _doe_unwrap, excess_bytes=DOE_PADDING_BYTES)
MCTP = Binding(
    "mctp",
    _mctp_wrap,
    _mctp_unwrap,
    sequence_bytes=2,
    enclose=lambda message: bytes((_MCTP_SPDM,)) + message,
    disclose=_mctp_disclose,
    random_bytes=32,
)
TCP = Binding(
    "tcp", _tcp_wrap, _tcp_unwrap, enclose=lambda message: _tcp_wrap(Packet(message)), disclose=_tcp_disclose
)
"""As DMTF's library has it, a message keeps its header of the binding inside of a record."""


class Transport(Enum):
    """Bindings by name."""

    PCI_DOE = PCI_DOE
    MCTP = MCTP
    TCP = TCP
