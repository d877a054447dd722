"""Bounce buffers: no slot is lent twice, none is lost, and devices see what was copied for them and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.generation import CAPABILITIES
from node.mechanism import Mechanism
from node.operations import Copy, Fault, FaultKind, Read, Shutdown, Sleep, UpkeepRead, Write
from node.swiotlb import (
    MOST_MAPPED_BYTES,
    SEGMENT_SLOTS,
    SLOT_BYTES,
    BounceArea,
    BounceBuffersFull,
    BounceFault,
    PoolSizing,
    book_bytes,
    pool_bytes,
)
from tests.node.toy_guests import COSTS, GENERATIONS, MIB, look, make_host, run, script, spa, start

BOOK, POOL = 0x10_0000, 0x20_0000


class Memory:
    """A guest's memory without a machine around it."""

    def __init__(self) -> None:
        self.octets = bytearray(b"\xa5" * (4 * MIB))
        self.refused: set[type] = set()

    def run(self, steps):
        """What a part of a block returns."""
        answers = None
        while True:
            try:
                batch = steps.send(answers)
            except StopIteration as end:
                return end.value
            answers = tuple([self._answer(one) for one in batch])

    def _answer(self, one):
        if type(one) in self.refused:
            return Fault(FaultKind.RMP_FAULT, 0)
        if isinstance(one, Read):
            assert one.private
            return bytes(self.octets[one.gpa : one.gpa + one.length])
        if isinstance(one, Write):
            assert one.private
            self.octets[one.gpa : one.gpa + len(one.data)] = one.data
            return None
        assert isinstance(one, Copy)
        data = bytes(self.octets[one.source : one.source + one.length])
        self.octets[one.target : one.target + one.length] = data
        return data


def opened(slots: int) -> tuple[Memory, BounceArea]:
    memory, area = Memory(), BounceArea(POOL, slots * SLOT_BYTES, BOOK)
    memory.run(area.open())
    return memory, area


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3 * SEGMENT_SLOTS), st.lists(st.integers(-20, MOST_MAPPED_BYTES), max_size=40))
def test_lent_slots_lie_in_the_area_apart_and_within_a_segment(slots: int, requests: list[int]) -> None:
    memory, area = opened(slots)
    lent: dict[int, int] = {}
    for length in requests:
        if length <= 0:
            if lent:
                at = sorted(lent)[length % len(lent)]
                memory.run(area.unmap(at, lent.pop(at)))
            continue
        taken = {slot for at, size in lent.items() for slot in _slots(at, size)}
        wanted = -(-length // SLOT_BYTES)
        fits = [
            first
            for first in range(slots - wanted + 1)
            if first // SEGMENT_SLOTS == (first + wanted - 1) // SEGMENT_SLOTS
            and not taken.intersection(range(first, first + wanted))
        ]
        if not fits:
            with pytest.raises(BounceBuffersFull):
                memory.run(area.map_from_device(0, length))
            continue
        at = memory.run(area.map_from_device(0, length))
        assert at == POOL + fits[0] * SLOT_BYTES
        lent[at] = length
    for at, length in lent.items():
        memory.run(area.unmap(at, length))
    for _ in range(slots):
        memory.run(area.map_from_device(0, 1))
    with pytest.raises(BounceBuffersFull):
        memory.run(area.map_from_device(0, 1))


def _slots(at: int, length: int) -> range:
    first = (at - POOL) // SLOT_BYTES
    return range(first, first - (-length // SLOT_BYTES))


def test_what_goes_out_is_a_copy_and_what_came_in_is_copied_as_far_as_the_driver_says() -> None:
    memory, area = opened(16)
    memory.octets[0:3000] = bytes(range(250)) * 12
    at = memory.run(area.map_to_device(0, 3000))
    assert memory.octets[at : at + 3000] == memory.octets[0:3000]
    memory.octets[at : at + 3000] = bytes(3000)
    assert memory.octets[0:250] == bytes(range(250))
    memory.run(area.copy_from_device(at, 0, 100))
    assert memory.octets[0:250] == bytes(100) + bytes(range(100, 250))


@pytest.mark.parametrize("length", [0, -1, MOST_MAPPED_BYTES + 1, 1 << 60])
def test_a_length_that_no_mapping_has_is_refused(length: int) -> None:
    memory, area = opened(2 * SEGMENT_SLOTS)
    with pytest.raises(ValueError, match="length: expected"):
        memory.run(area.map_from_device(0, length))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 2 * SLOT_BYTES), (1, 1), (SLOT_BYTES, 1), (-SLOT_BYTES, 1), (1 << 40, 1), (0, 0)]
)
def test_slots_that_were_not_lent_are_not_taken_back(offset: int, length: int) -> None:
    memory, area = opened(8)
    at = memory.run(area.map_from_device(0, 1))
    before = bytes(memory.octets)
    with pytest.raises(ValueError, match="buffer: "):
        memory.run(area.unmap(at + offset, length))
    assert memory.octets == before


