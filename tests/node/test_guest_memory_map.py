"""A guest's memory is laid out without holes that are RAM and without pages that belong twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.guest_memory_map import HIGH_RAM_GPA, LOW_RAM_BYTES, GuestMemoryMap
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

MIB = 1 << 20


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 4096), st.sets(st.integers(0, 64 * 256), max_size=12))
def test_private_ranges_cover_ram_but_the_pool_and_the_launched_pages(blocks: int, pages: set[int]) -> None:
    memory = GuestMemoryMap(blocks * LARGE_PAGE_BYTES, vcpus=1)
    pool = memory.shared
    launched = {page * PAGE_BYTES for page in pages if not pool.gpa <= page * PAGE_BYTES < pool.gpa + pool.length}
    launched = {gpa for gpa in launched if gpa < memory.memory_bytes}
    ranges = list(memory.private_ranges(launched))
    for part, following in pairwise(ranges):
        assert part.gpa + part.length <= following.gpa
    for part in ranges:
        unit = LARGE_PAGE_BYTES if part.large else PAGE_BYTES
        assert part.gpa % unit == part.length % unit == 0
        assert not any(part.gpa <= gpa < part.gpa + part.length for gpa in launched)
        assert part.gpa + part.length <= pool.gpa or part.gpa >= pool.gpa + pool.length
    covered = sum(part.length for part in ranges) + pool.length + len(launched) * PAGE_BYTES
    assert covered == memory.memory_bytes


def test_ram_above_two_gib_continues_at_four_gib() -> None:
    low, high = GuestMemoryMap(16 << 30, vcpus=4).ram
    assert (low.gpa, low.length, high.gpa, high.length) == (0, LOW_RAM_BYTES, HIGH_RAM_GPA, 14 << 30)


def test_programs_get_disjoint_private_and_shared_memory() -> None:
    memory = GuestMemoryMap(512 * MIB, vcpus=4)
    places = [memory.placement("vm", vcpu, seed=1) for vcpu in range(4)]
    private = sorted((place.base_gpa, place.base_gpa + place.length) for place in places)
    shared = sorted((place.shared_gpa, place.shared_gpa + place.shared_length) for place in places)
    for spans in (private, shared):
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    pool = memory.shared
    assert pool.gpa + 24 * 1024 < shared[0][0]
    assert shared[-1][1] <= pool.gpa + pool.length <= private[0][0]
    assert private[-1][1] <= memory.memory_bytes


def test_the_pool_follows_the_swiotlb_rule() -> None:
    assert GuestMemoryMap(100 << 30, vcpus=1).shared.length == 1 << 30
    assert GuestMemoryMap(1 << 30, vcpus=1).shared.length == 60 * MIB


@pytest.mark.parametrize(("memory", "vcpus"), [(0, 1), (63 * MIB, 1), (64 * MIB + 4096, 1), (64 * MIB, 64)])
def test_impossible_sizes_are_refused(memory: int, vcpus: int) -> None:
    with pytest.raises(ValueError, match="memory: expected"):
        GuestMemoryMap(memory, vcpus)
