"""Scatter-list addresses as 64-bit words: a page, or a page that lists pages (``spec/tio/tio-overview.md``, section 3).

Bit 0 says whether the frame in bits 51:12 holds data or a list, bit 1 whether it is 4 KiB or 2 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

NULL = 0
SCATTER, LARGE = 1 << 0, 1 << 1
FRAME = (1 << 52) - (1 << 12)
RESERVED = ~(FRAME | SCATTER | LARGE)
END_OF_LIST = FRAME
"""A frame of ones ends a list."""


def data_page(spa: int, *, large: bool = False) -> int:
    """The address of a page of data."""
    return spa | LARGE * large


def scatter_page(spa: int) -> int:
    """The address of a page that lists pages."""
    return spa | SCATTER


def pack_list(addresses: Sequence[int]) -> bytes:
    """What a page holds that lists pages."""
    return struct.pack(f"<{len(addresses) + 1}Q", *addresses, END_OF_LIST)
