"""A device's view of a guest's memory: walked as the IOMMU walks it, page by page."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.iommu_guest_table import LEVELS, GuestTable
from node.iommu_page_table import NotMapped, walk
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES


class Memory:
    """Pages of tables as they were written."""

    def __init__(self, c_bit=0):
        self.frames = itertools.count(1 << 40, PAGE_BYTES)
        self.pages = {}
        self.table = GuestTable(lambda: next(self.frames), c_bit)

    def settle(self):
        self.pages.update(self.table.taken())

    def word(self, address):
        page, offset = divmod(address, PAGE_BYTES)
        return int.from_bytes(self.pages[page * PAGE_BYTES][offset : offset + 8], "little")

    def at(self, gpa):
        found = walk(self.word, self.table.root, LEVELS, gpa)
        return found.address | gpa & (1 << found.bits) - 1, found.bits


def test_memory_is_shown_at_the_guests_addresses_with_pages_as_large_as_asked():
    memory = Memory()
    memory.table.map([
        (0, 1 << 32, 4 * LARGE_PAGE_BYTES, True), (4 << 30, 3 << 32, 2 * PAGE_BYTES, False),
    ])  # fmt: skip
    memory.settle()
    assert memory.at(3 * LARGE_PAGE_BYTES + 0x1234) == ((1 << 32) + 3 * LARGE_PAGE_BYTES + 0x1234, 21)
    assert memory.at((4 << 30) + PAGE_BYTES) == ((3 << 32) + PAGE_BYTES, 12)
    for gpa in (4 * LARGE_PAGE_BYTES, (4 << 30) + 2 * PAGE_BYTES, 1 << 47):
        with pytest.raises(NotMapped):
            memory.at(gpa)


def test_a_block_that_is_cut_shows_the_rest_of_it_as_before():
    memory = Memory()
    memory.table.map([(0, 1 << 32, LARGE_PAGE_BYTES, True)])
    memory.settle()
    memory.table.unmap(5 * PAGE_BYTES, PAGE_BYTES)
    memory.settle()
    with pytest.raises(NotMapped):
        memory.at(5 * PAGE_BYTES)
    assert memory.at(6 * PAGE_BYTES) == ((1 << 32) + 6 * PAGE_BYTES, 12)


def test_the_c_bit_is_in_leaves_alone():
    memory = Memory(c_bit=1 << 51)
    memory.table.map([(0, 1 << 32, PAGE_BYTES, False)])
    memory.settle()
    assert memory.at(0) == (1 << 51 | 1 << 32, 12)
    assert not memory.table.root >> 51


KINDS = st.sampled_from(["large", "small", "gone"])
STEPS = st.tuples(KINDS, st.integers(0, 3), st.integers(0, 511), st.integers(1, 30))


@given(st.lists(STEPS, max_size=8))
@settings(max_examples=40)
def test_the_last_that_was_mapped_is_what_a_walk_finds(steps):
    memory, expected = Memory(), {}
    for number, (kind, block, page, count) in enumerate(steps):
        size = LARGE_PAGE_BYTES if kind == "large" else PAGE_BYTES
        gpa = block * LARGE_PAGE_BYTES + (0 if kind == "large" else page * PAGE_BYTES)
        length = min(count, 2 if kind == "large" else 30) * size
        spa = (number + 1) << 34
        if kind == "gone":
            memory.table.unmap(gpa, length)
        else:
            memory.table.map([(gpa, spa, length, kind == "large")])
        for at in range(gpa, gpa + length, PAGE_BYTES):
            expected[at] = None if kind == "gone" else spa + at - gpa
        memory.settle()
    sample = np.random.default_rng(1).permutation(sorted(expected))[:60]
    for gpa in sample.tolist():
        if expected[gpa] is None:
            with pytest.raises(NotMapped):
                memory.at(gpa)
        else:
            assert memory.at(gpa)[0] == expected[gpa]