def test_a_fault_leaves_no_slot_lent() -> None:
    memory, area = opened(4)
    before = bytes(memory.octets)
    memory.refused = {Copy}
    with pytest.raises(BounceFault):
        memory.run(area.map_to_device(0, 100))
    assert memory.octets == before
    memory.refused = {UpkeepRead}
    with pytest.raises(BounceFault):
        memory.run(area.map_to_device(0, 100))


def test_books_do_not_run_into_each_other() -> None:
    for size in (SLOT_BYTES, MIB, 59 * MIB + 4096, 1 << 30):
        area = BounceArea(POOL, size, BOOK)
        segments = -(-(size // SLOT_BYTES) // SEGMENT_SLOTS)
        assert segments * SEGMENT_SLOTS // 8 <= book_bytes(size)
        assert book_bytes(size) % 4096 == 0
        written = next(area.open())
        assert max(one.gpa + len(one.data) for one in written) <= BOOK + book_bytes(size)


@pytest.mark.parametrize(
    ("memory", "share", "clamped"),
    [
        (64 * MIB, 64 * MIB * 6 // 100, 32 * MIB),
        (96 * MIB, 96 * MIB * 6 // 100, 32 * MIB),
        (1 << 30, (1 << 30) * 6 // 100, 64 * MIB),
        (4 << 30, (4 << 30) * 6 // 100, (4 << 30) * 6 // 100),
        (64 << 30, 1 << 30, 1 << 30),
    ],
)
def test_the_pool_is_a_share_of_memory_and_its_sources_part_where_that_is_little(memory, share, clamped) -> None:
    assert (pool_bytes(memory), pool_bytes(memory, PoolSizing.CLAMPED)) == (share, clamped)


def test_a_plain_vm_lends_its_own_memory_and_copies_nothing() -> None:
    area = BounceArea(POOL, MIB, BOOK, bounces=False)
    memory = Memory()
    for steps, answer in (
        (area.open(), None), (area.map_to_device(0x5000, 9), 0x5000), (area.map_from_device(0x6000, 9), 0x6000),
        (area.copy_to_device(1, 2, 3), None), (area.copy_from_device(1, 2, 3), None), (area.unmap(0x5000, 9), None),
    ):  # fmt: skip
        assert memory.run(steps) == answer
    assert memory.octets == Memory().octets


def bounce(place, _):
    """Send a record out through the pool, and bring it back to another place."""
    area = BounceArea.of(place)
    yield from area.open()
    yield (Write(place.base_gpa, b"record" * 500),)
    at = yield from area.map_to_device(place.base_gpa, 3000)
    yield from area.copy_from_device(at, place.base_gpa + 8192, 3000)
    (back,) = yield (Read(place.base_gpa + 8192, 3000),)
    if place.bounces and back != b"record" * 500:
        return Shutdown(1)
    return Sleep(10**18)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_copies_pass_through_shared_memory_and_are_accounted(generation) -> None:
    host = make_host({"bounce": script(bounce)})
    guest = start(host, "a", generation, "bounce")
    run(host)
    place = guest.spec.memory.placement("a", 0, 11)
    encrypted = CAPABILITIES[generation].key_per_vm
    assert guest.shutdown_code == 0
    assert guest.bytes_bounced == (6000 if encrypted else 0)
    assert (guest.lost_ns[Mechanism.BOUNCE] > 0) is encrypted
    if encrypted:
        # The book is begun, looked at and noted in, and each of two copies has two ends.
        least = 6000 / 1024 * COSTS["bounce.copy_ns_per_kib"] + 7 * COSTS["dram.latency_ns"]
        assert least < guest.lost_ns[Mechanism.BOUNCE] < 1.2 * least
        # The host reads the buffer, and of the memory and the book behind it ciphertext.
        seen = host.board.controller.read(spa(host, guest, place.shared_gpa), 3000, 0)
        assert seen == b"record" * 500
        assert host.board.controller.read(spa(host, guest, place.base_gpa), 3000, 0) != seen
        assert look(host, guest, place.book_gpa, 16) == (3).to_bytes(16, "little")
        assert host.board.controller.read(spa(host, guest, place.book_gpa), 16, 0) != (3).to_bytes(16, "little")
