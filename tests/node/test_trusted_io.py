"""What the firmware reaches of trusted I/O through its bus."""

from __future__ import annotations

import pytest
from card_laboratory import CARDS, port_of, with_noting_ports
from iommu_boards import IOVA, REQUESTER, TARGET, attached, brought_up, host

from node import operations as op
from node.board import Board
from node.iommu_driver import read_register
from node.iommu_registers import Register
from node.platform import Platform
from node.rmp import GuestCore
from psp.system_bus import PAGE_BYTES, RmpEntry
from psp.tsm.secure_device_entry import SecureDeviceEntry
from psp.tsm.trusted_io import TdiBinding, TrustedIo
from tio.dma_port import DmaFault

ASID, STREAM = 3, 9


def trusted_io(board: Board) -> TrustedIo:
    found = board.bus.trusted_io
    assert found is not None
    return found


def test_root_ports_are_found_by_number_in_the_one_segment_that_there_is() -> None:
    lab = with_noting_ports()
    found = trusted_io(lab.board)
    for slot in CARDS:
        assert found.root_port(0, slot.port) is port_of(lab, slot.port)
    for segment, port in ((0, 0), (0, 2), (0, -1), (1, CARDS[0].port), (0, 1 << 16)):
        assert found.root_port(segment, port) is None


@pytest.mark.parametrize(("product", "there"), [("Naples", False), ("Milan", False), ("Genoa", False), ("Turin", True)])
def test_only_turin_has_any_and_without_cards_no_root_port(product: str, there: bool) -> None:
    board = brought_up(product)
    assert (board.bus.trusted_io is not None) is there
    assert host(board, read_register(Register.EXTENDED_FEATURE_2)) == (there << 1,)
    if there:
        assert trusted_io(board).root_port(0, 1) is None


def test_a_tdi_is_bound_runs_is_fenced_and_is_nobody_s_again() -> None:
    board = brought_up("Turin", Platform(cards=CARDS))
    bus, memory = trusted_io(board), board.card_memory
    assert board.rmp is not None
    board.controller.install_key(ASID, bytes(board.controller.key_bytes))
    attached(board)
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry(assigned=True, gpa=IOVA, asid=ASID))) == (0,)
    board.rmp.pvalidate(TARGET, IOVA, GuestCore(ASID), PAGE_BYTES, large=False, validate=True)

    def loads(iova: int = IOVA) -> bool:
        try:
            return len(memory.read(REQUESTER, iova, 8, tee=True, stream_id=STREAM)) == 8
        except DmaFault:
            return False

    assert (loads(), bus.fence_status(ASID)) == (False, 3)
    bus.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    bus.write_entry(REQUESTER, SecureDeviceEntry(valid=True, read=True))
    assert (loads(), bus.fence_status(ASID)) == (False, 3)
    bus.start(REQUESTER)
    assert (loads(), bus.fence_status(ASID)) == (True, 0)
    assert not loads(IOVA + PAGE_BYTES)  # the host maps nothing there
    assert (loads(), bus.fence_status(ASID)) == (False, 0b1101)
    assert not bus.fence_clear(ASID)
    bus.unbind(REQUESTER)
    bus.unbind(REQUESTER)
    assert bus.fence_clear(ASID)
    assert (loads(), bus.fence_status(ASID)) == (False, 3)
    # Bound anew the entry is clear.
    bus.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    bus.start(REQUESTER)
    assert not loads()
