"""Messages around a connection: versions, errors, chunks, vendor-defined ones (DSP0274, 10.3, 10.9, 10.25, 10.26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tio.spdm.codes import Request, Response
from tio.spdm.message_layout import Message, counted, number, octets


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersion(Message):
    """GET_VERSION; its own version is always 1.0."""

    CODE: ClassVar[int] = Request.GET_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionList(Message):
    """VERSION. An entry is the version in its upper byte, update and alpha numbers below."""

    CODE: ClassVar[int] = Response.VERSION
    count: int = number(1, before=3)
    entries: bytes = octets("count", unit=2)

    @classmethod
    def of(cls, versions: tuple[int, ...]) -> VersionList:
        """The list of some versions."""
        return cls(count=len(versions), entries=b"".join([bytes((0, version)) for version in versions]))

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are listed; alpha ones are no versions."""
        pairs = zip(self.entries[::2], self.entries[1::2], strict=True)
        return tuple(high for low, high in pairs if not low & 0xF)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorMessage(Message):
    """ERROR; ``extended`` is what follows for a few codes."""

    CODE: ClassVar[int] = Response.ERROR
    code: int = number(1)
    data: int = number(1)


NOT_READY_BYTES = 4
"""RDTExponent, request code, token, RDTM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RespondIfReady(Message):
    """RESPOND_IF_READY."""

    CODE: ClassVar[int] = Request.RESPOND_IF_READY
    request_code: int = number(1)
    token: int = number(1)


LAST_CHUNK = 0x01
EARLY_ERROR = 0x01
CHUNK_HEAD_BYTES = 12
FIRST_CHUNK_HEAD_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSend(Message):
    """CHUNK_SEND. In the first chunk ``data`` begins with the whole message's size, a u32."""

    CODE: ClassVar[int] = Request.CHUNK_SEND
    attributes: int = number(1)
    handle: int = number(1)
    sequence: int = number(2)
    size: int = number(4, before=2)
    data: bytes = octets("size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSendFirst(Message):
    """CHUNK_SEND with sequence number 0."""

    CODE: ClassVar[int] = Request.CHUNK_SEND
    attributes: int = number(1)
    handle: int = number(1)
    sequence: int = number(2)
    size: int = number(4, before=2)
    message_bytes: int = number(4)
    data: bytes = octets("size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSendAck(Message):
    """CHUNK_SEND_ACK; the answer to the whole message follows the last one."""

    CODE: ClassVar[int] = Response.CHUNK_SEND_ACK
    attributes: int = number(1)
    handle: int = number(1)
    sequence: int = number(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGet(Message):
    """CHUNK_GET."""

    CODE: ClassVar[int] = Request.CHUNK_GET
    handle: int = number(1, before=1)
    sequence: int = number(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResponse(ChunkSend):
    """CHUNK_RESPONSE, laid out as CHUNK_SEND."""

    CODE: ClassVar[int] = Response.CHUNK_RESPONSE


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResponseFirst(ChunkSendFirst):
    """CHUNK_RESPONSE with sequence number 0."""

    CODE: ClassVar[int] = Response.CHUNK_RESPONSE


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorDefinedRequest(Message):
    """VENDOR_DEFINED_REQUEST: a standards body, a vendor in it, and what both sides understand."""

    CODE: ClassVar[int] = Request.VENDOR_DEFINED
    standard: int = number(2, before=2)
    vendor_bytes: int = number(1)
    vendor: bytes = octets("vendor_bytes")
    payload: bytes = counted()


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorDefinedResponse(VendorDefinedRequest):
    """VENDOR_DEFINED_RESPONSE."""

    CODE: ClassVar[int] = Response.VENDOR_DEFINED


PCI_SIG_STANDARD = 3
PCI_SIG_VENDOR = b"\x01\x00"
"""SPDM's number of PCI-SIG as a registry, and its vendor id there."""


def pack_error(version: int, code: int, data: int = 0, extended: bytes = b"") -> bytes:
    """An ERROR message."""
    return ErrorMessage(code=code, data=data).pack(version) + extended
