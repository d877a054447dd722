"""Trusted DMA: the host's tables lead it, the guest's entry permits it, and the RMP has the last word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iommu_boards import IOVA, REQUESTER, TARGET, attached, brought_up, events, host, load

from node import operations as op
from node.board import Board
from node.iommu_events import FLAG_PERMISSION, FLAG_WRITE, EventCode
from node.rmp import GuestCore
from node.trusted_dma import TrustedDma
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry
from psp.tsm.secure_device_entry import ALL_PRIVATE, ReservedBits, SecureDeviceEntry
from psp.tsm.trusted_io import TdiBinding
from tio.dma_port import DmaFault

ASID, OTHER_ASID, STREAM = 3, 4, 9
GPA = IOVA
SECRET = b"private, device."
ALLOWED = SecureDeviceEntry(valid=True, read=True, write=True)
OWNED = RmpEntry(assigned=True, gpa=GPA, asid=ASID)
FIRMWARE_S = RmpEntry(assigned=True, immutable=True)


@pytest.fixture(scope="module")
def made() -> Board:
    """A Turin whose host maps one page of a guest for the device."""
    board = brought_up("Turin")
    for asid in (ASID, OTHER_ASID):
        board.controller.install_key(asid, bytes((asid,)) * board.controller.key_bytes)
    attached(board)
    return board


@pytest.fixture
def board(made: Board) -> Board:
    """The same with the page the host's again, nothing bound and an empty log."""
    assert made.rmp is not None
    made.rmp.set_entry(TARGET, RmpEntry())
    made.trusted_dma = TrustedDma(made.iommu, lambda: made.rmp)
    events(made)
    return made


def owned(
    board: Board, entry: RmpEntry = OWNED, *, validated: bool = True, bound: SecureDeviceEntry = ALLOWED
) -> TrustedDma:
    """Give the page to the guest, and it to the device."""
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, entry)) == (0,)
    if validated:
        assert board.rmp is not None
        board.rmp.pvalidate(TARGET, entry.gpa, GuestCore(entry.asid), PAGE_BYTES, large=False, validate=True)
    dma = board.trusted_dma
    assert dma is not None
    dma.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    dma.write_entry(REQUESTER, bound)
    dma.start(REQUESTER)
    return dma


def test_a_device_and_its_guest_share_private_memory(board: Board) -> None:
    dma = owned(board)
    dma.write(REQUESTER, STREAM, GPA + 32, SECRET)
    assert board.controller.read(TARGET + 32, 16, ASID) == SECRET
    assert board.dram.read(TARGET + 32, 16) != SECRET
    board.controller.write(TARGET + 64, SECRET[::-1], ASID)
    assert dma.read(REQUESTER, STREAM, GPA + 64, 16) == SECRET[::-1]
    assert dma.fences.status(ASID) == 0
    assert events(board) == []
    # Without T the same device does not get there.
    assert isinstance(load(board), op.Fault)
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]


@pytest.mark.parametrize(
    ("entry", "validated"),
    [
        (replace(OWNED, asid=OTHER_ASID), True),
        (replace(OWNED, gpa=GPA + PAGE_BYTES), True),
        (OWNED, False),
        (FIRMWARE_S, False),
    ],
)
def test_a_page_that_the_rmp_does_not_confirm_is_refused_told_and_fences_the_guest(
    board: Board, entry: RmpEntry, validated: bool
) -> None:
    before = board.dram.read(TARGET, 16)
    dma = owned(board, entry, validated=validated)
    dma.write(REQUESTER, STREAM, GPA, SECRET)
    (event,) = events(board)
    assert (event.code, event.device, event.tag, event.address) == (EventCode.RMP_PAGE_FAULT, REQUESTER, ASID, GPA)
    assert event.flags & FLAG_WRITE
    assert board.dram.read(TARGET, 16) == before
    assert dma.fences.status(ASID) == 0b1101
    # From now on nothing passes, in either direction, and nobody is told.
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)
    assert events(board) == []


def test_an_address_that_the_host_does_not_map_fences_the_guest(board: Board) -> None:
    dma = owned(board)
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA + PAGE_BYTES, 16)
    assert [one.code for one in events(board)] == [EventCode.IO_PAGE_FAULT]
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)
    assert not dma.fences.clear(ASID)  # its TDI still runs
    dma.unbind(REQUESTER)
    assert dma.fences.status(ASID) == 0b1101
    assert dma.fences.clear(ASID)
    assert dma.fences.status(ASID) == 3  # at rest
    assert owned(board).read(REQUESTER, STREAM, GPA, 16) == board.controller.read(TARGET, 16, ASID)


@pytest.mark.parametrize(
    ("entry", "write"),
    [
        (SecureDeviceEntry(), True),
        (SecureDeviceEntry(), False),
        (SecureDeviceEntry(valid=True, read=True), True),
        (SecureDeviceEntry(valid=True, write=True), False),
        (SecureDeviceEntry(read=True, write=True), False),
    ],
)
def test_what_the_guest_does_not_permit_is_refused_and_fences_nobody(
    board: Board, entry: SecureDeviceEntry, write: bool
) -> None:
    dma = owned(board, bound=entry)
    if write:
        dma.write(REQUESTER, STREAM, GPA, SECRET)
    else:
        with pytest.raises(DmaFault):
            dma.read(REQUESTER, STREAM, GPA, 16)
    (event,) = events(board)
    assert (event.code, bool(event.flags & FLAG_PERMISSION)) == (EventCode.IO_PAGE_FAULT, True)
    dma.write_entry(REQUESTER, ALLOWED)
    assert len(dma.read(REQUESTER, STREAM, GPA, 16)) == 16


