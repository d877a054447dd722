"""A host's memory: sparse, holding what the DIMMs would hold.

Memory is reserved in chunks of address space; the operating system backs a page
when someone writes it. Pages that nobody wrote read as zeros and cost nothing,
and a range inside a chunk moves as one array.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from psp.system_bus import PAGE_BYTES

Octets = NDArray[np.uint8]

CHUNK_BYTES = 64 << 20


class MachineCheck(Exception):
    """No memory answers at the address."""

    def __init__(self, spa: int, length: int) -> None:
        super().__init__(f"no memory at {spa:#x}, {length} bytes")
        self.spa = spa
        self.length = length


class _Chunk:
    __slots__ = ("memory", "octets", "written")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A huge page behind one written page would cost 2 MiB.
        self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.octets: Octets = np.frombuffer(self.memory, np.uint8)
        self.written = 0
        """Bit n is set when someone wrote page n."""


class Dram:
    """``size_bytes`` of memory from address zero."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._chunks: dict[int, _Chunk] = {}

    @property
    def resident_pages(self) -> int:
        """Pages that someone wrote."""
        return sum(chunk.written.bit_count() for chunk in self._chunks.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that someone wrote."""
        return self.resident_pages * PAGE_BYTES

    def read(self, spa: int, length: int) -> bytes:
        """Bytes as they lie in DRAM. Raises MachineCheck outside of memory."""
        parts = [view.tobytes() if view is not None else bytes(size) for _, size, view in self.views(spa, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, spa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes. Raises MachineCheck outside of memory."""
        source = np.frombuffer(data, np.uint8)
        done = 0
        for _, size, view in self.writable_views(spa, len(source)):
            view[:] = source[done : done + size]
            done += size

    def views(self, spa: int, length: int) -> list[tuple[int, int, Octets | None]]:
        """(SPA, length, array) of each piece of a range; None for a piece that nobody wrote."""
        return [
            (start, size, None if chunk is None else chunk.octets[at : at + size])
            for start, size, at, chunk in self._pieces(spa, length, make=False)
        ]

    def writable_views(self, spa: int, length: int) -> list[tuple[int, int, Octets]]:
        """(SPA, length, array) of each piece of a range that is about to be written."""
        out = []
        for start, size, at, chunk in self._pieces(spa, length, make=True):
            assert chunk is not None
            first = at // PAGE_BYTES
            chunk.written |= ((1 << (at + size - 1) // PAGE_BYTES - first + 1) - 1) << first
            out.append((start, size, chunk.octets[at : at + size]))
        return out

    def release(self, spa: int, length: int) -> None:
        """Drop whole pages: they read as zeros and cost nothing."""
        for _, size, at, chunk in self._pieces(spa, length, make=False):
            pages = ((1 << size // PAGE_BYTES) - 1) << at // PAGE_BYTES
            if chunk is not None and chunk.written & pages:
                chunk.memory.madvise(mmap.MADV_DONTNEED, at, size)
                chunk.written &= ~pages

    def _pieces(self, spa: int, length: int, *, make: bool) -> Iterator[tuple[int, int, int, _Chunk | None]]:
        if spa < 0 or length < 0 or spa + length > self.size_bytes:
            raise MachineCheck(spa, length)
        end = spa + length
        while spa < end:
            number, at = divmod(spa, CHUNK_BYTES)
            size = min(end - spa, CHUNK_BYTES - at)
            chunk = self._chunks.get(number)
            if chunk is None and make:
                chunk = self._chunks[number] = _Chunk()
            yield spa, size, at, chunk
            spa += size
