"""What somebody pokes into a table counts with the next walk of it, and no sooner: each kind of table, by each way.

The ways: cells of the DIMM, a device's store, and the host's store through an address that reaches the same cells.
The guest's own table of a SEV guest is ciphertext: to it the poke is an old block that is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from iommu_boards import DOMAIN, IOVA, REQUESTER, TABLES, TARGET, Driver, attached, brought_up, do, load
from iommu_boards import host as by_host
from paged_guests import FRAMES_SPA, LONG, MEMORY_SPA, MIB, PAGE, C, P, PagedGuest, U, W, paged_guest

from node import operations as op
from node.board import Board
from node.device_table import ENTRY_BYTES, DeviceTableEntry
from node.generation import Generation
from node.iommu_commands import invalidate_device, invalidate_domain
from node.iommu_driver import DEVICE_TABLE
from node.iommu_page_table import leaf
from node.physical_port import PhysicalPort
from node.platform import Platform, Protection
from node.tlb import TlbControl
from psp.system_bus import RmpEntry

GHOST = 48 * MIB
"""An address of the host's own that nobody uses."""
SLOT = 5

Poke = Callable[[Board, int, bytes], None]


def by_dimm(board: Board, spa: int, data: bytes) -> None:
    PhysicalPort(board.dram).poke(spa, data)


def by_dma(board: Board, spa: int, data: bytes) -> None:
    """The IOMMU of these boards is off, so a device says where it stores."""
    assert board.execute_host((op.DeviceWrite(SLOT, spa, data),)) == (None,)