@pytest.mark.parametrize(("device", "stream"), [(REQUESTER + 8, STREAM), (REQUESTER, STREAM + 1)])
def test_a_device_that_is_not_bound_or_comes_on_another_stream_gets_nowhere(
    board: Board, device: int, stream: int
) -> None:
    dma = owned(board)
    with pytest.raises(DmaFault):
        dma.read(device, stream, GPA, 16)
    assert [one.code for one in events(board)] == [EventCode.INVALID_DEVICE_REQUEST]
    assert dma.fences.status(ASID) == 0


def test_the_vmpl_of_the_entry_is_the_one_whose_permissions_count(board: Board) -> None:
    dma = owned(board, bound=replace(ALLOWED, vmpl=2))
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)
    dma.unbind(REQUESTER)
    dma.fences.clear(ASID)
    assert board.rmp is not None
    board.rmp.rmpadjust(TARGET, GPA, GuestCore(ASID, 0), PAGE_BYTES, large=False, target=2, permissions=1, vmsa=False)
    dma = owned_again(board, replace(ALLOWED, vmpl=2))
    assert len(dma.read(REQUESTER, STREAM, GPA, 16)) == 16
    before = board.dram.read(TARGET, 16)
    dma.write(REQUESTER, STREAM, GPA, SECRET)  # read-only for VMPL2
    assert board.dram.read(TARGET, 16) == before


def owned_again(board: Board, bound: SecureDeviceEntry) -> TrustedDma:
    dma = board.trusted_dma
    assert dma is not None
    dma.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    dma.write_entry(REQUESTER, bound)
    dma.start(REQUESTER)
    return dma


def test_above_vtom_memory_is_shared(board: Board) -> None:
    """vTOM at 2 MiB: the page at 4 MiB is shared, so it must be the host's, and no key is used."""
    dma = owned(board, bound=replace(ALLOWED, vtom_enabled=True, vtom=1))
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)
    dma.unbind(REQUESTER)
    dma.fences.clear(ASID)
    assert host(board, op.RmpUpdate(TARGET, PAGE_BYTES, RmpEntry())) == (0,)
    dma = owned_again(board, replace(ALLOWED, vtom_enabled=True, vtom=1))
    dma.write(REQUESTER, STREAM, GPA, SECRET)
    assert board.dram.read(TARGET, 16) == SECRET
    dma.write_entry(REQUESTER, replace(ALLOWED, vtom_enabled=True, vtom=(GPA + LARGE_PAGE_BYTES) // LARGE_PAGE_BYTES))
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)


def test_a_tdi_that_does_not_run_yet_gets_nowhere(board: Board) -> None:
    dma = owned(board)
    dma.bind(REQUESTER, TdiBinding(ASID, 0x20, frozenset({STREAM})))
    dma.write_entry(REQUESTER, ALLOWED)
    with pytest.raises(DmaFault):
        dma.read(REQUESTER, STREAM, GPA, 16)
    assert dma.fences.status(ASID) == 3
    dma.start(REQUESTER)
    assert len(dma.read(REQUESTER, STREAM, GPA, 16)) == 16


def unasked(board: Board) -> TrustedDma:
    """Without the secure device table."""
    return TrustedDma(board.iommu, lambda: board.rmp, asks_entries=False)


@pytest.mark.parametrize("stream", [STREAM, STREAM + 1])
def test_without_secure_entries_a_device_that_is_nobody_s_reaches_what_the_host_maps(board: Board, stream: int) -> None:
    owned(board)
    dma = unasked(board)
    dma.write(REQUESTER, stream, GPA, SECRET)
    assert board.controller.read(TARGET, 16, ASID) == SECRET
    assert dma.read(REQUESTER, stream, GPA, 16) == SECRET
    assert events(board) == []


@pytest.mark.parametrize(
    ("entry", "validated"), [(OWNED, False), (replace(OWNED, gpa=GPA + PAGE_BYTES), True), (FIRMWARE_S, False)]
)
def test_without_secure_entries_the_rmp_is_asked_as_ever(board: Board, entry: RmpEntry, validated: bool) -> None:
    owned(board, entry, validated=validated)
    before = board.dram.read(TARGET, 16)
    unasked(board).write(REQUESTER, STREAM, GPA, SECRET)
    assert [one.code for one in events(board)] == [EventCode.RMP_PAGE_FAULT]
    assert board.dram.read(TARGET, 16) == before


def test_a_part_without_tio_has_no_trusted_dma() -> None:
    assert brought_up("Milan").trusted_dma is None


@given(st.integers(0, 511))
def test_a_guest_sets_no_bit_but_its_own(bit: int) -> None:
    """V, IR and IW; VMPL in bits 50:49 of quad word 3; vTOM in bits 31:0 of quad word 5."""
    mine = {0, 61, 62, 3 * 64 + 49, 3 * 64 + 50, *range(5 * 64, 5 * 64 + 32)}
    raw = (1 << bit).to_bytes(64, "little")
    if bit not in mine:
        with pytest.raises(ReservedBits):
            SecureDeviceEntry.parse(raw)
        return
    assert SecureDeviceEntry.parse(raw).pack() == raw


def test_the_rest_value_of_vtom_makes_everything_private() -> None:
    entry = SecureDeviceEntry(vtom_enabled=True)
    assert (entry.vtom, entry.is_private(1 << 51)) == (ALL_PRIVATE, True)
