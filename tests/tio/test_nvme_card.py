"""A disk in a slot: its driver works over the link, plain or trusted; of trusted work nothing stays but the media."""

from __future__ import annotations

from dataclasses import replace

import pytest
from slot import BARS, CARD, STREAM, Slot, draw, running

from tio.ide import IdeTlp, Way
from tio.nvme_card import NvmeDevice, nvme_card
from tio.nvme_driver import NvmeDriver, NvmeDriverError
from tio.nvme_format import CSTS_READY, DOORBELLS, AdminOpcode, Register, Status, SubmissionEntry
from tio.nvme_namespace import NvmeNamespace
from tio.pci import DeviceControl
from tio.pci import Register as Config
from tio.tdisp import LockFlags, TdiState

BASE, DATA, TOLD = 0x10000, 0x40000, 0x80000
CANARY = b"what a tenant keeps on its disk!" * 16


class OverTheLink:
    """A controller as a driver reaches it: by loads and stores of its BAR."""

    def __init__(self, slot: Slot, *, tee: bool) -> None:
        self._root, self._tee = slot.root, tee

    @property
    def ready(self) -> bool:
        return self._root.load(BARS[0] + Register.CSTS, 4, tee=self._tee) == CSTS_READY

    def write_register(self, offset: int, value: int, width: int = 4) -> None:
        self._root.store(BARS[0] + offset, value, width, tee=self._tee)

    def ring_submission(self, queue: int, tail: int) -> tuple[()]:
        self.write_register(DOORBELLS + 8 * queue, tail)
        return ()

    def ring_completion(self, queue: int, head: int) -> tuple[()]:
        self.write_register(DOORBELLS + 8 * queue + 4, head)
        return ()


