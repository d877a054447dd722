"""A network card between two drivers: frames go through, and what no driver may do ends in a documented error."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tio.dma_port import DmaFault
from tio.virtio_format import DeviceStatus, Interrupt, Register
from tio.virtio_net import LONGEST_FRAME_BYTES, RECEIVE, TRANSMIT, VirtioNet

SIZE = 8
MEMORY_BYTES = 1 << 16
QUEUE = {RECEIVE: 0x0000, TRANSMIT: 0x1000}
DESC, AVAIL, USED, BUFFERS = 0, 0x200, 0x400, 0x4000
MAC = bytes.fromhex("020000000001")
NEXT, WRITE, INDIRECT = 1, 2, 4
READY_STATUS = 1 | 2 | 8 | 4


class Ram:
    """64 KiB; everything else is not there."""

    def __init__(self):
        self.data = bytearray(MEMORY_BYTES)
        self.accesses = 0

    def read(self, address, length):
        self.accesses += 1
        if not 0 <= address <= address + length <= MEMORY_BYTES:
            raise DmaFault(address, length, write=False)
        return bytes(self.data[address : address + length])

    def write(self, address, data):
        self.accesses += 1
        if not 0 <= address <= address + len(data) <= MEMORY_BYTES:
            raise DmaFault(address, len(data), write=True)
        self.data[address : address + len(data)] = data


class Driver:
    """Lays what it is told into the rings, right or wrong."""

    def __init__(self):
        self.ram = Ram()
        self.card = VirtioNet(self.ram, MAC)
        self.offered = {RECEIVE: 0, TRANSMIT: 0}
        self.set_up()

    def set(self, register, value):
        return self.card.write_register(register, value, 4)

    def set_up(self, features=(1 << 5 | 1 << 3, 0b11), status=READY_STATUS):
        self.set(Register.STATUS, 0)
        self.set(Register.STATUS, 1 | 2)
        for word, bits in enumerate(features):
            self.set(Register.DRIVER_FEATURES_SEL, word)
            self.set(Register.DRIVER_FEATURES, bits)
        self.set(Register.STATUS, 1 | 2 | 8)
        for queue, base in QUEUE.items():
            self.set(Register.QUEUE_SEL, queue)
            self.set(Register.QUEUE_NUM, SIZE)
            self.set(Register.QUEUE_DESC_LOW, base + DESC)
            self.set(Register.QUEUE_DRIVER_LOW, base + AVAIL)
            self.set(Register.QUEUE_DEVICE_LOW, base + USED)
            self.set(Register.QUEUE_READY, 1)
        self.set(Register.STATUS, status)

    def describe(self, queue, number, address, length, flags=0, following=0):
        at = QUEUE[queue] + DESC + 16 * number
        self.ram.data[at : at + 16] = struct.pack("<QIHH", address, length, flags, following)

    def offer(self, queue, head, index=None):
        base, number = QUEUE[queue] + AVAIL, self.offered[queue]
        struct.pack_into("<H", self.ram.data, base + 4 + 2 * (number % SIZE), head)
        self.offered[queue] = (number + 1) % 65536 if index is None else index
        struct.pack_into("<H", self.ram.data, base + 2, self.offered[queue])

    def used(self, queue):
        base = QUEUE[queue] + USED
        (index,) = struct.unpack_from("<H", self.ram.data, base + 2)
        return index, [struct.unpack_from("<II", self.ram.data, base + 4 + 8 * slot) for slot in range(SIZE)]

    def send(self, frame, header=bytes(12)):
        self.ram.data[BUFFERS : BUFFERS + 12 + len(frame)] = header + frame
        self.describe(TRANSMIT, 0, BUFFERS, len(header), NEXT, 1)
        self.describe(TRANSMIT, 1, BUFFERS + len(header), len(frame))
        self.offer(TRANSMIT, 0)
        return self.set(Register.QUEUE_NOTIFY, TRANSMIT)

    @property
    def needs_reset(self):
        return bool(self.card.read_register(Register.STATUS, 4) & DeviceStatus.NEEDS_RESET)


FRAME = bytes(range(200))


def test_a_frame_sent_by_one_card_is_received_by_another():
    one, other = Driver(), Driver()
    other.describe(RECEIVE, 3, 0x8000, 2048, WRITE)
    other.offer(RECEIVE, 3)
    (frame,) = one.send(FRAME)
    assert other.card.receive(frame)
    assert other.ram.data[0x8000 : 0x8000 + 212] == struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1) + FRAME
    assert (one.used(TRANSMIT)[0], one.used(TRANSMIT)[1][0]) == (1, (0, 0))
    assert (other.used(RECEIVE)[0], other.used(RECEIVE)[1][0]) == (1, (3, 212))
    assert other.card.read_register(Register.INTERRUPT_STATUS, 4) == Interrupt.USED_BUFFER
    other.set(Register.INTERRUPT_ACK, 1)
    assert other.card.read_register(Register.INTERRUPT_STATUS, 4) == 0


def test_a_driver_reads_what_the_card_is():
    card = VirtioNet(Ram(), MAC)
    words = [card.read_register(offset, 4) for offset in (0, 4, 8)]
    assert words == [int.from_bytes(b"virt", "little"), 2, 1]
    assert bytes(card.read_register(0x100 + at, 1) for at in range(6)) == MAC
    assert card.read_register(0x100 + 10, 2) == 1500
    assert [card.read_register(offset, width) for offset, width in ((0x200, 4), (0x10A, 8), (0x48, 4), (0, 2))] == [
        0, 1500, 0, 0,
    ]  # fmt: skip


def test_rings_go_round_as_often_as_one_likes():
    driver = Driver()
    for number in range(3 * SIZE):
        assert driver.send(bytes([number]) * 60) == (bytes([number]) * 60,)
    assert driver.used(TRANSMIT)[0] == 3 * SIZE


@pytest.mark.parametrize(
    ("features", "kept"),
    [((0, 0b11), True), ((0, 0b01), False), ((0, 0b10), False), ((1, 0b11), False), ((0, 0b111), False)],
)
def test_features_that_were_not_offered_or_must_be_taken_are_not_accepted(features, kept):
    driver = Driver()
    driver.set_up(features)
    assert bool(driver.card.read_register(Register.STATUS, 4) & DeviceStatus.FEATURES_OK) is kept
    assert driver.card.registers.serves is kept
    assert bool(driver.send(FRAME)) is kept


@pytest.mark.parametrize("size", [0, 3, 512, 1 << 31])
def test_a_queue_of_an_impossible_size_is_never_ready(size):
    driver = Driver()
    driver.set(Register.QUEUE_SEL, TRANSMIT)
    driver.set(Register.QUEUE_READY, 0)
    driver.set(Register.QUEUE_NUM, size)
    driver.set(Register.QUEUE_READY, 1)
    assert driver.card.read_register(Register.QUEUE_READY, 4) == 0
    assert driver.send(FRAME) == ()


def test_a_ready_queue_stays_where_it_is():
    driver = Driver()
    driver.set(Register.QUEUE_SEL, TRANSMIT)
    driver.set(Register.QUEUE_DESC_LOW, 0xF000)
    driver.set(Register.QUEUE_NUM, 2)
    assert driver.send(FRAME) == (FRAME,)


def outside(driver):
    driver.describe(TRANSMIT, 0, 1 << 40, 100)
    driver.offer(TRANSMIT, 0)


def loop(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 1, NEXT, 1)
    driver.describe(TRANSMIT, 1, BUFFERS, 1, NEXT, 0)
    driver.offer(TRANSMIT, 0)


def no_such_descriptor(driver):
    driver.offer(TRANSMIT, SIZE)


def no_such_next(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 100, NEXT, 60_000)
    driver.offer(TRANSMIT, 0)


def index_jump(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 100)
    driver.offer(TRANSMIT, 0, index=SIZE + 1)


def index_back(driver):
    driver.send(FRAME)
    driver.offer(TRANSMIT, 0, index=0)


def indirect(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 32, INDIRECT)
    driver.offer(TRANSMIT, 0)


def empty_part(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 0)
    driver.offer(TRANSMIT, 0)


def writable(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 100, WRITE)
    driver.offer(TRANSMIT, 0)


def write_before_read(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 100, WRITE | NEXT, 1)
    driver.describe(TRANSMIT, 1, BUFFERS, 100)
    driver.offer(TRANSMIT, 0)


def no_header(driver):
    driver.describe(TRANSMIT, 0, BUFFERS, 11)
    driver.offer(TRANSMIT, 0)


MALFORMED = [outside, loop, no_such_descriptor, no_such_next, index_jump, index_back, indirect, empty_part, writable]
MALFORMED += [write_before_read, no_header]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_what_no_driver_may_do_needs_a_reset_and_after_it_all_is_well(malformed):
    driver = Driver()
    malformed(driver)
    before = driver.ram.accesses
    assert driver.set(Register.QUEUE_NOTIFY, TRANSMIT) == ()
    assert driver.ram.accesses - before <= 2 + 2 * SIZE
    assert (driver.needs_reset, driver.card.counts.errors) == (True, 1)
    assert driver.card.read_register(Register.INTERRUPT_STATUS, 4) & Interrupt.CONFIGURATION
    assert driver.send(FRAME) == ()  # nothing is served,
    driver.set(Register.STATUS, READY_STATUS)
    assert driver.needs_reset  # and no store but a reset helps
    driver.ram.data[:0x2000] = bytes(0x2000)
    driver.offered = {RECEIVE: 0, TRANSMIT: 0}
    driver.set_up()
    assert driver.send(FRAME) == (FRAME,)


@pytest.mark.parametrize(
    ("number", "address", "length", "flags"),
    [(0, 0x8000, 1525, WRITE), (0, 0x8000, 2048, 0), (0, MEMORY_BYTES - 100, 2048, WRITE), (SIZE, 0, 0, 0)],
)
def test_a_bad_receive_buffer_needs_a_reset(number, address, length, flags):
    driver = Driver()
    if number < SIZE:
        driver.describe(RECEIVE, number, address, length, flags)
    driver.offer(RECEIVE, number)
    assert not driver.card.receive(bytes(LONGEST_FRAME_BYTES))
    assert driver.needs_reset


@pytest.mark.parametrize(("frame", "header"), [(bytes(13), bytes(12)), (bytes(1515), bytes(12)), (FRAME, b"\1" * 12)])
def test_a_frame_of_no_right_length_or_with_an_offload_is_dropped_and_the_next_one_sent(frame, header):
    driver = Driver()
    assert driver.send(frame, header) == ()
    assert (driver.card.counts.bad_frames, driver.needs_reset) == (1, False)
    assert driver.send(FRAME) == (FRAME,)


def test_a_frame_without_a_buffer_is_dropped_and_counted():
    driver = Driver()
    assert not driver.card.receive(FRAME)
    driver.set(Register.STATUS, 0)
    assert not driver.card.receive(FRAME)
    assert (driver.card.counts.no_buffer, driver.card.counts.errors) == (2, 0)


@settings(max_examples=60, deadline=None)
@given(
    rings=st.binary(min_size=0x480, max_size=0x480),
    stores=st.lists(st.tuples(st.integers(0, 0x120), st.integers(0, (1 << 64) - 1), st.sampled_from([1, 2, 4, 8]))),
)
def test_any_rings_and_stores_do_bounded_work_and_raise_nothing(rings, stores):
    driver = Driver()
    driver.ram.data[0x1000:0x1480] = rings
    driver.ram.data[0:0x480] = rings
    for offset, value, width in stores:
        driver.card.write_register(offset, value, width)
        driver.card.read_register(offset, width)
    before = driver.ram.accesses
    driver.set(Register.QUEUE_NOTIFY, TRANSMIT)
    driver.card.receive(FRAME)
    assert driver.ram.accesses - before <= 256 * (5 + 2 * 256)
