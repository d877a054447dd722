"""A device's transfer as the requests that carry it."""

from __future__ import annotations

from collections.abc import Iterator

from psp.system_bus import PAGE_BYTES
from tio.dma_port import DmaFault

_ADDRESSES = 1 << 64


def requests(iova: int, length: int, *, write: bool) -> Iterator[tuple[int, int]]:
    """A transfer as requests, none across a 4 KiB border (PCI Express base specification, section 2.2.7).

    Raises DmaFault for addresses that no request can carry.
    """
    if length < 0 or iova < 0 or iova + length > _ADDRESSES:
        raise DmaFault(iova, length, write=write)
    while length > 0:
        size = min(length, PAGE_BYTES - iova % PAGE_BYTES)
        yield iova, size
        iova += size
        length -= size
