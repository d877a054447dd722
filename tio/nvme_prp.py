"""Physical region pages: where in memory a command's data lies (NVMe base specification 1.4, 4.3)."""

from __future__ import annotations

import struct

from tio.dma_port import DmaFault, DmaPort
from tio.nvme_format import PAGE_BYTES, Status

_ENTRY_BYTES = 8


class CommandRefused(Exception):
    """A command ends with this status; raised and caught inside of the controller."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


def prp_extents(port: DmaPort, prp1: int, prp2: int, length: int) -> list[tuple[int, int]]:
    """The (address, length) runs of a transfer, neighbours joined.

    Reads one list page for every 511 pages of data at most, so the transfer
    limit bounds the work whatever a list points to.
    """
    if prp1 % 4:
        raise CommandRefused(Status.PRP_OFFSET_INVALID)
    first = min(length, PAGE_BYTES - prp1 % PAGE_BYTES)
    left = length - first
    extents = [(prp1, first)]
    if left == 0:
        return extents
    for page in (prp2,) if left <= PAGE_BYTES else _listed(port, prp2, -(-left // PAGE_BYTES)):
        if page % PAGE_BYTES:
            raise CommandRefused(Status.PRP_OFFSET_INVALID)
        chunk = min(left, PAGE_BYTES)
        left -= chunk
        address, size = extents[-1]
        if address + size == page:
            extents[-1] = (address, size + chunk)
        else:
            extents.append((page, chunk))
    return extents


def _listed(port: DmaPort, address: int, count: int) -> list[int]:
    """``count`` entries of a list; where a page of it is full, its last entry points to the next."""
    if address % _ENTRY_BYTES:
        raise CommandRefused(Status.PRP_OFFSET_INVALID)
    pages: list[int] = []
    while True:
        wanted = count - len(pages)
        room = (PAGE_BYTES - address % PAGE_BYTES) // _ENTRY_BYTES
        taken = min(wanted, room)
        try:
            raw = port.read(address, taken * _ENTRY_BYTES)
        except DmaFault:
            raise CommandRefused(Status.DATA_TRANSFER_ERROR) from None
        entries = struct.unpack(f"<{taken}Q", raw)
        if wanted <= room:
            pages.extend(entries)
            return pages
        pages.extend(entries[:-1])
        address = entries[-1]
        if address % PAGE_BYTES:
            raise CommandRefused(Status.PRP_OFFSET_INVALID)
