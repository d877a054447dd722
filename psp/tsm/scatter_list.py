"""The memory that a scatter-list address names (``spec/tio/tio-overview.md``, section 3).

A list is one page of 4 KiB. A list within a list, the same memory twice, reserved bits and a list without an end are
refused, so no list is longer than its page. Which statuses refuse them, no text at hand says.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from psp.tsm.scatter_address import END_OF_LIST, FRAME, LARGE, NULL, RESERVED, SCATTER

MOST_ENTRIES = PAGE_BYTES // 8

Pieces = tuple[tuple[int, int], ...]
"""Parts of memory as (SPA, length), in the order of a buffer's bytes."""


def pieces_of(memory: HostMemory, address: int) -> Pieces:
    """The memory that an address names; nothing has been said of what is in it, or whose it is.

    Raises PspError: INVALID_ADDRESS for NULL, off page borders or where there is no memory; INVALID_PARAM for reserved
    bits, lists within lists and memory that is named twice; INCORRECT_BUFFER_LENGTH for a list without end or entries.
    """
    if not address & SCATTER:
        return (_piece(memory, address),)
    spa = address & FRAME
    if address & (RESERVED | LARGE):
        raise PspError(Status.INVALID_PARAM)
    pieces = []
    for entry in struct.unpack(f"<{MOST_ENTRIES}Q", memory.read(spa, PAGE_BYTES)):
        if entry & FRAME == END_OF_LIST:
            break
        if entry & SCATTER:
            raise PspError(Status.INVALID_PARAM)
        pieces.append(_piece(memory, entry))
    else:
        raise PspError(Status.INCORRECT_BUFFER_LENGTH)
    if not pieces:
        raise PspError(Status.INCORRECT_BUFFER_LENGTH)
    if overlapping(tuple(pieces)):
        raise PspError(Status.INVALID_PARAM)
    return tuple(pieces)


def overlapping(pieces: Pieces) -> bool:
    """Whether any memory is in two pieces."""
    return any(first + length > second for (first, length), (second, _) in pairwise(sorted(pieces)))


def _piece(memory: HostMemory, address: int) -> tuple[int, int]:
    if address == NULL:
        raise PspError(Status.INVALID_ADDRESS)
    if address & (RESERVED | SCATTER):
        raise PspError(Status.INVALID_PARAM)
    spa, length = address & FRAME, LARGE_PAGE_BYTES if address & LARGE else PAGE_BYTES
    if spa % length:
        raise PspError(Status.INVALID_ADDRESS)
    memory.check_present(spa, length)
    return spa, length
