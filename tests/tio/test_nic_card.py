"""A network card in a slot: frames go both ways through rings in memory, plain or trusted."""

from __future__ import annotations

import struct

import pytest
from slot import BARS, STREAM, Slot, draw

from tio.nic_card import NicDevice, nic_card
from tio.tdisp import TdiState
from tio.virtio_format import DeviceStatus, Register
from tio.virtio_net import RECEIVE, TRANSMIT

MAC = bytes.fromhex("020000000001")
RINGS, BUFFERS, TOLD, SIZE = {RECEIVE: 0x10000, TRANSMIT: 0x11000}, 0x14000, 0x80000, 8
AVAILABLE, USED = 0x200, 0x400
FRAME = bytes(12) + b"\x08\x00" + b"a frame of the tenant's that crosses its link"


def card(*, tee: bool) -> tuple[Slot, NicDevice]:
    """A card that its driver has set up, with a receive buffer."""
    one, device = nic_card(draw, MAC)
    slot = Slot(one)
    slot.set_vector(0, TOLD, 0xC0)
    slot.set_vector(1, TOLD + 4, 0xC1)
    if tee:
        slot.give_keys()
        slot.run()

    def store(register: int, value: int) -> None:
        slot.root.store(BARS[0] + register, value, 4, tee=tee)

    for register, value in (
        (Register.STATUS, 3), (Register.DRIVER_FEATURES_SEL, 0), (Register.DRIVER_FEATURES, 1 << 5 | 1 << 3),
        (Register.DRIVER_FEATURES_SEL, 1), (Register.DRIVER_FEATURES, 0b11), (Register.STATUS, 11),
    ):  # fmt: skip
        store(register, value)
    for queue, base in RINGS.items():
        for register, value in (
            (Register.QUEUE_SEL, queue), (Register.QUEUE_NUM, SIZE), (Register.QUEUE_DESC_LOW, base),
            (Register.QUEUE_DRIVER_LOW, base + AVAILABLE), (Register.QUEUE_DEVICE_LOW, base + USED),
            (Register.QUEUE_READY, 1),
        ):  # fmt: skip
            store(register, value)
    store(Register.STATUS, 15)
    offer(slot, RECEIVE, BUFFERS, 2048, 2)
    return slot, device


def offer(slot: Slot, queue: int, address: int, length: int, flags: int = 0) -> None:
    base, octets = RINGS[queue], slot.memory.octets
    octets[base : base + 16] = struct.pack("<QIHH", address, length, flags, 0)
    octets[base + AVAILABLE : base + AVAILABLE + 6] = struct.pack("<HHH", 0, 1, 0)


@pytest.mark.parametrize("tee", [False, True])
def test_frames_go_out_and_come_in_and_only_those_of_a_plain_card_are_read_on_the_link(tee: bool) -> None:
    slot, device = card(tee=tee)
    slot.watch()
    slot.memory.log.clear()
    sent = []
    device.sent = sent.append
    slot.memory.octets[0x18000 : 0x18000 + 12 + len(FRAME)] = bytes(12) + FRAME
    offer(slot, TRANSMIT, 0x18000, 12 + len(FRAME))
    slot.root.store(BARS[0] + Register.QUEUE_NOTIFY, TRANSMIT, 4, tee=tee)
    assert sent == [FRAME]
    assert device.receive(FRAME[::-1])
    assert slot.memory.octets[BUFFERS + 12 : BUFFERS + 12 + len(FRAME)] == FRAME[::-1]
    assert slot.memory.octets[TOLD : TOLD + 8] == bytes.fromhex("c000000000000000")
    assert {(one.tee, one.stream_id) for one in slot.memory.log} == {(tee, STREAM if tee else None)}
    assert any(FRAME[16:48] in packet.payload for _, packet in slot.seen) is not tee


def test_a_card_that_cannot_go_on_says_so_by_its_other_vector_once() -> None:
    slot, device = card(tee=False)
    slot.memory.refused = {RINGS[RECEIVE] >> 12}
    assert not device.receive(FRAME)
    assert slot.memory.octets[TOLD + 4] == 0xC1
    slot.memory.octets[TOLD + 4] = 0
    assert not device.receive(FRAME)
    assert slot.memory.octets[TOLD + 4] == 0
    assert slot.root.load(BARS[0] + Register.STATUS, 4, tee=False) & DeviceStatus.NEEDS_RESET


def test_a_card_that_was_stopped_knows_no_queue_and_drops_what_comes() -> None:
    slot, device = card(tee=True)
    slot.stop()
    slot.memory.log.clear()
    assert not device.receive(FRAME)
    assert slot.memory.log == []
    assert slot.root.load(BARS[0] + Register.STATUS, 4, tee=False) == 0


def test_a_card_whose_stream_failed_sends_nothing() -> None:
    slot, device = card(tee=True)
    sent = []
    device.sent = sent.append
    offer(slot, TRANSMIT, 0x18000, 60)
    slot.root.port.streams[STREAM].disable()
    slot.memory.log.clear()
    assert not device.receive(FRAME)
    assert (slot.memory.log, sent) == ([], [])
    slot.card.port.streams[STREAM].disable()
    assert slot.card.tdi.state is TdiState.ERROR
    device.store(0, Register.QUEUE_NOTIFY, TRANSMIT, 4)
    assert sent == []
