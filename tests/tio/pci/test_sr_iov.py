"""SR-IOV registers, by hand from the specification, 9.3.3."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.pci import SrIovCapability, VirtualPlace
from tio.tdisp import Tampering

CONTROL, TOTAL, NUM_VFS, OFFSETS, DEVICE_ID, VF_BAR_0 = 0x08, 0x0C, 0x10, 0x14, 0x18, 0x24
VF_ENABLE, VF_MSE = 1 << 0, 1 << 3


def capability() -> tuple[SrIovCapability, list[Tampering]]:
    one = SrIovCapability(4, {0: 0x4000, 4: 0x2000}, 0x5E83)
    events: list[Tampering] = []
    one.changed = events.append
    return one, events


def enable(one: SrIovCapability, count: int = 3) -> None:
    one.store(NUM_VFS, count)
    one.store(VF_BAR_0, 0x8000_0000)
    one.store(VF_BAR_0 + 4, 0x12)
    one.store(CONTROL, VF_ENABLE | VF_MSE)


def test_what_it_says_of_itself() -> None:
    one, _ = capability()
    assert (one.capability_id, one.size_bytes) == (0x10, 0x40)
    assert one.load(TOTAL) == 4 << 16 | 4
    assert one.load(OFFSETS) == 1 << 16 | 1
    assert one.load(DEVICE_ID) == 0x5E83 << 16
    assert [one.load(at) for at in (4, 0x1C, 0x20)] == [0, 1, 1]
    assert [one.load(VF_BAR_0 + 4 * at) for at in range(6)] == [0b1100, 0, 0, 0, 0b1100, 0]


def test_a_bar_is_sized_and_placed_for_all_virtual_functions_one_after_another() -> None:
    one, events = capability()
    one.store(VF_BAR_0, 0xFFFF_FFFF)
    assert one.load(VF_BAR_0) == 0xFFFF_C00C
    enable(one)
    places = [VirtualPlace(one, number) for number in range(4)]
    assert [place.bar_address(0) for place in places[:3]] == [0x12_8000_0000, 0x12_8000_4000, 0x12_8000_8000]
    assert places[0].bar_address(4) == 0
    assert one.places() == [(0x12_8000_0000, 3 * 0x4000), (0, 3 * 0x2000)]
    assert [place.exists for place in places] == [True, True, True, False]
    assert [place.memory_enabled for place in places] == [True, True, True, False]
    assert set(events) == {Tampering.BAR, Tampering.SR_IOV}


def test_only_what_changes_something_is_told_and_the_count_is_fixed_while_there_are_any() -> None:
    one, events = capability()
    enable(one)
    events.clear()
    for offset, value in ((CONTROL, VF_ENABLE | VF_MSE), (NUM_VFS, 2), (NUM_VFS, 9), (VF_BAR_0 + 4, 0x12), (TOTAL, 9)):
        assert one.store(offset, value) is None
    assert (events, one.enabled) == ([], 3)
    assert one.store(CONTROL, 0) is Tampering.SR_IOV
    assert (one.enabled, one.memory_enabled, events) == (0, False, [Tampering.SR_IOV])
    assert one.store(NUM_VFS, 5) is None  # more than there can be
    assert one.store(NUM_VFS, 4) is Tampering.SR_IOV


@pytest.mark.parametrize("offset", [0, 4, 0x0C, 0x14, 0x18, 0x1C, 0x20, 0x2C, 0x3C, 0x40, 0x1000])
def test_what_is_read_only_stays(offset: int) -> None:
    one, events = capability()
    before = [one.load(at) for at in range(4, 0x40, 4)]
    one.store(offset, 0xFFFF_FFFF)
    assert ([one.load(at) for at in range(4, 0x40, 4)], events) == (before, [])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 17), st.integers(0, 0xFFFF_FFFF)), max_size=20))
def test_any_stores_leave_registers_that_agree(stores: list[tuple[int, int]]) -> None:
    one, _ = capability()
    for word, value in stores:
        one.store(4 * word, value)
        assert one.enabled <= one.asked_for <= one.total
        assert 0 <= one.load(4 * word) < 1 << 32
        assert all(VirtualPlace(one, 2).bar_address(index) < (1 << 64) + 0x8000 for index in (0, 4))
