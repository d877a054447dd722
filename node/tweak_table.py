"""Tweaks as AMD's memory controllers make them: the XOR of a constant for each set bit of an address.

``T(p)`` is linear: ``T(a ^ b) = T(a) ^ T(b)`` (SEVurity, IEEE S&P 2020). From
Zen 2 on the constants are random at each boot; their exact function is not
public. On Zen 1 each is a word of four bytes, four times, so at most 32 of them
are independent and pairs of addresses have one tweak; they are no secret, equal
for all keys, and depend on firmware.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from node.cipher_scratch import STRIDE_BYTES, STRIDE_WORDS, aligned
from node.dimm_cells import WORD_BYTES, Words
from node.memory_cipher import BLOCK_BYTES, FEW_BYTES
from node.xts_engine import powers_of_alpha
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

LOWEST_BIT, HIGHEST_BIT = 4, 51
ZEN1_PUBLISHED = (bytes.fromhex("82253838"), bytes.fromhex("ec09079c"), bytes.fromhex("40000018"))
"""The words of t_4, t_5 and t_6 as they were measured on Zen 1 (SEVurity)."""

_CONSTANTS = HIGHEST_BIT - LOWEST_BIT + 1
_ZEN1_WORD_BYTES = 4
_REGION_PAGES = LARGE_PAGE_BYTES // PAGE_BYTES
_REGIONS_KEPT = 4096
_LINES_KEPT = 64
_REPEATED = [
    sum(1 << 8 * BLOCK_BYTES * block for block in range(count)) for count in range(FEW_BYTES // BLOCK_BYTES + 1)
]
"""What a block is multiplied with to be there so many times."""
_TIMES_IN_A_ROW = 4
"""To move to another stride takes as long as to make the tweaks of so many pages."""
_TIMES_FOR_A_TABLE = 16
"""And to that of another table. Hosts that take turns never get there."""


class TweakTable:
    """The constants t_4 to t_51 of one boot, and the tweaks made from them."""

    RANDOM_BYTES = _CONSTANTS * BLOCK_BYTES
    ZEN1_RANDOM_BYTES = _CONSTANTS * _ZEN1_WORD_BYTES

    def __init__(self, constants: tuple[int, ...]) -> None:
        self.constants = constants
        """The constant of address bit 4 + i; its first octet in memory is the lowest."""
        self._in_page: Words = np.zeros(PAGE_BYTES // WORD_BYTES, np.uint64)
        self._double(self._in_page, BLOCK_BYTES)
        self._in_page_octets = self._in_page.view(np.uint8).data
        self._pages = [0]
        for bit in range(PAGE_BYTES.bit_length() - 1, LARGE_PAGE_BYTES.bit_length() - 1):
            constant = constants[bit - LOWEST_BIT]
            self._pages += [one ^ constant for one in self._pages]
        self._regions: dict[int, int] = {}
        self._few: dict[tuple[int, int], int] = {}

    @classmethod
    def from_random(cls, random: bytes) -> TweakTable:
        """A table from ``RANDOM_BYTES`` random bytes. Raises ValueError for another number of them."""
        return cls(_constants(random, cls.RANDOM_BYTES, 1))

    @classmethod
    def of_zen1(cls, random: bytes) -> TweakTable:
        """A table of Zen 1: the published words, the others from ``ZEN1_RANDOM_BYTES`` random bytes.

        Raises ValueError for another number of them.
        """
        known = b"".join(ZEN1_PUBLISHED)
        return cls(_constants(known + random[len(known) :], cls.ZEN1_RANDOM_BYTES, BLOCK_BYTES // _ZEN1_WORD_BYTES))

    def tweak(self, spa: int) -> int:
        """T of the block at ``spa``."""
        out, bits = 0, spa >> LOWEST_BIT
        while bits:
            lowest = bits & -bits
            out ^= self.constants[lowest.bit_length() - 1]
            bits ^= lowest
        return out

    def in_page(self, spa: int, words: int) -> Words:
        """Tweaks of the blocks from ``spa`` on, inside one page; the next call overwrites the array."""
        begin = spa - spa % STRIDE_BYTES
        here = _STRIDE_TWEAKS
        # What two in a row do not ask for never pays, and a fleet's guests touch a line here and a line there.
        if begin != here.asked_spa or self is not here.asked_by:
            here.asked_spa, here.asked_by, here.times = begin, self, 1
            near = begin == here.spa and self is here.table
        else:
            near = here.pays(begin, self)
        if near:
            first = (spa - begin) // WORD_BYTES
            return here.at(begin, self)[first : first + words]
        first = spa % PAGE_BYTES // WORD_BYTES
        tweaks = _PAGE_TWEAKS[words >> 1]
        # As ``_repeated`` of ``_page``, without two calls for each line that a guest touches.
        region, page = divmod(spa // PAGE_BYTES, _REGION_PAGES)
        base = self._regions.get(region)
        tweak = self._page(spa) if base is None else base ^ self._pages[page]
        of_page: Words = np.frombuffer(tweak.to_bytes(BLOCK_BYTES, "little") * (words >> 1), np.uint64)
        return np.bitwise_xor(self._in_page[first : first + words], of_page, tweaks)

    def of_few(self, spa: int, length: int) -> int:
        """Tweaks of at most ``FEW_BYTES`` from ``spa`` on, inside one page, as one number, the first block's lowest."""
        # Who loads a line often stores it next.
        few = self._few.get((spa, length))
        if few is None:
            first = spa % PAGE_BYTES
            own = int.from_bytes(self._in_page_octets[first : first + length], "little")
            if len(self._few) >= _LINES_KEPT:
                self._few.clear()
            few = self._few[spa, length] = own ^ self._page(spa) * _REPEATED[length // BLOCK_BYTES]
        return few

    def in_stride(self, spa: int, words: int) -> Words:
        """Tweaks of the blocks from ``spa`` on, inside one stride; the next call overwrites the array."""
        first = spa % STRIDE_BYTES // WORD_BYTES
        return _STRIDE_TWEAKS.at(spa - first * WORD_BYTES, self)[first : first + words]

    def masks(self, spa: int) -> Words:
        """Of all blocks of the stride that starts at ``spa``, each XOR its X; the next call overwrites the array."""
        return _STRIDE_MASKS.at(spa, self)

    def fill_stride(self, words: Words, spa: int) -> None:
        """Fill in the tweaks of the stride that starts at ``spa``."""
        count = self._in_page.size
        np.bitwise_xor(self._in_page, _repeated(self._page(spa), count), words[:count])
        self._double(words, PAGE_BYTES)

    def difference(self, distance: int, words: int) -> Words:
        """What turns the tweaks of one page into those of another; ``distance`` is the XOR of their addresses."""
        return _repeated(self._page(distance), words)

    def _double(self, words: Words, done_bytes: int) -> None:
        """Fill in all tweaks from the first: an address bit more is twice as many, the same XOR that bit's constant."""
        done = done_bytes // WORD_BYTES
        while done < words.size:
            constant = self.constants[(done * WORD_BYTES).bit_length() - 1 - LOWEST_BIT]
            np.bitwise_xor(words[:done], _repeated(constant, done), words[done : 2 * done])
            done *= 2

    def _page(self, spa: int) -> int:
        """T of the page that ``spa`` lies in."""
        region, page = divmod(spa // PAGE_BYTES, _REGION_PAGES)
        base = self._regions.get(region)
        if base is None:
            if len(self._regions) >= _REGIONS_KEPT:
                self._regions.clear()
            base = self._regions[region] = self.tweak(region * LARGE_PAGE_BYTES)
        return base ^ self._pages[page]


class _StrideTweaks:
    """The tweaks of one stride. There is one for all tables of the process: bulk work goes from stride to stride.

    ``also`` makes what every tweak is XORed with.
    """

    def __init__(self, also: Callable[[], Words] | None = None) -> None:
        self._also = also
        self._words: Words = aligned(STRIDE_BYTES).view(np.uint64)
        # XORed in halves: numpy's own broadcasting takes twice as long as arrays of one size.
        self._halves = self._words[: STRIDE_WORDS // 2], self._words[STRIDE_WORDS // 2 :]
        self.table: TweakTable | None = None
        self.spa = 0
        self.asked_by: TweakTable | None = None
        self.asked_spa = 0
        self.times = 0
        """How often in a row somebody asked for the same stride."""

    def pays(self, spa: int, table: TweakTable) -> bool:
        """Whether the stride that starts at ``spa``, asked for again, is there or pays to move to by now."""
        self.times += 1
        if table is self.table:
            return spa == self.spa or self.times >= _TIMES_IN_A_ROW
        return self.times >= _TIMES_FOR_A_TABLE

    def at(self, spa: int, table: TweakTable) -> Words:
        """The tweaks of the stride that starts at ``spa``."""
        if table is not self.table:
            table.fill_stride(self._words, spa)
            if self._also is not None:
                self._words ^= self._also()
            self.table, self.spa = table, spa
        elif spa != self.spa:
            difference = _difference(table, spa ^ self.spa)
            low, high = self._halves
            np.bitwise_xor(low, difference, low)
            np.bitwise_xor(high, difference, high)
            self.spa = spa
        return self._words


@lru_cache(maxsize=8)
def _difference(table: TweakTable, distance: int) -> Words:
    """Half a stride of it. Four distances make fifteen of the sixteen steps through 2 MiB."""
    return table.difference(distance, STRIDE_WORDS // 2)


def _constants(random: bytes, size: int, times: int) -> tuple[int, ...]:
    """Constants of equal parts of ``random``, each that many times. Raises ValueError unless it has ``size`` bytes."""
    if len(random) != size:
        raise ValueError(f"random: expected {size} bytes, got {len(random)}")
    width = size // _CONSTANTS
    return tuple(
        int.from_bytes(random[start : start + width] * times, "little") for start in range(0, size, width)
    )


def _repeated(tweak: int, words: int) -> Words:
    return np.frombuffer(tweak.to_bytes(BLOCK_BYTES, "little") * (words >> 1), np.uint64)


_STRIDE_TWEAKS = _StrideTweaks()
_STRIDE_MASKS = _StrideTweaks(powers_of_alpha)
_PAGE_TWEAK: Words = aligned(PAGE_BYTES).view(np.uint64)
_PAGE_TWEAKS = tuple(_PAGE_TWEAK[: 2 * blocks] for blocks in range(PAGE_BYTES // BLOCK_BYTES + 1))
"""Views for each number of blocks in a page: making them costs more than a block's cipher."""
