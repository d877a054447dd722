"""Where an SPA leads when it does not lead to its own cells.

A DIMM that claims more rows than it has answers two SPAs with one cell (BadRAM);
an interposer that grounds an address line does so whenever its owner likes, and
the cells that it hides keep what they hold (Battering RAM). A data fabric that
routes a range to no memory drops writes, and reads come back as one value
(Fabricked). Routes are in whole pages. What an access encrypts with stays that of
the SPA it names: a route changes cells and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np

from node.dimm_cells import DimmCells, Fill, MachineCheck, Words
from node.extent_map import ExtentMap
from node.kept_ranges import Touch
from psp.system_bus import PAGE_BYTES


class Unanswered(IntEnum):
    """What each byte of a read is where no memory answers."""

    ZEROS = 0x00
    ONES = 0xFF
    """As the authors of Fabricked saw it."""


@dataclass(frozen=True, slots=True)
class _Route:
    page: int | None
    """Of the cells; None for no memory."""
    reads: Unanswered = Unanswered.ONES

    def advanced(self, distance: int) -> Self:
        return self if self.page is None else type(self)(self.page + distance)


@dataclass(frozen=True, slots=True)
class _Part:
    """``length`` bytes from ``spa`` that lie together in cells from ``at`` on; with None in no cells."""

    spa: int
    length: int
    at: int | None
    reads: Unanswered

    @property
    def nothing(self) -> bytes:
        """What a read gets where there are no cells."""
        return bytes([self.reads]) * self.length


@dataclass(frozen=True, slots=True)
class _ByName:
    """A fill of cells that another SPA names: it encrypts with that one."""

    fill: Fill
    distance: int

    def __call__(self, words: Words, spa: int, into: Words) -> None:
        self.fill(words, spa + self.distance, into)


class DimmRoutes:
    """``DimmCells`` as SPAs reach them: the same methods, through the routes that are set."""

    def __init__(self, cells: DimmCells) -> None:
        self._cells = cells
        self._routes: ExtentMap[_Route] = ExtentMap()

    def __len__(self) -> int:
        """Number of runs of pages that lead elsewhere."""
        return len(self._routes)

    def alias(self, spa: int, length: int, cells: int) -> None:
        """Let a range reach the cells from ``cells`` on. Raises ValueError off page borders, MachineCheck."""
        self._cells.touch(cells, length)
        self._set(spa, length, None if cells == spa else _Route(_page(cells)))

    def drop(self, spa: int, length: int, reads: Unanswered) -> None:
        """Let a range reach no memory. Raises ValueError off page borders, MachineCheck."""
        self._set(spa, length, _Route(None, reads))

    def straighten(self, spa: int, length: int) -> None:
        """Let a range reach its own cells. Raises ValueError off page borders, MachineCheck."""
        self._set(spa, length, None)

    def lead_away(self, spa: int, length: int) -> bool:
        """Whether any page of a range reaches other cells than its own."""
        return any(route for _, _, route in self._routes.pieces(spa // PAGE_BYTES, -(-(spa + length) // PAGE_BYTES)))

    def _set(self, spa: int, length: int, route: _Route | None) -> None:
        first, pages = _page(spa), _page(length)
        # Who keeps what lies there in another form can do so only while the range is its own.
        self._cells.touch(spa, length)
        self._routes.put(first, first + pages, route)

    def _parts(self, spa: int, length: int) -> Iterator[_Part]:
        if spa < 0 or length < 0 or spa + length > self._cells.size_bytes:
            raise MachineCheck(spa, length)
        end = spa + length
        for first, stop, route in self._routes.pieces(spa // PAGE_BYTES, -(-end // PAGE_BYTES)):
            low, high = max(spa, first * PAGE_BYTES), min(end, stop * PAGE_BYTES)
            if route is None:
                shift = 0
            elif route.page is None:
                yield _Part(low, high - low, None, route.reads)
                continue
            else:
                shift = (route.page - first) * PAGE_BYTES
            for at, size in self._cells.pieces(low + shift, high - low):
                yield _Part(at - shift, size, at, Unanswered.ONES)

    # What ``DimmCells`` does.

    def read(self, spa: int, length: int) -> bytes:
        """Bytes as they lie in the cells. Raises MachineCheck outside of memory."""
        return b"".join(
            [
                part.nothing if part.at is None else self._cells.read(part.at, part.length)
                for part in self._parts(spa, length)
            ]
        )

    def write(self, spa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes. Raises MachineCheck outside of memory."""
        view = memoryview(data).cast("B")
        for part in self._parts(spa, len(view)):
            if part.at is not None:
                self._cells.write(part.at, view[part.spa - spa : part.spa - spa + part.length])

    def pieces(self, spa: int, length: int) -> Iterator[tuple[int, int]]:
        """A range cut where its cells do not lie together, as (SPA, length). Raises MachineCheck."""
        return iter([(part.spa, part.length) for part in self._parts(spa, length)])

    def words(self, spa: int, length: int) -> Words | None:
        """The words of a range, to look at; None where nobody wrote anything near. Raises MachineCheck."""
        parts = list(self._parts(spa, length))
        if len(parts) == 1 and parts[0].at is not None:
            return self._cells.words(parts[0].at, length)
        return np.frombuffer(self.read(spa, length), np.uint64)

    def writable_words(self, spa: int, length: int) -> Words:
        """The words of a range inside one of ``pieces`` that is about to be written. Raises MachineCheck."""
        (part,) = self._parts(spa, length)
        if part.at is None:
            return np.frombuffer(bytearray(part.nothing), np.uint64)
        return self._cells.writable_words(part.at, length)

    def lay(self, spa: int, source: bytes, fill: Fill | None = None, *, until_flush: bool = False) -> None:
        """Write whole pages. Raises MachineCheck outside of memory."""
        for part in self._parts(spa, len(source)):
            data = source[part.spa - spa : part.spa - spa + part.length]
            if part.at == part.spa:
                self._cells.lay(part.at, data, fill, until_flush=until_flush)
            else:
                self._fill(part, np.frombuffer(data, np.uint64), fill)

    def clear(self, spa: int, length: int, fill: Fill) -> None:
        """Write zeros through ``fill`` into whole pages. Raises MachineCheck outside of memory."""
        for part in self._parts(spa, length):
            if part.at == part.spa:
                self._cells.clear(part.at, part.length, fill)
            elif part.at is not None:
                self._cells.clear(part.at, part.length, _ByName(fill, part.spa - part.at))

    def refill(self, spa: int, length: int, was: Fill | None, fill: Fill) -> list[tuple[int, int]]:
        """As ``DimmCells.refill``; what other cells hold is for the caller. Raises MachineCheck outside of memory."""
        others: list[tuple[int, int]] = []
        for part in self._parts(spa, length):
            if part.at == part.spa:
                others += self._cells.refill(part.at, part.length, was, fill)
            else:
                others.append((part.spa, part.length))
        return others

    def laid(self, spa: int, length: int, fill: Fill | None) -> bytes | None:
        """As ``DimmCells.laid``; None where a route leads away."""
        return None if self.lead_away(spa, length) else self._cells.laid(spa, length, fill)

    def settle(self) -> None:
        """As ``DimmCells.settle``."""
        self._cells.settle()

    def release(self, spa: int, length: int) -> None:
        """Let a range's cells hold zeros. Raises MachineCheck outside of memory."""
        for part in self._parts(spa, length):
            if part.at is not None:
                self._cells.release(part.at, part.length)

    def resident_runs(self, spa: int, length: int) -> Iterator[tuple[int, int]]:
        """Runs of whole pages in a range that do not read as zeros for want of a writer. Raises MachineCheck."""
        for part in self._parts(spa, length):
            if part.at is not None:
                for at, size in self._cells.resident_runs(part.at, part.length):
                    yield part.spa + at - part.at, size
            elif part.reads:
                yield part.spa, part.length

    def keep(self, spa: int, length: int, touch: Touch) -> None:
        """As ``DimmCells.keep``: whoever reaches the cells, by whatever SPA, is told of. Raises MachineCheck."""
        self._cells.keep(spa, length, touch)

    def let_go(self, spa: int) -> None:
        """As ``DimmCells.let_go``."""
        self._cells.let_go(spa)

    def _fill(self, part: _Part, words: Words, fill: Fill | None) -> None:
        """Write words to cells that another SPA names: at once, since laid pages know but the cells' own."""
        if part.at is None:
            return
        into = self._cells.writable_words(part.at, part.length)
        if fill is None:
            into[:] = words
        else:
            fill(words, part.spa, into)


def grounded(line: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Aliases that come of grounding an address line, as (SPA, length, cells).

    ``line`` is the SPA bit that reads as zero from now on, at least a page. Raises ValueError for another.
    """
    if line < PAGE_BYTES or line & line - 1:
        raise ValueError(f"line: expected one address bit above a page's, got {line:#x}")
    for spa in range(line, size_bytes, 2 * line):
        yield spa, min(line, size_bytes - spa), spa - line


def _page(address: int) -> int:
    page, rest = divmod(address, PAGE_BYTES)
    if rest:
        raise ValueError(f"route: expected whole pages, got {address:#x}")
    return page