class Host:
    """The host's own memory, as its driver lays queues into it."""

    def __init__(self, slot: Slot) -> None:
        self._octets = slot.memory.octets

    def read(self, address: int, length: int) -> bytes:
        return bytes(self._octets[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self._octets[address : address + len(data)] = data


def disk(*, tee: bool, flags: LockFlags = LockFlags.LOCK_MSIX) -> tuple[Slot, NvmeDevice, NvmeDriver]:
    card, device = nvme_card(draw, NvmeNamespace(64))
    slot = running(card, flags) if tee else Slot(card)
    return slot, device, NvmeDriver(OverTheLink(slot, tee=tee), Host(slot), BASE)


@pytest.mark.parametrize("tee", [False, True])
def test_a_disk_is_driven_over_its_link_and_only_a_plain_one_is_read_there(tee: bool) -> None:
    slot, device, driver = disk(tee=tee)
    done = []
    device.served = done.append
    slot.watch()
    driver.start()
    assert (driver.blocks, driver.block_bytes) == (64, 512)
    slot.memory.octets[DATA : DATA + 512] = CANARY
    assert driver.write(3, 1, [(DATA, 512)]) == Status.SUCCESS
    assert driver.read(3, 1, [(DATA + 0x1000, 512)]) == Status.SUCCESS
    assert slot.memory.octets[DATA + 0x1000 : DATA + 0x1200] == CANARY
    assert device.controller.namespace.read(3, 1) == CANARY
    assert {(one.tee, one.stream_id) for one in slot.memory.log} == {(tee, STREAM if tee else None)}
    assert (CANARY[:64] in slot.on_the_wire()) is not tee
    assert [(one.bytes_read, one.bytes_written) for one in done if one.queue] == [(0, 512), (512, 0)]


def test_every_completion_interrupts_if_its_queue_wants_to_be_told() -> None:
    slot, _, driver = disk(tee=False)
    slot.set_vector(0, TOLD, 0xA0)
    slot.set_vector(1, TOLD + 4, 0xA1)
    driver.start()
    assert slot.memory.octets[TOLD : TOLD + 8] == bytes.fromhex("a000000000000000")  # its I/O queue is polled
    slot.memory.octets[DATA : DATA + 512] = CANARY
    assert driver.write(0, 1, [(DATA, 512)]) == Status.SUCCESS
    assert slot.memory.octets[TOLD + 4] == 0
    for opcode, words in (
        (AdminOpcode.DELETE_IO_SQ, {"cdw10": 1}),
        (AdminOpcode.DELETE_IO_CQ, {"cdw10": 1}),
        (AdminOpcode.CREATE_IO_CQ, {"prp1": BASE + 0x3000, "cdw10": 63 << 16 | 1, "cdw11": 1 << 16 | 0b11}),
        (AdminOpcode.CREATE_IO_SQ, {"prp1": BASE + 0x2000, "cdw10": 63 << 16 | 1, "cdw11": 1 << 16 | 1}),
    ):
        assert driver.submit(0, SubmissionEntry(opcode, 0, **words)).status == Status.SUCCESS
    driver._rings[1].tail = driver._rings[1].head = 0
    Host(slot).write(BASE + 0x3000, bytes(4096))
    driver._rings[1].phase = 1
    assert driver.write(0, 1, [(DATA, 512)]) == Status.SUCCESS
    assert slot.memory.octets[TOLD + 4] == 0xA1


def test_memory_that_is_refused_is_a_status_and_queues_out_of_reach_are_fatal() -> None:
    slot, device, driver = disk(tee=True)
    driver.start()
    slot.memory.refused = {DATA >> 12}
    assert driver.write(0, 1, [(DATA, 512)]) == Status.DATA_TRANSFER_ERROR
    assert device.controller.namespace.resident_bytes == 0
    slot.memory.refused = {BASE + 0x2000 >> 12}
    slot.root.store(BARS[0] + DOORBELLS + 8, 5, 4, tee=True)
    assert not device.controller.ready
    assert slot.card.tdi.state is TdiState.RUN


@pytest.mark.parametrize("how", ["stop", "error", "flr"])
def test_after_trusted_work_queues_are_gone_and_media_stay(how: str) -> None:
    slot, device, driver = disk(tee=True)
    driver.start()
    slot.memory.octets[DATA : DATA + 512] = CANARY
    assert driver.write(7, 1, [(DATA, 512)]) == Status.SUCCESS
    if how == "stop":
        slot.stop()
    elif how == "error":
        slot.card.port.streams[STREAM].disable()
        assert slot.card.tdi.state is TdiState.ERROR
    else:
        slot.root.configuration_write(CARD, Config.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
        assert slot.card.tdi.state is TdiState.ERROR
    assert not device.controller.ready
    assert device.controller.read_register(Register.ASQ, 8) == 0
    assert device.controller.ring_submission(1, 3) == ()
    assert device.controller.namespace.read(7, 1) == CANARY


def test_a_stream_that_fails_in_the_middle_of_a_queue_leaves_nothing_behind() -> None:
    slot, device, driver = disk(tee=True)
    driver.start()
    count = 0

    def bend(_way: Way, packet: IdeTlp) -> list[IdeTlp]:
        nonlocal count
        count += 1
        return [replace(packet, mac=bytes(12)) if count == 4 else packet]

    slot.link.tap = bend
    slot.memory.octets[DATA : DATA + 512] = CANARY
    with pytest.raises(NvmeDriverError, match="completion"):
        driver.write(7, 1, [(DATA, 512)])
    assert slot.card.tdi.state is TdiState.ERROR
    assert device.controller.read_register(Register.CSTS) == 0


def test_each_virtual_function_has_a_disk_of_its_own() -> None:
    disks = [NvmeNamespace(8), NvmeNamespace(16)]
    card, device = nvme_card(draw, NvmeNamespace(4), virtual=disks)
    found = [one.device for one in card.functions.all]
    assert found[0] is device
    assert [one.controller.namespace for one in found[1:]] == disks
    assert [one.requester_id for one in card.functions.all] == [0x0100, 0x0101, 0x0102]
