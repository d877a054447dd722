"""Pages of 2 MiB behind a fleet's objects.

A thousand hosts are some hundred megabytes of small objects, and what happens goes from one host to the next: with
pages of 4 KiB the processor looks most of them up anew, a tenth of ten thousand migrations' time. Linux makes larger
ones of them for whoever asks (madvise(2): MADV_COLLAPSE, from 6.1 on), in some 2 ms each. Where it does not, nothing
changes but the time.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_COLLAPSE = 25
_PAGE_BYTES = 2 << 20
_FEWEST = 64
"""Hosts from which on looking for memory pays."""
_FULL = 0.9
"""Share of a range that must be in use: a large page takes memory also where nothing lies."""
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(\[heap\])?$")


def enlarge_pages(hosts: int, smaps: Path = Path("/proc/self/smaps")) -> int:
    """Have the objects of so many hosts lie in large pages; bytes for which that was asked and granted."""
    if hosts < _FEWEST:
        return 0
    try:
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        ranges = list(_in_use(smaps.read_text()))
    except (OSError, AttributeError, TypeError):  # not Linux
        return 0
    return sum([end - start for start, end in ranges if not advise(start, end - start, _COLLAPSE)])


def _in_use(smaps: str) -> Iterator[tuple[int, int]]:
    """Ranges of whole large pages, most of which is in memory and whose owner has not asked for small ones (``nh``)."""
    start = end = resident = 0
    for line in smaps.splitlines():
        found = _RANGE.match(line)
        if found:
            start, end, resident = int(found[1], 16), int(found[2], 16), 0
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:"):
            first, last = -(-start // _PAGE_BYTES) * _PAGE_BYTES, end // _PAGE_BYTES * _PAGE_BYTES
            if first < last and resident >= _FULL * (end - start) and "nh" not in line.split():
                yield first, last
            start = end = resident = 0
