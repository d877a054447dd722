"""Real cards in a board's slots: what their host sees, what a driver does in the clear, and who reaches what."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
from iommu_boards import Driver, brought_up, do, events, host

from node import operations as op
from node.board import Board
from node.card_memory import INTERRUPTS_BASE
from node.card_slot import CardSlot, windows
from node.iommu_events import EventCode
from node.platform import HostMode, Platform
from psp.system_bus import PAGE_BYTES, RmpEntry
from tio.device_identity import CardKind
from tio.doe import parse_data_object
from tio.gpu import GpuCommand, GpuOpcode, GpuRegister, GpuStatus
from tio.nvme_driver import DRIVER_MEMORY_BYTES, NvmeDriver
from tio.nvme_format import Register as NvmeRegister
from tio.nvme_format import Status
from tio.nvme_namespace import MediaError
from tio.pci import Command, Register
from tio.pci.doe_mailbox import exchange
from tio.spdm import PCI_DOE, Packet, Requester, RequesterSettings, TrustAnchors
from tio.spdm.codes import Response
from tio.steps import carry

GPU = CardSlot(2, CardKind.GPU, memory_bytes=1 << 16)
NIC = CardSlot(5, CardKind.NIC, serial="0002")
CARDS = (GPU, NIC)
RING, FENCE, DATA = 20 << 20, 21 << 20, 22 << 20
MASTER = Command.MEMORY_SPACE | Command.BUS_MASTER


def bars(board: Board, slot: CardSlot = GPU) -> dict[int, int]:
    """Where its BARs are, as a host reads them."""
    found = host(board, *[op.ConfigRead(slot.requester, 0x10 + 4 * word) for word in range(6)])
    return {at: found[at] & ~0xF | found[at + 1] << 32 for at in (0, 2, 4) if found[at] or found[at + 1]}


def switched_on(board: Board, slot: CardSlot = GPU) -> dict[int, int]:
    """Memory space and bus mastering on, and the IOMMU maps the driver's pages, each to itself."""
    assert host(board, op.ConfigWrite(slot.requester, Register.COMMAND, MASTER, 2)) == (None,)
    do(board, Driver().attach(slot.requester, 4, [(RING, RING), (FENCE, FENCE), (DATA, DATA)]))
    return bars(board, slot)


def copy_out_and_in(board: Board) -> GpuStatus:
    """Have the GPU copy ``DATA`` in and out again, one page on."""
    base = switched_on(board)[0]
    commands = (GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 64), GpuCommand(GpuOpcode.COPY_OUT, 2, 0, DATA + 64, 64))
    host(board, op.HostWrite(RING, b"".join(one.pack() for one in commands)), op.HostWrite(FENCE, bytes(8)))
    stored = host(
        board, op.MmioWrite(base + GpuRegister.RING_BASE, RING), op.MmioWrite(base + GpuRegister.FENCE_BASE, FENCE),
        op.MmioWrite(base + GpuRegister.RING_ENTRIES, 16, 4), op.MmioWrite(base + GpuRegister.DOORBELL, 2, 4),
    )  # fmt: skip
    assert stored == (None,) * 4
    (fence,) = host(board, op.HostRead(FENCE, 8))
    assert isinstance(fence, bytes)
    return GpuStatus(struct.unpack("<II", fence)[1])


@pytest.fixture(scope="module")
def board() -> Board:
    return brought_up("Turin", Platform(cards=CARDS))


def test_a_host_finds_its_cards_by_their_configuration_space(board: Board) -> None:
    ids = {}
    for requester in range(0, 8 << 8, 1 << 8):
        (found,) = host(board, op.ConfigRead(requester, Register.VENDOR_ID))
        ids[requester] = found
    there = {requester for requester, found in ids.items() if found != 0xFFFF_FFFF}
    assert there == {GPU.requester, NIC.requester}
    assert {ids[GPU.requester] >> 16, ids[NIC.requester] >> 16} == {0x5E01, 0x5E02}


@pytest.mark.parametrize("slot", CARDS)
def test_each_bar_has_an_address_of_its_own_in_the_port_s_window(board: Board, slot: CardSlot) -> None:
    (window,) = [one for one in windows(board.dram.size_bytes, CARDS) if one.slot is slot]
    found = sorted(bars(board, slot).values())
    assert len(found) == (3 if slot is GPU else 2)
    assert len(set(found)) == len(found)
    assert all(window.base <= at < window.end for at in found)


def test_registers_answer_only_while_memory_space_is_on(board: Board) -> None:
    at = bars(board)[0] + GpuRegister.MEMORY_BYTES
    host(board, op.ConfigWrite(GPU.requester, Register.COMMAND, 0, 2))
    assert host(board, op.MmioRead(at, 4)) == (0xFFFF_FFFF,)
    switched_on(board)
    assert host(board, op.MmioRead(at, 4), op.MmioRead(at)) == (1 << 16, 1 << 16)
    # Between the BARs is nobody, and that is the window's still.
    assert host(board, op.MmioRead(max(bars(board).values()) + (1 << 20), 2)) == (0xFFFF,)


