"""The media of an NVMe namespace: logical blocks that hold bytes once someone wrote them.

Below them may lie an image that is only read: what is written covers it, and never reaches it.
"""

from __future__ import annotations

from typing import Protocol

_CHUNK_BYTES = 4096
_ZERO_CHUNK = bytes(_CHUNK_BYTES)

BLOCK_SIZES = (512, 4096)


class MediaError(Exception):
    """The image below the blocks cannot be read there."""


class Image(Protocol):
    """What lies below the blocks that somebody wrote."""

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes. Raises MediaError."""


class NvmeNamespace:
    """``blocks`` logical blocks of ``block_bytes``. A block that was never written reads as ``image`` has it, or zeros.

    Reads raise MediaError, and so do writes of a part of 4 KiB, where the image fails.
    """

    def __init__(self, blocks: int, block_bytes: int = 512, image: Image | None = None) -> None:
        if block_bytes not in BLOCK_SIZES:
            raise ValueError(f"block_bytes: expected one of {BLOCK_SIZES}, found {block_bytes}")
        if not 0 < blocks < 1 << 64:
            raise ValueError(f"blocks: expected 1 to 2**64 - 1, found {blocks}")
        self.blocks = blocks
        self.block_bytes = block_bytes
        self._image = image
        self._chunks: dict[int, bytearray] = {}

    @property
    def resident_bytes(self) -> int:
        """Real memory of the media: what has been written, in chunks of 4 KiB."""
        return len(self._chunks) * _CHUNK_BYTES

    def read(self, lba: int, count: int) -> bytes:
        """The bytes of ``count`` blocks; ValueError outside of the namespace."""
        start, end = self._span(lba, count)
        first = start // _CHUNK_BYTES
        last = -(-end // _CHUNK_BYTES)
        chunks = self._chunks
        if self._image is None:
            data = b"".join([chunks.get(index, _ZERO_CHUNK) for index in range(first, last)])
        else:
            data = b"".join([chunks.get(index) or self._below(index) for index in range(first, last)])
        offset = start - first * _CHUNK_BYTES
        return data[offset : offset + end - start]

    def write(self, lba: int, data: bytes) -> None:
        """Store whole blocks from ``lba``; ValueError for part of a block or outside of the namespace."""
        if len(data) % self.block_bytes:
            raise ValueError(f"data: expected whole blocks of {self.block_bytes} bytes, found {len(data)}")
        start, end = self._span(lba, len(data) // self.block_bytes)
        position = start
        while position < end:
            index, within = divmod(position, _CHUNK_BYTES)
            length = min(_CHUNK_BYTES - within, end - position)
            chunk = self._chunks.get(index)
            if chunk is None:
                # A whole chunk needs nothing of what it covers.
                below = _ZERO_CHUNK if length == _CHUNK_BYTES else self._below(index)
                chunk = self._chunks[index] = bytearray(below)
            chunk[within : within + length] = data[position - start : position - start + length]
            position += length

    def runs(self) -> list[tuple[int, bytes]]:
        """What was written, as (first block, bytes): runs in ascending order, in chunks of 4 KiB."""
        found: list[tuple[int, list[bytes]]] = []
        following = -1
        for index in sorted(self._chunks):
            if index != following:
                found.append((index, []))
            found[-1][1].append(bytes(self._chunks[index]))
            following = index + 1
        return [(index * _CHUNK_BYTES // self.block_bytes, b"".join(parts)) for index, parts in found]

    def _below(self, index: int) -> bytes:
        """What a chunk holds that nobody wrote; an image's last part may be shorter."""
        if self._image is None:
            return _ZERO_CHUNK
        start = index * _CHUNK_BYTES
        length = min(_CHUNK_BYTES, self.blocks * self.block_bytes - start)
        return self._image.read(start, length).ljust(_CHUNK_BYTES, b"\0")

    def _span(self, lba: int, count: int) -> tuple[int, int]:
        if lba < 0 or count < 0 or lba + count > self.blocks:
            raise ValueError(f"blocks: expected a range within {self.blocks}, found {lba} + {count}")
        return lba * self.block_bytes, (lba + count) * self.block_bytes
