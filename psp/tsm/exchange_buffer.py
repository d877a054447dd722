"""A buffer between firmware and host, wherever its pages lie: its header, and the data object in it.

Everything in it is the host's to forge: lengths are checked against the memory that was named and against the longest
buffer of its kind, so no command costs more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES
from psp.tsm.exchange_records import BufferHeader, padded
from psp.tsm.scatter_address import NULL
from psp.tsm.scatter_list import Pieces, pieces_of


@dataclass(frozen=True, slots=True)
class BufferKind:
    """How long a buffer may be, with its header; and whether firmware writes it, so that it must be lent."""

    least_bytes: int
    most_bytes: int
    is_lent: bool = True


REQUEST = BufferKind(PAGE_BYTES, 16 << 10)
SCRATCH = BufferKind(PAGE_BYTES, 64 << 10)
OUTPUT = BufferKind(PAGE_BYTES, 128 << 10)
"""A chain of 64 KiB fits."""
RESPONSE = BufferKind(PAGE_BYTES, 16 << 10, is_lent=False)


class ExchangeBuffer:
    """One buffer. ``open`` it before every use: the host may have changed its mind."""

    def __init__(self, memory: HostMemory, pieces: Pieces, header: BufferHeader) -> None:
        self.pieces = pieces
        self.header = header
        self._memory = memory

    @classmethod
    def open(cls, memory: HostMemory, address: int, kind: BufferKind) -> ExchangeBuffer:
        """The buffer at a scatter-list address.

        Raises PspError: as ``pieces_of``; INVALID_PAGE_STATE where it is not lent; INCORRECT_BUFFER_LENGTH for a
        capacity that its pages or its kind have not. Only the pages that its capacity needs are looked at.
        """
        pieces = pieces_of(memory, address)
        if kind.is_lent:
            memory.check_writable(pieces[0][0], PAGE_BYTES)
        header = BufferHeader.parse(memory.read(pieces[0][0], BufferHeader.SIZE))
        room = sum([length for _, length in pieces])
        if not kind.least_bytes <= header.capacity <= min(room, kind.most_bytes):
            raise PspError(Status.INCORRECT_BUFFER_LENGTH)
        buffer = cls(memory, _first(pieces, header.capacity), header)
        if kind.is_lent:
            for spa, length in buffer.pieces:
                memory.check_writable(spa, length)
        return buffer

    @classmethod
    def open_if_any(cls, memory: HostMemory, address: int, kind: BufferKind) -> ExchangeBuffer | None:
        """The same; None for NULL."""
        return None if address == NULL else cls.open(memory, address, kind)

    def payload(self) -> bytes:
        """What lies behind the header. Raises PspError: INCORRECT_BUFFER_LENGTH for more than the buffer holds."""
        size = self.header.payload
        if size != padded(size) or BufferHeader.SIZE + size > self.header.capacity:
            raise PspError(Status.INCORRECT_BUFFER_LENGTH)
        return self._read(BufferHeader.SIZE, size)

    def fits(self, data: bytes) -> bool:
        """Whether a payload has room."""
        return BufferHeader.SIZE + padded(len(data)) <= self.header.capacity

    def put(self, data: bytes) -> None:
        """Lay a payload down, in whole units; it must fit."""
        whole = data.ljust(padded(len(data)), b"\0")
        self._write(replace(self.header, payload=len(whole), flags=0, iv=b"", tag=b"").pack() + whole)

    def ask_for_room(self, data: bytes) -> None:
        """Say which capacity a payload needs, in whole pages."""
        needed = -(-(BufferHeader.SIZE + padded(len(data))) // PAGE_BYTES) * PAGE_BYTES
        self._write(replace(self.header, capacity=needed, payload=0).pack())

    def _read(self, offset: int, length: int) -> bytes:
        whole = b"".join([self._memory.read(spa, size) for spa, size in self.pieces])
        return whole[offset : offset + length]

    def _write(self, data: bytes) -> None:
        at = 0
        for spa, size in self.pieces:
            if at >= len(data):
                break
            self._memory.write(spa, data[at : at + size])
            at += size


def _first(pieces: Pieces, capacity: int) -> Pieces:
    """The first pages, as far as a capacity goes."""
    out: list[tuple[int, int]] = []
    for spa, length in pieces:
        if capacity <= 0:
            break
        used = min(length, -(-capacity // PAGE_BYTES) * PAGE_BYTES)
        out.append((spa, used))
        capacity -= used
    return tuple(out)
