"""Which table pages a nested map takes: a function of the map, known before any frame is given to it.

A table is known by the first guest-physical address it serves and its level, both in one
number: addresses of tables are multiples of 4 KiB, so the level fits below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from node.page_table_entry import LONG
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

LEVELS = LONG.levels
"""Nested tables have the levels of the host's own mode (APM volume 2, 15.25.3)."""
GPA_END = 1 << LONG.address_bits

_MOST_KEPT_TABLES = 64
"""Larger maps are rare, and hostile ones have no end."""

ROOT = LEVELS
"""The root's number: it serves addresses from zero."""


def served_bytes(level: int) -> int:
    """How much address space one table of a level serves."""
    return 1 << LONG.shift(level + 1)


def parts(gpa: int, spa: int, length: int, large: bool = True) -> Iterator[tuple[int, int, bool]]:
    """A mapping cut by the size of its pages, as (from, to, 2 MiB pages)."""
    end = gpa + length
    first, last = -(-gpa // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES, end // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    if not large or (gpa - spa) % LARGE_PAGE_BYTES or first >= last:
        if gpa < end:
            yield gpa, end, False
        return
    if gpa < first:
        yield gpa, first, False
    yield first, last, True
    if last < end:
        yield last, end, False


def tables(start: int, end: int, lowest: int) -> Iterable[int]:
    """The tables below the root that serve [start, end) down to a level, parents before children, by address."""
    if end - start <= _MOST_KEPT_TABLES * served_bytes(lowest):
        return _kept_tables(start, end, lowest)
    return _tables(start, end, lowest)


@lru_cache(maxsize=1024)
def _kept_tables(start: int, end: int, lowest: int) -> tuple[int, ...]:
    return tuple(_tables(start, end, lowest))


def _tables(start: int, end: int, lowest: int) -> Iterator[int]:
    for level in range(LEVELS - 1, lowest - 1, -1):
        size = served_bytes(level)
        for first in range(start // size * size, end, size):
            yield first | level


def table_pages(maps: Iterable[tuple[int, int, int]]) -> int:
    """Pages of all tables, the root too, that (GPA, SPA, length) take in 2 MiB pages where they can."""
    return _table_pages(tuple([(gpa, spa % LARGE_PAGE_BYTES, length) for gpa, spa, length in maps]))


@lru_cache(maxsize=1024)
def _table_pages(maps: tuple[tuple[int, int, int], ...]) -> int:
    return 1 + len(
        {
            table
            for gpa, spa, length in maps
            for start, end, large in parts(gpa, spa, length)
            for table in tables(start, end, 2 if large else 1)
        }
    )


class TableLayout(NamedTuple):
    """What maps of a table that maps nothing yet come to."""

    parts: tuple[tuple[int, int, int, bool], ...]
    """(number of the map, from, to, 2 MiB pages)."""
    tables: tuple[int, ...]
    """All tables below the root, in the order in which mapping one after the other takes frames for them."""


def layout_of(maps: Sequence[tuple[int, int, int]]) -> TableLayout | None:
    """That of (GPA, SPA, length) as hypervisors lay VMs out: whole pages, none twice, few, not too large; or None."""
    if len(maps) > _MOST_KEPT_TABLES:
        return None
    return _layout_of(tuple([(gpa, spa % LARGE_PAGE_BYTES, length) for gpa, spa, length in maps]))


@lru_cache(maxsize=1024)
def _layout_of(maps: tuple[tuple[int, int, int], ...]) -> TableLayout | None:
    end = 0
    for gpa, spa, length in sorted(maps):
        if gpa < end or length <= 0 or (gpa | spa | length) % PAGE_BYTES or gpa + length > GPA_END:
            return None
        end = gpa + length
    found: list[tuple[int, int, int, bool]] = []
    taken: dict[int, None] = {}
    for number, (gpa, spa, length) in enumerate(maps):
        for start, stop, large in parts(gpa, spa, length):
            lowest = 2 if large else 1
            if stop - start > _MOST_KEPT_TABLES * served_bytes(lowest):
                return None
            found.append((number, start, stop, large))
            taken.update(dict.fromkeys(tables(start, stop, lowest)))
    return TableLayout(tuple(found), tuple(taken))


assert PAGE_BYTES > LEVELS
