"""A guest's NVMe disk: queues of its own, through bounce buffers or straight, and a disk that lies."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_devices import PRIVATE, SHARED, SHARED_BYTES, Place

from node.device_window import DeviceSilent, DeviceWindow
from node.guest_nvme import BLOCK_BYTES, GuestNvme, NvmeUntrusted
from tio.nvme import NvmeController
from tio.nvme_format import CompletionEntry, Status
from tio.nvme_namespace import NvmeNamespace

DATA = 1 << 20
BLOCKS = 512


class Disk:
    """A controller behind BAR 0."""

    def __init__(self, port):
        self.controller = NvmeController(port, NvmeNamespace(BLOCKS, BLOCK_BYTES))

    def load(self, _bar, offset, width):
        return self.controller.read_register(offset, width)

    def store(self, _bar, offset, value, width):
        self.controller.write_register(offset, value, width)


def made(*, bounces):
    place = Place(bounces=bounces)
    place.device = Disk(place)
    disk = GuestNvme(place.area, DeviceWindow(0, private=not bounces), PRIVATE)
    place.run(place.area.open())
    assert place.run(disk.start()) == BLOCKS
    return place, disk


@pytest.mark.parametrize("bounces", [False, True])
@given(lba=st.integers(0, BLOCKS - 80), blocks=st.integers(1, 80), at=st.integers(0, 7))
@settings(max_examples=8, deadline=None)
def test_what_was_written_is_read_back(bounces, lba, blocks, at):
    place, disk = made(bounces=bounces)
    length, out = blocks * BLOCK_BYTES, DATA + at * BLOCK_BYTES
    data = b"".join([struct.pack("<Q", number * 0x9E3779B97F4A7C15 & 2**64 - 1) for number in range(length // 8)])
    place.memory[out : out + length] = data
    assert place.run(disk.write(lba, blocks, out)) == 0
    place.memory[out : out + length] = bytes(length)
    assert place.run(disk.read(lba, blocks, out)) == 0
    assert place.memory[out : out + length] == data
    assert (data[-4096:] in place.memory[SHARED : SHARED + SHARED_BYTES]) == bounces


def test_queues_go_round_and_their_phase_with_them():
    place, disk = made(bounces=True)
    for number in range(300):
        place.memory[DATA : DATA + 8] = struct.pack("<Q", number)
        assert place.run(disk.write(number % 64, 1, DATA)) == 0
        assert place.run(disk.read(number % 64, 1, DATA + 4096)) == 0
        assert place.memory[DATA + 4096 : DATA + 4104] == struct.pack("<Q", number)


def test_a_status_of_the_disk_is_handed_on_and_nothing_stays_lent():
    place, disk = made(bounces=True)
    for _ in range(40):
        assert place.run(disk.read(BLOCKS, 1, DATA)) == Status.LBA_OUT_OF_RANGE
    assert place.run(disk.read(0, 80, DATA)) == 0


FIRST = CompletionEntry(0, 1, 1, 1, 1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        bytes(16),
        CompletionEntry(0, 1, 1, 2, 1, 0).pack(),
        CompletionEntry(0, 1, 1, 1, 0, 0).pack(),
        b"\xff" * 16,
    ],
)
def test_a_completion_of_another_command_is_not_believed(answer):
    place, disk = made(bounces=True)
    place.spoil[SHARED + 3 * 4096] = answer
    with pytest.raises(NvmeUntrusted):
        place.run(disk.read(0, 1, DATA))


def test_where_no_disk_is_none_is_found():
    place, disk = made(bounces=False)

    class Silence:
        def load(self, _bar, _offset, length):
            return (1 << 8 * length) - 1

        def store(self, *_):
            pass

    place.device = Silence()
    with pytest.raises(DeviceSilent):
        place.run(disk.start())


def test_a_disk_that_is_stopped_and_started_serves_again():
    place, disk = made(bounces=True)
    place.memory[DATA : DATA + 4] = b"kept"
    assert place.run(disk.write(9, 1, DATA)) == 0
    place.run(disk.stop())
    assert place.run(disk.start()) == BLOCKS
    assert place.run(disk.read(9, 1, DATA + 4096)) == 0
    assert place.memory[DATA + 4096 : DATA + 4100] == b"kept"
