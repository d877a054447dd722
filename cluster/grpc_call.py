"""One call of a gRPC server, as bytes: enough to learn within a round trip whether it knows the method and lets us in.

The frames are HTTP/2's (RFC 9113), the headers HPACK's (RFC 7541), the rest is
gRPC's protocol over HTTP/2. The message that is sent is empty, which every message of
protocol buffers may be. Of the answer only its kind is told: on a new connection
gRPC's servers spell their headers out.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_STREAM = 1
_HEAD_BYTES = 9
_MOST_FRAME_BYTES = 1 << 14
"""What a frame may carry as long as nobody has agreed to more."""
_POST, _HTTP = b"\x83", b"\x86"
"""Entries of HPACK's table: ``:method`` POST, ``:scheme`` http."""
_STATUS = re.compile(rb"grpc-status[\x01\x02]([0-9]{1,2})")
_UNAUTHENTICATED = 16


class Said(enum.Enum):
    """What a server says to a call."""

    NOTHING = enum.auto()
    """Nothing so far, or not all of it."""
    ANSWER = enum.auto()
    """The method's answer."""
    UNAUTHENTICATED = enum.auto()
    """Not without a token, or not with this one."""
    OTHER = enum.auto()
    """It speaks no gRPC, or not without TLS, or does not know the method."""


class _Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    body: bytes


def request(method: str, authority: str, token: str | None = None) -> bytes:
    """All that a client says: ``method`` is ``/package.Service/Method``, ``authority`` the address as it was given."""
    wanted = {":path": method, ":authority": authority, "te": "trailers", "content-type": "application/grpc"}
    if token is not None:
        wanted["authorization"] = f"Bearer {token}"
    headers = _POST + _HTTP + b"".join(b"\0" + _text(name) + _text(value) for name, value in wanted.items())
    empty_message = bytes(5)  # not compressed, no bytes
    return b"".join((
        _PREFACE,
        _frame(_SETTINGS, 0, 0, b""),
        _frame(_HEADERS, _END_HEADERS, _STREAM, headers),
        _frame(_DATA, _END_STREAM, _STREAM, empty_message),
    ))  # fmt: skip


def said(received: bytes) -> Said:
    """What the bytes that came so far, from the connection's first, say to the call."""
    is_grpc = False
    for number, frame in enumerate(_frames(received)):
        if frame is None or (number == 0 and frame.kind != _SETTINGS) or frame.kind in (_RST_STREAM, _GOAWAY):
            return Said.OTHER
        if frame.stream != _STREAM:
            continue
        if frame.kind == _HEADERS and frame.flags & _END_STREAM:
            status = _STATUS.search(frame.body)
            return Said.UNAUTHENTICATED if status and int(status[1]) == _UNAUTHENTICATED else Said.OTHER
        if frame.kind == _HEADERS:
            is_grpc = b"application/grpc" in frame.body
        elif frame.kind == _DATA:
            return Said.ANSWER if is_grpc else Said.OTHER
    return Said.NOTHING


def _frames(received: bytes) -> Iterator[_Frame | None]:
    """Frames that are there whole, in their order; None for what can be none."""
    at = 0
    while len(received) - at >= 3:
        size = int.from_bytes(received[at : at + 3])
        if size > _MOST_FRAME_BYTES:
            yield None
            return
        if len(received) - at < _HEAD_BYTES + size:
            return
        kind, flags = received[at + 3 : at + 5]
        stream = int.from_bytes(received[at + 5 : at + _HEAD_BYTES])
        yield _Frame(kind, flags, stream, received[at + _HEAD_BYTES : at + _HEAD_BYTES + size])
        at += _HEAD_BYTES + size


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body


def _text(text: str) -> bytes:
    """A string as HPACK has it, without Huffman's code."""
    encoded = text.encode(errors="surrogateescape")  # a token is any bytes that an environment holds
    return _length(len(encoded)) + encoded


def _length(value: int) -> bytes:
    """An integer in what is left of a byte after its first bit, and as many more as it takes."""
    most = 0x7F
    if value < most:
        return bytes((value,))
    value -= most
    more = bytearray((most,))
    while value > most:
        more.append(value & most | 0x80)
        value >>= 7
    more.append(value)
    return bytes(more)
