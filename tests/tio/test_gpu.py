"""The GPU's commands, and what a hostile driver may ask of it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.dma_port import DmaFault
from tio.gpu import (
    COMMAND_BYTES,
    MEMORY_BAR,
    MOST_ENTRIES,
    Gpu,
    GpuCommand,
    GpuOpcode,
    GpuRegister,
    GpuServed,
    GpuStatus,
)

RING, FENCE, DATA = 0x1000, 0x8000, 0x10000
MEMORY = 1 << 16


class Driver:
    """Host memory, and a driver that puts commands into it."""

    def __init__(self, entries: int = 16) -> None:
        self.octets = bytearray(1 << 20)
        self.refused = range(0)
        self.gpu = Gpu(self, MEMORY)
        self.log: list[GpuServed] = []
        self.gpu.served = self.log.append
        self.entries, self.tail = entries, 0
        for register, value, width in (
            (GpuRegister.RING_BASE, RING, 8), (GpuRegister.FENCE_BASE, FENCE, 8), (GpuRegister.RING_ENTRIES, entries, 4)
        ):  # fmt: skip
            self.gpu.store(0, register, value, width)

    def read(self, address: int, length: int) -> bytes:
        if address in self.refused or address + length > len(self.octets):
            raise DmaFault(address, length, write=False)
        return bytes(self.octets[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        if address in self.refused or address + len(data) > len(self.octets):
            raise DmaFault(address, len(data), write=True)
        self.octets[address : address + len(data)] = data

    def submit(self, *commands: GpuCommand) -> None:
        for one in commands:
            at = RING + self.tail * COMMAND_BYTES
            self.octets[at : at + COMMAND_BYTES] = one.pack()
            self.tail = (self.tail + 1) % self.entries
        self.gpu.store(0, GpuRegister.DOORBELL, self.tail, 4)

    def fence(self) -> tuple[int, int]:
        sequence, status = struct.unpack_from("<II", self.octets, FENCE)
        return sequence, status


def test_a_job_brings_matrices_multiplies_them_and_takes_the_product_back() -> None:
    driver, draw = Driver(), np.random.default_rng(3)
    one, other = draw.integers(-(1 << 31), 1 << 31, (7, 5)), draw.integers(-(1 << 31), 1 << 31, (5, 3))
    octets = one.astype("<i4").tobytes() + other.astype("<i4").tobytes()
    driver.octets[DATA : DATA + len(octets)] = octets
    driver.submit(
        GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, len(octets)),
        GpuCommand(GpuOpcode.MULTIPLY, 2, 0, 0x1000, 7 * 5 * 4, 7, 5, 3),
        GpuCommand(GpuOpcode.COPY_OUT, 3, 0x1000, DATA, 7 * 3 * 4),
    )
    # In unlimited integers, cut to 32 bits.
    expected = [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in other.T] for row in one]
    found = struct.unpack_from("<21I", driver.octets, DATA)
    assert list(found) == [value % (1 << 32) for row in expected for value in row]
    assert driver.fence() == (3, GpuStatus.DONE)
    assert [(one.bytes_read, one.bytes_written, one.products) for one in driver.log] == [
        (len(octets), 0, 0), (0, 0, 105), (0, 84, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (GpuCommand(0, 9, 0, 0, 4), GpuStatus.UNKNOWN_OPCODE),
        (GpuCommand(99, 9, 0, 0, 4), GpuStatus.UNKNOWN_OPCODE),
        (GpuCommand(GpuOpcode.COPY_IN, 9, DATA, MEMORY - 3, 4), GpuStatus.OUTSIDE_MEMORY),
        (GpuCommand(GpuOpcode.COPY_IN, 9, DATA, 0, (1 << 64) - 1), GpuStatus.OUTSIDE_MEMORY),
        (GpuCommand(GpuOpcode.COPY_OUT, 9, (1 << 64) - 4, DATA, 8), GpuStatus.OUTSIDE_MEMORY),
        (GpuCommand(GpuOpcode.COPY_IN, 9, (1 << 64) - 8, 0, 8), GpuStatus.DMA_REFUSED),
        (GpuCommand(GpuOpcode.COPY_OUT, 9, 0, 1 << 21, 8), GpuStatus.DMA_REFUSED),
        (GpuCommand(GpuOpcode.MULTIPLY, 9, 0, 0, 0, 1 << 31, 1 << 31, 1 << 31), GpuStatus.TOO_MUCH),
        (GpuCommand(GpuOpcode.MULTIPLY, 9, 0, 0, 0, 200, 200, 200), GpuStatus.OUTSIDE_MEMORY),
        (GpuCommand(GpuOpcode.MULTIPLY, 9, 2, 0, 0, 1, 1, 1), GpuStatus.OUTSIDE_MEMORY),
    ],
)
def test_a_command_that_is_wrong_changes_nothing_but_the_fence(command: GpuCommand, status: GpuStatus) -> None:
    driver = Driver()
    driver.gpu.memory[:] = 7
    before = bytes(driver.octets[DATA:])
    driver.submit(command)
    assert driver.fence() == (9, status)
    assert (driver.gpu.memory == 7).all()
    assert bytes(driver.octets[DATA:]) == before
    driver.submit(GpuCommand(GpuOpcode.COPY_IN, 10, DATA, 0, 4))
    assert driver.fence() == (10, GpuStatus.DONE)


@pytest.mark.parametrize("refused", [RING, FENCE])
def test_a_ring_or_fence_out_of_reach_stops_the_device_until_reset(refused: int) -> None:
    driver = Driver()
    driver.refused = range(refused, refused + 1)
    driver.submit(GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 4))
    assert driver.gpu.load(0, GpuRegister.STATUS, 4) == 2
    driver.submit(GpuCommand(GpuOpcode.COPY_IN, 2, DATA, 0, 4))
    assert driver.log == []
    driver.gpu.reset()
    assert driver.gpu.load(0, GpuRegister.STATUS, 4) == 0


@pytest.mark.parametrize("tail", [16, 1 << 31, MOST_ENTRIES])
def test_a_doorbell_that_names_no_entry_is_ignored(tail: int) -> None:
    driver = Driver()
    driver.gpu.store(0, GpuRegister.DOORBELL, tail, 4)
    assert (driver.gpu.ignored, driver.log) == (1, [])


def test_a_ring_goes_round() -> None:
    driver = Driver(entries=4)
    for sequence in range(10):
        driver.submit(GpuCommand(GpuOpcode.COPY_IN, sequence, DATA, 0, 4))
    assert [one.sequence for one in driver.log] == list(range(10))
    assert driver.gpu.load(0, GpuRegister.HEAD, 4) == 10 % 4


def test_data_stays_in_the_device_until_it_is_cleared() -> None:
    driver = Driver()
    driver.octets[DATA : DATA + 6] = b"secret"
    driver.submit(GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0x100, 6))
    assert driver.gpu.load(MEMORY_BAR, 0x100, 4) == int.from_bytes(b"secr", "little")
    driver.gpu.scrub()
    assert driver.gpu.load(MEMORY_BAR, 0x100, 4) == 0
    driver.gpu.store(MEMORY_BAR, 0x200, 0xAABB, 2)
    assert driver.gpu.memory[0x200:0x202].tobytes() == b"\xbb\xaa"
    driver.gpu.store(MEMORY_BAR, MEMORY - 1, 0xAABB, 2)
    assert driver.gpu.load(0, GpuRegister.MEMORY_BYTES, 8) == MEMORY


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=COMMAND_BYTES, max_size=COMMAND_BYTES), min_size=1, max_size=15), st.data())
def test_any_entries_are_served_to_the_end(entries: list[bytes], data: st.DataObject) -> None:
    driver = Driver()
    for number, entry in enumerate(entries):
        opcode = data.draw(st.integers(0, 4)).to_bytes(4, "little")
        driver.octets[RING + number * COMMAND_BYTES : RING + (number + 1) * COMMAND_BYTES] = opcode + entry[4:]
    driver.gpu.store(0, GpuRegister.DOORBELL, len(entries), 4)
    assert len(driver.log) == len(entries)
