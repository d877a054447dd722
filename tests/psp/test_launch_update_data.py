"""LAUNCH_UPDATE_DATA takes any range in pieces of 2 MiB, and the pieces do not show."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from toy_machine import Machine, ToyBus

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.firmware import SecurityProcessor
from psp.status import Status
from psp.system_bus import LARGE_PAGE_BYTES

COMMAND_PAGE, DATA, ASID = 0x1000, 0x20_0000, 6


@dataclass
class CountingBus(ToyBus):
    """Notes how much firmware moves at once."""

    moved: list[tuple[str, int]] = field(default_factory=list)

    def read(self, spa: int, length: int) -> bytes:
        self.moved.append(("read", length))
        return super().read(spa, length)

    def encrypt_in_place(self, spa: int, length: int, asid: int) -> None:
        self.moved.append(("write", length))
        # Left as it is: the toy's pad is no cipher of single blocks.


def active_guest() -> tuple[Machine, CountingBus, int]:
    bus = CountingBus()
    machine = Machine(bus, SecurityProcessor(bus, lambda _, __, length: bytes(length)))
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    assert machine.call(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack()) == Status.SUCCESS
    handle = buffers.LaunchStart.parse(bus.read(COMMAND_PAGE, buffers.LaunchStart.SIZE)).handle
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, ASID).pack()) == Status.SUCCESS
    return machine, bus, handle


def update(machine: Machine, handle: int, spa: int, length: int) -> int:
    buffer = buffers.LaunchUpdateData(handle, spa, length).pack()
    return machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, buffer)


def test_two_mebibytes_are_one_read_and_one_write() -> None:
    machine, bus, handle = active_guest()
    bus.moved.clear()
    assert update(machine, handle, DATA, LARGE_PAGE_BYTES) == Status.SUCCESS
    moved = [one for one in bus.moved if one[1] != buffers.LaunchUpdateData.SIZE]
    assert moved == [("read", LARGE_PAGE_BYTES), ("write", LARGE_PAGE_BYTES)]


def test_a_long_unaligned_range_is_measured_whole_and_never_held_whole() -> None:
    machine, bus, handle = active_guest()
    length = 2 * LARGE_PAGE_BYTES + 4096 + 16
    data = hashlib.shake_128(b"image").digest(length)
    bus.write(DATA + 16, data)
    bus.moved.clear()
    assert update(machine, handle, DATA + 16, length) == Status.SUCCESS
    assert machine.psp.legacy_launch_record(handle).digest == hashlib.sha256(data).digest()
    assert sum(size for way, size in bus.moved if way == "write") == length
    assert max(size for _, size in bus.moved) == LARGE_PAGE_BYTES
    assert bus.read(DATA + 16, length) == data


def test_a_range_that_leaves_memory_is_refused_before_any_of_it_is_touched() -> None:
    machine, bus, handle = active_guest()
    bus.moved.clear()
    assert update(machine, handle, DATA, 0xFFFF_FFF0) == Status.INVALID_ADDRESS
    assert bus.moved == [("read", buffers.LaunchUpdateData.SIZE)]
    assert machine.psp.legacy_launch_record(handle).digest == hashlib.sha256(b"").digest()


def test_order_of_ranges_counts_and_their_cuts_do_not() -> None:
    whole, halves, swapped = (active_guest() for _ in range(3))
    data = hashlib.shake_128(b"image").digest(8192)
    for _, bus, _ in (whole, halves, swapped):
        bus.write(DATA, data)
    assert update(whole[0], whole[2], DATA, 8192) == Status.SUCCESS
    for spa in (DATA, DATA + 4096):
        assert update(halves[0], halves[2], spa, 4096) == Status.SUCCESS
    for spa in (DATA + 4096, DATA):
        assert update(swapped[0], swapped[2], spa, 4096) == Status.SUCCESS
    digests = [machine.psp.legacy_launch_record(handle).digest for machine, _, handle in (whole, halves, swapped)]
    assert digests[0] == digests[1] == hashlib.sha256(data).digest()
    assert digests[2] == hashlib.sha256(data[4096:] + data[:4096]).digest()
