"""Memory as cards reach it: the IOMMU's two sides, and interrupts."""

from __future__ import annotations

import pytest
from card_laboratory import CARDS, NotingPort
from iommu_boards import IOVA, REQUESTER, TARGET, attached, brought_up, events, host

from node import operations as op
from node.board import Board
from node.card_memory import INTERRUPTS_BASE, INTERRUPTS_END, MOST_WAITING, CardMemory
from node.card_slot import windows
from node.iommu_events import EventCode
from node.platform import Platform
from node.rmp import GuestCore
from node.root_complex import RootComplex
from psp.system_bus import PAGE_BYTES, RmpEntry
from psp.tsm.secure_device_entry import SecureDeviceEntry
from psp.tsm.trusted_io import TdiBinding
from tio.dma_port import DmaFault

ASID, STREAM = 3, 9
DATA = b"sixteen bytes of"


@pytest.fixture(scope="module")
def board() -> Board:
    """A device whose guest owns one page that its host maps, and which shares another."""
    made = brought_up("Turin")
    assert made.rmp is not None
    assert made.trusted_dma is not None
    made.controller.install_key(ASID, bytes(made.controller.key_bytes))
    attached(made, ((IOVA, TARGET), (IOVA + PAGE_BYTES, TARGET + PAGE_BYTES)))
    assert host(made, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry(assigned=True, gpa=IOVA, asid=ASID))) == (0,)
    made.rmp.pvalidate(TARGET, IOVA, GuestCore(ASID), PAGE_BYTES, large=False, validate=True)
    made.trusted_dma.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    made.trusted_dma.write_entry(REQUESTER, SecureDeviceEntry(valid=True, read=True, write=True))
    made.trusted_dma.start(REQUESTER)
    return made


def test_the_t_bit_decides_which_side_of_the_iommu_answers(board: Board) -> None:
    memory = board.card_memory
    memory.write(REQUESTER, IOVA, DATA, tee=True, stream_id=STREAM)
    assert memory.read(REQUESTER, IOVA, 16, tee=True, stream_id=STREAM) == DATA
    assert board.controller.read(TARGET, 16, ASID) == DATA
    memory.write(REQUESTER, IOVA + PAGE_BYTES, DATA, tee=False, stream_id=STREAM)
    assert board.dram.read(TARGET + PAGE_BYTES, 16) == DATA
    assert events(board) == []
    with pytest.raises(DmaFault):
        memory.read(REQUESTER, IOVA, 16, tee=False, stream_id=STREAM)
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]


def test_a_fence_stops_what_a_guest_s_device_sends_without_t_too(board: Board) -> None:
    memory, dma = board.card_memory, board.trusted_dma
    assert dma is not None
    dma.fences.error(ASID)
    before = board.dram.read(TARGET + PAGE_BYTES, 16)
    with pytest.raises(DmaFault):
        memory.read(REQUESTER, IOVA + PAGE_BYTES, 16, tee=False, stream_id=None)
    with pytest.raises(DmaFault):
        memory.write(REQUESTER, IOVA + PAGE_BYTES, b"x" * 16, tee=False, stream_id=None)
    assert board.dram.read(TARGET + PAGE_BYTES, 16) == before
    dma.unbind(REQUESTER)
    assert dma.fences.clear(ASID)
    assert len(memory.read(REQUESTER, IOVA + PAGE_BYTES, 16, tee=False, stream_id=None)) == 16
    dma.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    dma.write_entry(REQUESTER, SecureDeviceEntry(valid=True, read=True, write=True))
    dma.start(REQUESTER)


@pytest.mark.parametrize("stream", [None, STREAM + 1])
def test_trusted_requests_pass_only_on_the_stream_of_the_binding(board: Board, stream: int | None) -> None:
    with pytest.raises(DmaFault):
        board.card_memory.read(REQUESTER, IOVA, 16, tee=True, stream_id=stream)
    before = board.dram.read(TARGET, 16)
    try:
        board.card_memory.write(REQUESTER, IOVA, b"x" * 16, tee=True, stream_id=stream)
    except DmaFault:
        assert stream is None
    assert board.dram.read(TARGET, 16) == before
    events(board)


def test_a_part_without_sev_tio_lets_nothing_pass_with_the_t_bit() -> None:
    memory = brought_up("Milan").card_memory
    with pytest.raises(DmaFault):
        memory.read(REQUESTER, TARGET, 16, tee=True, stream_id=STREAM)
    with pytest.raises(DmaFault):
        memory.write(REQUESTER, TARGET, DATA, tee=True, stream_id=STREAM)


