"""SNP_PAGE_UNSMASH: 512 entries of 4 KiB that agree become one of 2 MiB, the reverse of PSMASH.

Which states the firmware takes, and what it answers to entries that do not agree, no
public text says. Here pages of a guest in any state that an entry of 2 MiB can be in,
and INVALID_PAGE_STATE for what does not agree. Pages of firmware have no addresses
that follow each other, so they never do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psp.status import PspError, Status
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry


def unsmashed(spa: int, entry_at: Callable[[int], RmpEntry]) -> RmpEntry:
    """The entry of 2 MiB at ``spa`` that says what its 512 say, given the reader of entries.

    Raises PspError: INVALID_PAGE_SIZE where it is one already, INVALID_PAGE_STATE where
    there is none such.
    """
    first = entry_at(spa)
    if first.large:
        raise PspError(Status.INVALID_PAGE_SIZE)
    if not first.assigned or not first.asid or first.gpa % LARGE_PAGE_BYTES:
        raise PspError(Status.INVALID_PAGE_STATE)
    for distance in range(PAGE_BYTES, LARGE_PAGE_BYTES, PAGE_BYTES):
        if entry_at(spa + distance) != replace(first, gpa=first.gpa + distance):
            raise PspError(Status.INVALID_PAGE_STATE)
    return replace(first, large=True)
