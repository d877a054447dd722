"""What a guest and a relying party say to each other, each message an Ethernet frame.

    guest            HELLO    a number of its own, so that late answers are not taken for new ones
    relying party    NONCE    32 bytes
    guest            PIECE    its evidence: channel key, report, table of certificates; in pieces, in any order
    relying party    KEY      the secret, sealed for the channel key
                     REFUSED  the code of the reason

Nothing here is secret or vouched for: whoever carries the frames reads and changes them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from node.mac_address import MAC_BYTES

ETHERTYPE = b"\x88\xb5"
"""For local experiments (IEEE 802, section 9.2.3)."""
PIECE_BYTES = 1400
MOST_EVIDENCE_BYTES = 20 << 10
MOST_PIECES = -(-MOST_EVIDENCE_BYTES // PIECE_BYTES)
_START = 2 * MAC_BYTES + len(ETHERTYPE)
_MESSAGE = struct.Struct("<IIHHII")
_MAGIC = 0x5356_5250


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1
    NONCE = 2
    PIECE = 3
    KEY = 4
    REFUSED = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``offset`` and ``total`` are of evidence, and zero elsewhere."""

    to: bytes
    sender: bytes
    number: int
    kind: Kind
    data: bytes = b""
    offset: int = 0
    total: int = 0

    def pack(self) -> bytes:
        """The frame."""
        head = _MESSAGE.pack(_MAGIC, self.number, self.kind, len(self.data), self.offset, self.total)
        return b"".join((self.to, self.sender, ETHERTYPE, head, self.data))

    def answered(self, kind: Kind, data: bytes) -> Message:
        """An answer to it."""
        return Message(self.sender, self.to, self.number, kind, data)


def parse(frame: bytes) -> Message | None:
    """The message in a frame; None for whatever is none."""
    start = _START + _MESSAGE.size
    if len(frame) < start or frame[2 * MAC_BYTES : _START] != ETHERTYPE:
        return None
    magic, number, kind, length, offset, total = _MESSAGE.unpack_from(frame, _START)
    data = frame[start:]
    if magic != _MAGIC or kind not in _KINDS or length != len(data):
        return None
    if kind == Kind.PIECE:
        expected = min(PIECE_BYTES, total - offset)
        if total > MOST_EVIDENCE_BYTES or offset % PIECE_BYTES or expected <= 0 or length != expected:
            return None
    elif offset or total:
        return None
    return Message(frame[:MAC_BYTES], frame[MAC_BYTES : 2 * MAC_BYTES], number, Kind(kind), data, offset, total)


def pieces(first: Message, evidence: bytes) -> list[bytes]:
    """Frames of evidence; ``first`` names who to, who from, and the number."""
    return [
        Message(
            first.to, first.sender, first.number, Kind.PIECE, evidence[at : at + PIECE_BYTES], at, len(evidence)
        ).pack()
        for at in range(0, len(evidence), PIECE_BYTES)
    ]


_KINDS = frozenset(Kind)