def test_a_store_to_the_interrupts_addresses_is_one_whatever_is_mapped(board: Board) -> None:
    memory = board.card_memory
    memory.write(REQUESTER, INTERRUPTS_BASE | 5 << 12, (0x41).to_bytes(4, "little"), tee=False, stream_id=None)
    (found,) = memory.interrupts
    assert (found.requester, found.vector, found.apic_id, found.tee) == (REQUESTER, 0x41, 5, False)
    memory.interrupts.clear()
    assert events(board) == []


@pytest.mark.parametrize("address", [INTERRUPTS_BASE - 4, INTERRUPTS_END])
def test_beside_them_it_is_a_store_like_any_other(board: Board, address: int) -> None:
    board.card_memory.write(REQUESTER, address, b"word", tee=False, stream_id=None)
    assert board.card_memory.interrupts == []
    assert [one.code for one in events(board)] == [EventCode.IO_PAGE_FAULT]


def test_interrupts_that_nobody_takes_are_bounded_and_counted(board: Board) -> None:
    memory = CardMemory(board.iommu, board.trusted_dma)
    for vector in range(MOST_WAITING + 3):
        memory.write(REQUESTER, INTERRUPTS_BASE, vector.to_bytes(4, "little"), tee=False, stream_id=None)
    assert (len(memory.interrupts), memory.lost) == (MOST_WAITING, 3)
    with pytest.raises(DmaFault):
        memory.write(REQUESTER, INTERRUPTS_BASE, b"", tee=False, stream_id=None)


# One card at another's memory.


def peers(board: Board) -> tuple[NotingPort, CardMemory]:
    """A device that its host lets reach the registers of a card, by the second page that it maps."""
    slots = RootComplex(windows(board.dram.size_bytes, CARDS), NotingPort)
    board.iommu.memory.peers = slots
    port = slots.port(1)
    assert isinstance(port, NotingPort)
    return port, board.card_memory


@pytest.mark.parametrize("caches", [False, True])
def test_a_peer_is_reached_without_t_by_what_the_host_s_tables_and_the_rmp_let_through(caches: bool) -> None:
    board = brought_up("Turin", Platform(cards=CARDS, caches=caches))
    port, memory = peers(board)
    base = port.window.base
    attached(board, ((IOVA, base),))
    memory.write(REQUESTER, IOVA + 4, bytes(range(1, 17)), tee=False, stream_id=None)
    assert port.seen == [("store", base + 4, False), ("store", base + 8, False), ("store", base + 16, False)]
    assert port.registers[base + 8] == 0x0C0B_0A09_0807_0605
    assert memory.read(REQUESTER, IOVA + 8, 8, tee=False, stream_id=None) == bytes(range(5, 13))
    port.seen.clear()
    assert host(board, op.RmpUpdate(base, PAGE_BYTES, RmpEntry(assigned=True, gpa=IOVA, asid=ASID))) == (0,)
    memory.write(REQUESTER, IOVA, DATA, tee=False, stream_id=None)
    assert port.seen == []
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]


def test_a_peer_s_request_that_comes_of_another_goes_nowhere() -> None:
    """So that two cards that write to each other do not go on for ever."""
    board = brought_up("Turin", Platform(cards=CARDS))
    port, memory = peers(board)
    attached(board, ((IOVA, port.window.base),))
    seen = []

    def rings(address: int, value: int, width: int, *, tee: bool) -> None:
        seen.append(address)
        memory.write(REQUESTER, IOVA, DATA, tee=False, stream_id=None)

    port.store = rings  # type: ignore[method-assign]
    memory.write(REQUESTER, IOVA, bytes(8), tee=False, stream_id=None)
    memory.write(REQUESTER, IOVA, bytes(8), tee=False, stream_id=None)
    assert seen == [port.window.base] * 2


def test_where_neither_memory_nor_a_card_is_the_fabric_ends_a_request(board: Board) -> None:
    port, memory = peers(board)
    attached(board, ((IOVA + (1 << 30), port.window.end + (1 << 40)),))
    with pytest.raises(DmaFault):
        memory.read(REQUESTER, IOVA + (1 << 30), 8, tee=False, stream_id=None)
    memory.write(REQUESTER, IOVA + (1 << 30), bytes(8), tee=False, stream_id=None)
    assert (port.seen, events(board)) == ([], [])
