"""The framing of DMTF's emulators: three big-endian words before each message on a TCP stream.

Source: spdm-emu, as seen on the wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from tio.spdm import MCTP, PCI_DOE, TCP, Binding

HEAD = struct.Struct(">III")
MOST_PAYLOAD_BYTES = 1 << 17
"""No message here is longer; who announces more is hung up on."""
CLIENT_HELLO, SERVER_HELLO = b"Client Hello!\0", b"Server Hello!\0"


class Command(IntEnum):
    """First word."""

    NORMAL = 0x0001
    OOB_ENCAP_KEY_UPDATE = 0x8001
    CONTINUE = 0xFFFD
    SHUTDOWN = 0xFFFE
    UNKNOWN = 0xFFFF
    TEST = 0xDEAD


TRANSPORTS: dict[str, tuple[int, Binding]] = {"mctp": (1, MCTP), "pci-doe": (2, PCI_DOE), "tcp": (3, TCP)}
"""Second word and binding, by the name that users type."""


class FrameError(Exception):
    """Bytes that are no frame, or one that is too long."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of the stream."""

    command: int
    transport: int
    payload: bytes = b""

    def pack(self) -> bytes:
        """The frame's bytes."""
        return HEAD.pack(self.command, self.transport, len(self.payload)) + self.payload


def parse_head(data: bytes) -> tuple[int, int, int]:
    """Command, transport and payload size. Raises FrameError."""
    command, transport, size = HEAD.unpack(data)
    if size > MOST_PAYLOAD_BYTES:
        raise FrameError(f"frame: expected at most {MOST_PAYLOAD_BYTES} bytes, found {size}")
    return command, transport, size
