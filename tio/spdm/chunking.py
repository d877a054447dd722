"""Messages larger than a transfer: cut into chunks, and put together again (DSP0274, 10.26)."""

from __future__ import annotations

from tio.spdm.connection_messages import (
    CHUNK_HEAD_BYTES,
    FIRST_CHUNK_HEAD_BYTES,
    LAST_CHUNK,
    ChunkSend,
    ChunkSendFirst,
)
from tio.spdm.faults import MalformedMessage

LAST_SEQUENCE = 0xFFFF


class ChunkedMessage:
    """A message that goes out in chunks of a transfer's size, one after the other."""

    __slots__ = ("_at", "_message", "_sequence", "_transfer_bytes", "handle")

    def __init__(self, handle: int, message: bytes, transfer_bytes: int) -> None:
        self.handle = handle
        self._message = message
        self._transfer_bytes = transfer_bytes
        self._at = self._sequence = 0

    @property
    def sequence(self) -> int:
        """The number of the next chunk."""
        return self._sequence

    @property
    def done(self) -> bool:
        """Whether all of it is out."""
        return self._at == len(self._message)

    def next(self, first: type[ChunkSendFirst], other: type[ChunkSend]) -> ChunkSend | ChunkSendFirst:
        """The next chunk, as a message of one of two types."""
        start = self._at
        head = CHUNK_HEAD_BYTES if start else FIRST_CHUNK_HEAD_BYTES
        part = self._message[start : start + self._transfer_bytes - head]
        self._at += len(part)
        attributes = LAST_CHUNK if self.done else 0
        sequence, self._sequence = self._sequence, self._sequence + 1
        if start:
            return other(
                attributes=attributes, handle=self.handle, sequence=sequence, size=len(part), data=part
            )
        return first(
            attributes=attributes,
            handle=self.handle,
            sequence=sequence,
            size=len(part),
            message_bytes=len(self._message),
            data=part,
        )


class ChunkAssembly:
    """A message that comes in. Every chunk must be the next, and none may bring more than was announced."""

    __slots__ = ("_parts", "_received", "handle", "message_bytes", "sequence")

    def __init__(self, first: ChunkSendFirst, most_bytes: int) -> None:
        """Begin with the first chunk; MalformedMessage if it announces too much, or is no first one."""
        if not 0 < first.message_bytes <= most_bytes:
            raise MalformedMessage("LargeMessageSize", f"at most {most_bytes}", first.message_bytes)
        self.handle = first.handle
        self.message_bytes = first.message_bytes
        self.sequence = 0
        self._parts: list[bytes] = []
        self._received = 0
        self._take(first.sequence, first.data, last=bool(first.attributes & LAST_CHUNK))

    @property
    def message(self) -> bytes | None:
        """The whole message, once it is there."""
        return b"".join(self._parts) if self._received == self.message_bytes else None

    def add(self, chunk: ChunkSend) -> None:
        """Take the next chunk. Raises MalformedMessage for any other."""
        if chunk.handle != self.handle:
            raise MalformedMessage("chunk handle", str(self.handle), chunk.handle)
        self._take(chunk.sequence, chunk.data, last=bool(chunk.attributes & LAST_CHUNK))

    def _take(self, sequence: int, data: bytes, *, last: bool) -> None:
        if sequence != self.sequence or sequence == LAST_SEQUENCE:
            raise MalformedMessage("ChunkSeqNo", str(self.sequence), sequence)
        received = self._received + len(data)
        # Empty chunks would let a message take for ever.
        if not data or received > self.message_bytes or last != (received == self.message_bytes):
            raise MalformedMessage("ChunkSize", f"{self.message_bytes} bytes by the last chunk", received)
        self._parts.append(data)
        self._received = received
        self.sequence += 1