@pytest.mark.parametrize("product", ["Rome", "Milan", "Turin"])
@pytest.mark.parametrize("mode", [HostMode.NONE, HostMode.TSME])
def test_a_card_works_in_the_clear_behind_the_iommu(product: str, mode: HostMode) -> None:
    board = brought_up(product, Platform(mode=mode, cards=CARDS))
    host(board, op.HostWrite(DATA, bytes(range(64))))
    assert copy_out_and_in(board) is GpuStatus.DONE
    assert host(board, op.HostRead(DATA + 64, 64)) == (bytes(range(64)),)
    assert events(board) == []


def test_a_guest_s_page_is_out_of_its_reach(board: Board) -> None:
    """Row 71a: the device is told of its load, nobody of its store."""
    assert host(board, op.RmpUpdate(DATA, PAGE_BYTES, RmpEntry(assigned=True, gpa=0x5000, asid=9))) == (0,)
    before = board.dram.read(DATA, 128)
    assert copy_out_and_in(board) is GpuStatus.DONE
    assert board.dram.read(DATA, 128) == before
    assert {one.code for one in events(board)} == {EventCode.RMP_PAGE_FAULT}
    assert host(board, op.RmpUpdate(DATA, PAGE_BYTES, RmpEntry())) == (0,)


def test_without_bus_mastering_it_reaches_no_memory(board: Board) -> None:
    base = switched_on(board)[0]
    host(board, op.HostWrite(FENCE, bytes(8)), op.ConfigWrite(GPU.requester, Register.COMMAND, 2, 2))
    host(board, op.MmioWrite(base + GpuRegister.DOORBELL, 3, 4))
    assert host(board, op.HostRead(FENCE, 8)) == (bytes(8),)


def test_an_interrupt_s_write_arrives_as_one(board: Board) -> None:
    table = switched_on(board, NIC)[4]
    vector, place = 3, table + 16 * 3
    host(
        board, op.MmioWrite(place, INTERRUPTS_BASE | 7 << 12), op.MmioWrite(place + 8, 0x61, 4),
        op.MmioWrite(place + 12, 0, 4), op.ConfigWrite(NIC.requester, Register.MSIX_CONTROL, 1 << 15, 2),
    )  # fmt: skip
    assert board.slots.by_port[NIC.port].card.dma.interrupt(vector)
    (found,) = board.card_memory.interrupts
    assert (found.requester, found.vector, found.apic_id) == (NIC.requester, 0x61, 7)
    board.card_memory.interrupts.clear()


def test_slots_that_nobody_touches_cost_nothing_and_sixty_four_tdis_little() -> None:
    cards = tuple([CardSlot(port, CardKind.GPU, memory_bytes=16 << 20, virtual_functions=7) for port in range(1, 9)])
    begin = time.process_time()
    board = brought_up("Turin", Platform(cards=cards))
    assert board.slots.by_port == {}
    for one in cards:
        host(board, op.ConfigRead(one.requester, 0))
    assert time.process_time() - begin < 1
    assert list(board.slots.by_port) == [one.port for one in cards]


# A disk and a NIC.


class Registers:
    """A controller's registers, as its host reaches them by address."""

    def __init__(self, board: Board, base: int) -> None:
        self._board = board
        self._base = base

    @property
    def ready(self) -> bool:
        return bool(self.read_register(NvmeRegister.CSTS) & 1)

    def read_register(self, offset: int, width: int = 4) -> int:
        (found,) = host(self._board, op.MmioRead(self._base + offset, width))
        assert isinstance(found, int)
        return found

    def write_register(self, offset: int, value: int, width: int = 4) -> tuple[()]:
        assert host(self._board, op.MmioWrite(self._base + offset, value, width)) == (None,)
        return ()

    def ring_submission(self, queue: int, tail: int) -> tuple[()]:
        return self.write_register(0x1000 + 8 * queue, tail)

    def ring_completion(self, queue: int, head: int) -> tuple[()]:
        return self.write_register(0x1004 + 8 * queue, head)


