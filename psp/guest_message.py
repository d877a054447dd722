"""Guest messages: how a guest and the security processor speak through a hypervisor that can do nothing but lose them.

A message is a header and a payload, sealed with AES-256-GCM under one of the four keys that
firmware gives a guest at launch. What is authenticated are the header from its algorithm on
and the payload; the nonce is the sequence number, so a number that came twice with different
payloads would give the key away. Requests have odd numbers, answers the even ones after them.

Both sides build and open messages with what is here; it knows neither which of them it works
for nor what the messages say. Source: SEV-SNP firmware ABI, section 8.26 and chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from psp.byte_layout import ByteLayout, at

HEADER_BYTES = 0x60
MOST_PAYLOAD_BYTES = 4000
"""A header and a payload are one page at most."""
AES_256_GCM = 1
HEADER_VERSION = 1
VMPCKS = 4
LAST_SEQUENCE = (1 << 64) - 1
TAG_BYTES = 16
_AUTHENTICATED = slice(0x30, HEADER_BYTES)


class MessageType(IntEnum):
    """MSG_TYPE; an answer has the number after its request's."""

    CPUID_REQ = 0x01
    CPUID_RSP = 0x02
    KEY_REQ = 0x03
    KEY_RSP = 0x04
    REPORT_REQ = 0x05
    REPORT_RSP = 0x06
    EXPORT_REQ = 0x07
    EXPORT_RSP = 0x08
    IMPORT_REQ = 0x09
    IMPORT_RSP = 0x0A
    ABSORB_REQ = 0x0B
    ABSORB_RSP = 0x0C
    VMRK_REQ = 0x0D
    VMRK_RSP = 0x0E
    ABSORB_NOMA_REQ = 0x0F
    ABSORB_NOMA_RSP = 0x10
    TSC_INFO_REQ = 0x11
    TSC_INFO_RSP = 0x12
    TIO_TDI_INFO_REQ = 0x13
    TIO_TDI_INFO_RSP = 0x14
    TIO_MMIO_VALIDATE_REQ = 0x15
    TIO_MMIO_VALIDATE_RSP = 0x16
    TIO_MMIO_CONFIG_REQ = 0x17
    TIO_MMIO_CONFIG_RSP = 0x18
    TIO_SDTE_WRITE_REQ = 0x19
    TIO_SDTE_WRITE_RSP = 0x1A


class BadMessage(Exception):
    """A message whose header is malformed, or that is not sealed as it says."""


@dataclass(frozen=True, slots=True)
class MessageHeader(ByteLayout):
    """What stands before a payload; the tag takes 16 of its 32 bytes, and all that is reserved is zero."""

    SIZE: ClassVar[int] = HEADER_BYTES
    tag: bytes = at(0x00, 32, bytes(32))
    sequence: int = at(0x20, 8)
    reserved: int = at(0x28, 8)
    algorithm: int = at(0x30, 1, AES_256_GCM)
    header_version: int = at(0x31, 1, HEADER_VERSION)
    header_bytes: int = at(0x32, 2, HEADER_BYTES)
    message_type: int = at(0x34, 1)
    message_version: int = at(0x35, 1)
    payload_bytes: int = at(0x36, 2)
    more_reserved: int = at(0x38, 4)
    vmpck: int = at(0x3C, 1)
    rest: bytes = at(0x3D, 0x23, bytes(0x23))

    @classmethod
    def checked(cls, data: bytes) -> MessageHeader:
        """The header of a page. Raises BadMessage for one that no sender could mean.

        That reserved bytes outside of what is authenticated must be zero, too, is the laboratory's choice.
        """
        header = cls.parse(data)
        if (
            header.algorithm != AES_256_GCM
            or header.header_version != HEADER_VERSION
            or header.header_bytes != HEADER_BYTES
            or header.payload_bytes > MOST_PAYLOAD_BYTES
            or header.vmpck >= VMPCKS
            or header.reserved
            or header.more_reserved
            or any(header.rest)
            or any(header.tag[TAG_BYTES:])
        ):
            raise BadMessage
        return header


class MessageKey:
    """A VMPCK at work, in the hands of either side."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, vmpck: int, sequence: int, message_type: int, version: int, payload: bytes) -> bytes:
        """A message as it is laid into a shared page."""
        head = MessageHeader.packed(
            b"", sequence, 0, AES_256_GCM, HEADER_VERSION, HEADER_BYTES, message_type, version, len(payload), 0,
            vmpck, b"",
        )  # fmt: skip
        sealed = self._cipher.encrypt(_nonce(sequence), payload, head[_AUTHENTICATED])
        return sealed[-TAG_BYTES:] + head[TAG_BYTES:] + sealed[:-TAG_BYTES]

    def unseal(self, header: MessageHeader, message: bytes) -> bytes:
        """The payload of a message with this header. Raises BadMessage unless it is what the key's holder sealed."""
        sealed = message[HEADER_BYTES : HEADER_BYTES + header.payload_bytes] + header.tag[:TAG_BYTES]
        try:
            return self._cipher.decrypt(_nonce(header.sequence), sealed, message[_AUTHENTICATED])
        except InvalidTag:
            raise BadMessage from None


def _nonce(sequence: int) -> bytes:
    return sequence.to_bytes(8, "little") + bytes(4)
