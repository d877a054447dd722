"""What the control plane wrote down of its hand-overs: the one thing of it that outlives a crash.

A record is appended before anything is said that rests on it. Read back, it ends at the first entry that is not whole,
as a file does whose writer was killed: nothing was said yet of what that entry was to be.

Room for all that may have to be said of a move is reserved before it begins, so that on a full disk too it can end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgpack

from cluster.hand_over import Record
from node.packing import packed

_HEAD_BYTES = 8
"""Length and CRC-32 of an entry, little-endian."""
MOST_ENTRY_BYTES = 4096


class RecordFullError(Exception):
    """There is no room for another entry; nothing was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision about a move."""

    number: int
    record: Record


class CommitRecord:
    """An append-only file in memory; ``most_bytes`` is its disk, from the beginning; 0 for one without end.

    Of ``data``, what an earlier writer left, all from the first entry on that is not whole is cut off: behind that
    nothing would ever be read again. Room is kept anew for what may still have to be said of moves that are not over.

    What was appended is there: a disk that loses what it said it wrote, and is whole otherwise, cannot be told from one
    to which less was written, for nothing else outlives a crash that could tell.

    What is written becomes bytes when somebody looks, or there is an end that it could meet.
    """

    def __init__(self, data: bytes | bytearray = b"", most_bytes: int = 0) -> None:
        self.most_bytes = most_bytes
        self._data = bytearray(data)
        found = list(_whole(self._data))
        del self._data[found[-1][1] if found else 0 :]
        self._written: list[tuple[int, Record]] = []
        self._reserved: dict[int, int] = {}
        """Bytes that moves may still write, where there is an end."""
        if most_bytes:
            for one in [entry for entry, _ in found]:
                left = self._reserved.get(one.number, _room(one.number)) - len(_framed(one.number, one.record))
                self._reserved[one.number] = 0 if one.record in _LAST else max(0, left)

    @property
    def data(self) -> bytearray:
        """The file."""
        for number, record in self._written:
            self._data += _framed(number, record)
        self._written.clear()
        return self._data

    @property
    def reserved_bytes(self) -> int:
        """What all moves together may still write, where there is an end."""
        return sum(self._reserved.values())

    def reserve(self, number: int) -> bool:
        """Keep room for all decisions about a move, before the first; False where there is none."""
        if self.most_bytes:
            wanted = _room(number)
            if len(self.data) + self.reserved_bytes + wanted > self.most_bytes:
                return False
            self._reserved[number] = wanted
        return True

    def release(self, number: int) -> None:
        """Nothing more is decided about a move."""
        if self._reserved:
            self._reserved.pop(number, None)

    def append(self, number: int, record: Record) -> None:
        """Write a decision down. Raises RecordFullError for one that no room was reserved for."""
        if self.most_bytes:
            need, others = len(_framed(number, record)), self.reserved_bytes
            reserved = self._reserved.get(number, 0)
            if len(self.data) + others - reserved + need > self.most_bytes:
                raise RecordFullError(f"no room for {record} of move {number}")
            if reserved:
                self._reserved[number] = max(0, reserved - need)
        self._written.append((number, record))

    def entries(self) -> Iterator[Entry]:
        """What can be read, oldest first."""
        for entry, _ in _whole(self.data):
            yield entry

    def last(self) -> dict[int, Record]:
        """The last decision about each move."""
        return {one.number: one.record for one in self.entries()}


_LONGEST = (Record.BEGUN, Record.COMMITTED, Record.AHEAD, Record.MOVED)
"""What is written of a move of which most is written: of one that ends otherwise it is less, and shorter."""
_LAST = frozenset({Record.MOVED, Record.ABORTED})
"""Behind which nothing is written of a move."""


def _room(number: int) -> int:
    """Bytes that all that is ever written of a move takes."""
    return sum([len(_framed(number, record)) for record in _LONGEST])


def _framed(number: int, record: Record) -> bytes:
    body = packed((number, record.value))
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def _whole(data: bytearray) -> Iterator[tuple[Entry, int]]:
    """Each entry up to the first that is not whole, and where it ends."""
    at = 0
    while at + _HEAD_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        body = bytes(data[at + _HEAD_BYTES : at + _HEAD_BYTES + length])
        if len(body) != length or length > MOST_ENTRY_BYTES:
            return
        if zlib.crc32(body).to_bytes(4, "little") != data[at + 4 : at + _HEAD_BYTES]:
            return
        entry = _entry(body)
        if entry is None:
            return
        at += _HEAD_BYTES + length
        yield entry, at


def _entry(body: bytes) -> Entry | None:
    try:
        match msgpack.unpackb(body, use_list=False):
            case (int(number), str(name)) if number >= 0:
                return Entry(number, Record(name))
    except (ValueError, TypeError, msgpack.UnpackException):
        pass
    return None