class HostPort:
    """The driver's way to memory: the host's own loads and stores."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, address: int, length: int) -> bytes:
        (data,) = host(self._board, op.HostRead(address, length))
        assert isinstance(data, bytes)
        return data

    def write(self, address: int, data: bytes) -> None:
        assert host(self._board, op.HostWrite(address, data)) == (None,)


def test_a_disk_in_a_slot_keeps_what_is_written_over_its_link() -> None:
    slot = CardSlot(4, CardKind.NVME, memory_bytes=1 << 20)
    board = brought_up("Turin", Platform(cards=(slot,)))
    assert host(board, op.ConfigWrite(slot.requester, Register.COMMAND, MASTER, 2)) == (None,)
    queues, text = 24 << 20, b"what the disk holds".ljust(4096, b".")
    pages = [(at, at) for at in range(queues, queues + DRIVER_MEMORY_BYTES, PAGE_BYTES)]
    do(board, Driver().attach(slot.requester, 4, [*pages, (DATA, DATA)]))
    driver = NvmeDriver(Registers(board, bars(board, slot)[0]), HostPort(board), queues)  # type: ignore[arg-type]
    driver.start()
    host(board, op.HostWrite(DATA, text))
    assert driver.write(5, 1, [(DATA, 4096)]) == 0
    host(board, op.HostWrite(DATA, bytes(4096)))
    assert driver.read(5, 1, [(DATA, 4096)]) == 0
    assert host(board, op.HostRead(DATA, 4096)) == (text,)
    assert driver.read(256, 1, [(DATA, 4096)]) == Status.LBA_OUT_OF_RANGE
    assert events(board) == []


def test_a_disk_on_a_file_holds_it_has_its_size_and_never_writes_to_it(tmp_path: Path) -> None:
    octets = bytes(range(256)) * 16 * 3
    file = tmp_path / "disk.img"
    file.write_bytes(octets)
    slot = CardSlot(4, CardKind.NVME, disk=str(file), virtual_functions=1)
    board = brought_up("Turin", Platform(cards=(slot, replace(slot, port=5, disk=str(tmp_path / "gone.img")))))
    host(board, *[op.ConfigRead(requester, 0) for requester in (slot.requester, replace(slot, port=5).requester)])
    own, other, gone = (
        board.slots.device_of(requester).controller.namespaces[1]  # type: ignore[union-attr]
        for requester in (slot.requester, slot.requester + 1, replace(slot, port=5).requester)
    )
    assert (own.blocks, own.read(0, 3), other.read(1, 1)) == (3, octets, octets[4096:8192])
    own.write(1, b"z" * 4096)
    assert (own.read(1, 1), other.read(1, 1), file.read_bytes()) == (b"z" * 4096, octets[4096:8192], octets)
    with pytest.raises(MediaError, match=r"gone.img"):
        gone.read(0, 1)


@pytest.mark.parametrize("kind", [CardKind.GPU, CardKind.NIC])
def test_only_disks_lie_on_files(kind: CardKind) -> None:
    with pytest.raises(ValueError, match="disk: expected none"):
        CardSlot(1, kind, disk="disk.img")


def test_each_kind_of_card_is_what_its_slot_says_and_virtual_functions_have_devices_of_their_own() -> None:
    kinds = enumerate(CardKind, 1)
    cards = tuple([CardSlot(at, kind, memory_bytes=1 << 16, virtual_functions=2) for at, kind in kinds])
    board = brought_up("Turin", Platform(cards=cards))
    for one in cards:
        host(board, op.ConfigRead(one.requester, 0))
        filled = board.slots.by_port[one.port]
        assert filled.card.kind is one.kind
        assert len(filled.card.functions.all) == 3
        assert len({id(behind.device) for behind in filled.card.functions._behind}) == 3


def key_exchange(board: Board) -> tuple[bytes, bytes]:
    """What the card in the GPU's slot draws for a session: its random bytes, and its public key."""
    card, heard = board.slots.by_port[GPU.port].card, list[bytes]()
    at = card.space.extended_at(card.mailbox)

    def carried(packet: Packet) -> Packet:
        asked = parse_data_object(PCI_DOE.wrap(packet))
        found = exchange(
            lambda offset: card.space.read(at + offset), lambda offset, word: card.space.write(at + offset, word), asked
        )
        assert found is not None
        heard.append(found.payload)
        return PCI_DOE.unwrap(found.pack())

    one = Requester(RequesterSettings(anchors=TrustAnchors((card.identity.root,))), PCI_DOE, lambda n: b"\x07" * n)
    for step in (one.connect, one.digests, one.certificates, one.open_session):
        carry(step(), carried)
    (answer,) = [each for each in heard if each[1] == Response.KEY_EXCHANGE_RSP]
    return answer[8:40], answer[40:136]


def test_no_card_draws_what_the_one_before_it_in_its_slot_did() -> None:
    """Who has the one, or makes it pass for the other, would have the keys of the other's sessions."""
    drawn = []
    for others in ((GPU, replace(GPU, maker=2)), (replace(GPU, maker=2),)):
        board = brought_up("Turin", Platform(cards=CARDS))
        host(board, op.ConfigRead(GPU.requester, 0))
        drawn.append(key_exchange(board))
        for other in others:
            board.slots.swap(GPU.port, other)
            drawn.append(key_exchange(board))
    # Each is new, but for the same card's where it is the first in the same slot of the same host.
    assert drawn[0] == drawn[3]
    assert [len({one[part] for one in drawn}) for part in range(2)] == [4, 4]
