"""What clients and servers of a key-value store say to each other: one request or answer to an Ethernet frame.

In the clear: whoever carries the frames can read and change them, and a client notices
the latter by what it is answered.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from node.mac_address import MAC_BYTES

ETHERTYPE = b"\x88\xb5"
"""For local experiments (IEEE 802, section 9.2.3)."""
_HEADER_BYTES = 2 * MAC_BYTES + len(ETHERTYPE)
_MESSAGE = struct.Struct("<IQBBHQ")
_MAGIC = 0x5356_4B31
MOST_VALUE_BYTES = 1472


class Kind(IntEnum):
    """What is asked."""

    GET = 1
    PUT = 2


class Answer(IntEnum):
    """What comes back; a request has REQUEST."""

    REQUEST = 0
    DONE = 1
    ABSENT = 2
    """No record has this key."""
    REFUSED = 3
    """No such key can be, or no such value."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer. ``number`` is the client's own and comes back."""

    to: bytes
    sender: bytes
    number: int
    kind: Kind
    answer: Answer
    key: int
    value: bytes = b""

    def pack(self) -> bytes:
        """The frame."""
        fields = _MESSAGE.pack(_MAGIC, self.number, self.kind, self.answer, len(self.value), self.key)
        return b"".join((self.to, self.sender, ETHERTYPE, fields, self.value))

    def answered(self, answer: Answer, value: bytes = b"") -> Message:
        """The answer to it."""
        return Message(self.sender, self.to, self.number, self.kind, answer, self.key, value)


def parse(frame: bytes) -> Message | None:
    """The message in a frame; None for whatever is none."""
    start = _HEADER_BYTES + _MESSAGE.size
    if len(frame) < start or frame[2 * MAC_BYTES : _HEADER_BYTES] != ETHERTYPE:
        return None
    magic, number, kind, answer, length, key = _MESSAGE.unpack_from(frame, _HEADER_BYTES)
    value = frame[start:]
    if magic != _MAGIC or kind not in _KINDS or answer not in _ANSWERS or length != len(value):
        return None
    to, sender = frame[:MAC_BYTES], frame[MAC_BYTES : 2 * MAC_BYTES]
    return Message(to, sender, number, Kind(kind), Answer(answer), key, value)


_KINDS, _ANSWERS = frozenset(Kind), frozenset(Answer)