def by_dma_past_the_iommu(board: Board, spa: int, data: bytes) -> None:
    """With it on, the hypervisor maps the page for another device first."""
    do(board, Driver().attach(0x100 | SLOT << 3, DOMAIN + 1, [(0x7000, spa // PAGE * PAGE)]))
    assert board.execute_host((op.DeviceWrite(SLOT, 0x7000 + spa % PAGE, data),)) == (None,)


def by_alias(board: Board, spa: int, data: bytes) -> None:
    PhysicalPort(board.dram).alias(GHOST, PAGE, spa // PAGE * PAGE)
    assert board.execute_host((op.HostWrite(GHOST + spa % PAGE, data),)) == (None,)


WAYS: Sequence[Poke] = (by_dimm, by_dma, by_alias)
GVA, HERE, THERE = 0x5000_0000, 0x10_0000 - 2 * PAGE, 0x10_0000 - PAGE


def two_pages(guest: PagedGuest) -> None:
    for gpa, data in ((HERE, b"here"), (THERE, b"gone")):
        assert guest.do(op.Write(gpa, data * 1024)) is None


def flushed(guest: PagedGuest) -> None:
    """The hypervisor enters the vCPU anew, with every translation flushed."""
    old = guest.board.vmcb(guest.vm, 0)
    block = op.VmcbWrite(
        guest.vm, 0, old.asid, old.generation.name, old.save_area_spa, tlb_control=TlbControl.ALL
    )
    assert guest.host(block, op.VmRun(guest.vm, 0)) == (None, 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_a_guests_own_table(generation: Generation, way: Poke) -> None:
    guest = paged_guest(generation, LONG, tlb=64)
    two_pages(guest)
    c_bit = C if generation is Generation.SEV else 0
    at = guest.map(GVA, THERE | P | W | U | c_bit)
    spa = MEMORY_SPA + at // 16 * 16
    old = PhysicalPort(guest.board.dram).dump(spa, 16)
    guest.put(at, HERE | P | W | U | c_bit)
    assert guest.do(op.VirtualRead(GVA, 4)) == b"here"
    way(guest.board, spa, old)
    assert guest.do(op.VirtualRead(GVA, 4)) == b"here"
    assert guest.guest(op.InvalidatePage(GVA), op.VirtualRead(GVA, 4)) == (None, b"gone")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV])
def test_a_nested_table(generation: Generation, way: Poke) -> None:
    guest = paged_guest(generation, LONG, tlb=64)
    two_pages(guest)
    guest.board.execute_host((op.NestedMap(guest.vm, HERE, MEMORY_SPA + HERE, PAGE, large=False),))
    assert guest.do(op.Read(HERE, 4)) == b"here"
    lowest = FRAMES_SPA + 3 * PAGE
    (word,) = guest.host(op.HostRead(lowest + HERE // PAGE * 8, 8))
    entry = int.from_bytes(word, "little")
    assert entry & -PAGE & (1 << 48) - 1 == MEMORY_SPA + HERE
    way(guest.board, lowest + HERE // PAGE * 8, (entry + THERE - HERE).to_bytes(8, "little"))
    assert guest.do(op.Read(HERE, 4)) == b"here"
    flushed(guest)
    seen = guest.do(op.Read(HERE, 4))
    assert seen == b"gone"


@pytest.mark.parametrize("way", WAYS)
def test_the_rmp_as_cores_know_it(way: Poke) -> None:
    guest = paged_guest(Generation.SEV_SNP, LONG, tlb=64)
    assert guest.guest(op.Write(HERE, b"mine"), op.Read(HERE, 4)) == (None, b"mine")
    assert guest.board.rmp is not None
    at = guest.board.rmp.layout.entry_spa((MEMORY_SPA + HERE) // PAGE)
    way(guest.board, at, bytes(16))
    assert guest.do(op.Read(HERE, 4)) == b"mine"
    flushed(guest)
    answer = guest.do(op.Read(HERE, 4))
    assert isinstance(answer, op.Fault)
    assert answer.kind is op.FaultKind.RMP_FAULT


# What the IOMMU remembers.

OPEN = Platform(disabled=frozenset({Protection.IOMMU_CHECK}))
"""A device may store to the RMP."""


@pytest.mark.parametrize("way", [by_dimm, by_alias])
def test_the_rmp_as_the_iommu_knows_it(way: Poke) -> None:
    board = brought_up("Milan")
    driver = attached(board)
    assert isinstance(load(board), bytes)
    guests = by_host(board, op.RmpUpdate(TARGET + PAGE, PAGE, RmpEntry(assigned=True, asid=1)))
    assert guests == (0,)
    assert isinstance(load(board), bytes)
    assert board.rmp is not None
    first = board.rmp.layout.entry_spa(TARGET // PAGE)
    entry = PhysicalPort(board.dram).dump(first + 16, 16)
    way(board, first, entry)
    assert isinstance(load(board), bytes)
    do(board, driver.command(invalidate_domain(DOMAIN)))
    assert load(board) == op.Fault(op.FaultKind.DMA_ABORTED, IOVA)


def test_by_a_device_the_rmp_can_be_poked_only_where_the_iommu_does_not_ask_it() -> None:
    for platform, opened in ((Platform(), False), (OPEN, True)):
        board = brought_up("Milan", platform)
        assert board.rmp is not None
        at = board.rmp.layout.entry_spa(TARGET // PAGE)
        by_dma_past_the_iommu(board, at, RMP_OF_A_GUEST)
        stored = by_host(board, op.HostWrite(TARGET, b"x"))
        assert isinstance(stored[0], op.Fault) is opened


RMP_OF_A_GUEST = (1 | 1 << 51).to_bytes(8, "little") + (0xF).to_bytes(8, "little")
"""ASSIGNED, and ASID 1 in bits 60:51."""


@pytest.mark.parametrize("way", [by_dimm, by_dma_past_the_iommu, by_alias])
def test_a_device_table(way: Poke) -> None:
    board = brought_up("Milan")
    driver = attached(board)
    by_host(board, op.HostWrite(TARGET, b"here"), op.HostWrite(TARGET + PAGE, b"gone"))
    assert load(board, length=4) == b"here"
    root = TABLES + 60 * PAGE
    by_host(board, op.HostWrite(root, leaf(TARGET + PAGE).to_bytes(8, "little")))
    way(board, DEVICE_TABLE + REQUESTER * ENTRY_BYTES, DeviceTableEntry(levels=1, root=root, domain=DOMAIN + 5).pack())
    assert load(board, length=4) == b"here"
    do(board, driver.command(invalidate_device(REQUESTER)))
    assert load(board, 0, 4) == b"gone"
    assert isinstance(load(board), op.Fault)
