"""Host page tables of the IOMMU: against another walker, and as bytes that pokes change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iommu_boards import (
    DOMAIN,
    IOVA,
    REQUESTER,
    SLOT,
    TABLES,
    TARGET,
    Driver,
    attached,
    brought_up,
    do,
    events,
    host,
    invalidate_page,
    load,
)

from node import operations as op
from node.board import Board
from node.device_table import ENTRY_BYTES, DeviceTableEntry
from node.iommu_commands import invalidate_device, invalidate_domain
from node.iommu_driver import DEVICE_TABLE
from node.iommu_events import FLAG_PRESENT, FLAG_RESERVED, EventCode
from node.iommu_page_table import NotMapped, leaf, table_pointer, walk
from node.physical_port import PhysicalPort
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

# Another walker, written from the specification's figures: by recursion over decimal fields of the address.

ENTRY_KINDS = st.one_of(
    st.just(0),
    st.builds(
        lambda present, below, frame, read, write, junk: (
            present | below << 9 | frame << 12 | junk << 52 | read << 61 | write << 62
        ),
        st.integers(0, 1),
        st.integers(0, 7),
        st.integers(0, 7),
        st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from([0, 0, 0, 1, 1 << 6]),
    ),
    st.integers(0, (1 << 64) - 1),
)
INDEX = st.sampled_from([0, 0, 1, 511])


def fields(iova: int) -> list[int]:
    """Six indices of 9 bits, of level 1 to 6; the last takes what is left (7 bits)."""
    bits = f"{iova:064b}"
    return [int(bits[max(0, end - 9) : end], 2) for end in range(52, 0, -9)][:6]


def reference(words: dict[int, int], table: int, level: int, iova: int, allowed: int) -> tuple[int, int, int] | str:
    """(address, bytes of the page, rights) or why not."""
    entry = words.get(table + fields(iova)[level - 1] * 8, 0)
    if entry % 2 == 0:
        return "absent"
    text = f"{entry:064b}"[::-1]
    if "1" in text[52:59]:
        return "reserved"
    allowed &= int(text[61]) + 2 * int(text[62])
    address, below = int(text[12:52][::-1], 2) * 4096, int(text[9:12][::-1], 2)
    if below == 0:
        size = {1: 4096, 2: 2 << 20, 3: 1 << 30}.get(level, 0)
        return (address, size, allowed) if size and address % size == 0 else "reserved"
    if below >= level:
        return "reserved"
    if any(fields(iova)[below : level - 1]):
        return "absent"
    return reference(words, address, below, iova, allowed)


@given(
    st.dictionaries(st.tuples(st.integers(0, 7), INDEX), ENTRY_KINDS, max_size=16),
    st.integers(1, 6),
    st.lists(INDEX, min_size=6, max_size=6),
    st.integers(0, 4095),
)
def test_a_walk_comes_to_what_another_walker_finds(entries, levels, indices, offset) -> None:
    words = {table * 4096 + index * 8: entry for (table, index), entry in entries.items()}
    iova = (sum(index << 12 + 9 * at for at, index in enumerate(indices)) + offset) % (1 << 64)
    reads: list[int] = []

    def read_word(address: int) -> int:
        reads.append(address)
        return words.get(address, 0)

    beyond = any(fields(iova)[levels:])
    expected = "absent" if beyond else reference(words, 0, levels, iova, 3)
    try:
        found = walk(read_word, 0, levels, iova)
    except NotMapped as fault:
        assert expected == ("reserved" if fault.flags & FLAG_RESERVED else "absent")
        assert fault.flags in (0, FLAG_PRESENT | FLAG_RESERVED)
    else:
        assert expected == (found.address, 1 << found.bits, found.read + 2 * found.write)
    assert len(reads) <= levels


# Real tables on a board.

SIZES = {1: PAGE_BYTES, 2: LARGE_PAGE_BYTES, 3: 1 << 30}


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("at", [1, 2, 3])
def test_every_number_of_levels_reaches_leaves_of_every_size(levels: int, at: int) -> None:
    if at > levels:
        return
    board = brought_up("Rome")
    # One table a level; the address has a bit of its own at each, as far as memory goes the leaf at zero.
    iova = sum(1 << 12 + 9 * (level - 1) for level in range(at, levels + 1))
    offset = TARGET % SIZES[at]
    for level in range(levels, at - 1, -1):
        table = TABLES + level * PAGE_BYTES
        below = table_pointer(TABLES + (level - 1) * PAGE_BYTES, level - 1)
        entry = below if level > at else leaf(TARGET - offset)
        board.dram.write(table + 8, entry.to_bytes(8, "little"))
    do(board, Driver().write_entry(REQUESTER, DeviceTableEntry(levels=levels, root=TABLES + levels * PAGE_BYTES)))
    board.dram.write(TARGET + 0x10, b"found")
    assert load(board, iova + offset + 0x10, 5) == b"found"
    assert isinstance(load(board, iova + (1 << 12 + 9 * (at - 1)) + offset, 5), op.Fault)


def test_skipped_levels_need_zeros_in_the_address() -> None:
    board = brought_up("Rome")
    board.dram.write(TABLES, table_pointer(TABLES + PAGE_BYTES, 1).to_bytes(8, "little"))
    board.dram.write(TABLES + PAGE_BYTES + 8, leaf(TARGET).to_bytes(8, "little"))
    do(board, Driver().write_entry(REQUESTER, DeviceTableEntry(levels=4, root=TABLES)))
    board.dram.write(TARGET, b"found")
    assert load(board, PAGE_BYTES, 5) == b"found"
    assert isinstance(load(board, PAGE_BYTES + (1 << 21), 5), op.Fault)


def test_addresses_beyond_the_levels_are_page_faults() -> None:
    board = brought_up()
    attached(board)
    for iova in (IOVA + (1 << 39), IOVA + (1 << 63)):
        assert isinstance(load(board, iova), op.Fault)
    assert [one.code for one in events(board)] == [EventCode.IO_PAGE_FAULT] * 2


# Pokes, by every route that reaches the bytes of the tables.

OLD, NEW = b"where it led", b"where it goes"
OTHER = TARGET + 8 * PAGE_BYTES
LEAF_TABLE = TABLES + 2 * PAGE_BYTES
"""The driver's third table: the lowest level."""
LEAF = LEAF_TABLE + (IOVA >> 12) % 512 * 8


@dataclass
class Machine:
    board: Board
    driver: Driver


Poke = Callable[[Machine, int, bytes], None]


def by_dimm(machine: Machine, spa: int, data: bytes) -> None:
    PhysicalPort(machine.board.dram).poke(spa, data)


def by_dma(machine: Machine, spa: int, data: bytes) -> None:
    page = [(0x7000, spa // PAGE_BYTES * PAGE_BYTES)]
    do(machine.board, machine.driver.attach(REQUESTER + 8, DOMAIN + 1, page))
    assert host(machine.board, op.DeviceWrite(SLOT + 1, 0x7000 + spa % PAGE_BYTES, data)) == (None,)


def by_alias(machine: Machine, spa: int, data: bytes) -> None:
    port, ghost = PhysicalPort(machine.board.dram), 40 << 20
    port.alias(ghost, PAGE_BYTES, spa // PAGE_BYTES * PAGE_BYTES)
    assert host(machine.board, op.HostWrite(ghost + spa % PAGE_BYTES, data)) == (None,)


def by_host(machine: Machine, spa: int, data: bytes) -> None:
    assert host(machine.board, op.HostWrite(spa, data)) == (None,)


POKES: dict[str, Poke] = {"DIMM": by_dimm, "DMA": by_dma, "alias": by_alias, "host": by_host}


@pytest.fixture(params=["Rome", "Milan", "Turin"])
def machine(request: pytest.FixtureRequest) -> Machine:
    board = brought_up(request.param)
    board.dram.write(TARGET, OLD)
    board.dram.write(OTHER, NEW)
    return Machine(board, attached(board))


@pytest.mark.parametrize("route", POKES)
@pytest.mark.parametrize("forget", [invalidate_page(DOMAIN, IOVA), invalidate_domain(DOMAIN)])
def test_a_poke_into_a_page_table_counts_once_the_translation_is_forgotten(
    machine: Machine, route: str, forget: bytes
) -> None:
    assert load(machine.board, length=len(OLD)) == OLD
    POKES[route](machine, LEAF, leaf(OTHER).to_bytes(8, "little"))
    assert load(machine.board, length=len(OLD)) == OLD
    do(machine.board, machine.driver.command(forget))
    assert load(machine.board, length=len(NEW)) == NEW


@pytest.mark.parametrize("route", POKES)
def test_a_poke_before_the_first_access_counts_at_once(machine: Machine, route: str) -> None:
    POKES[route](machine, LEAF, leaf(OTHER).to_bytes(8, "little"))
    assert load(machine.board, length=len(NEW)) == NEW


@pytest.mark.parametrize("route", POKES)
def test_a_poke_into_the_device_table_counts_once_the_entry_is_forgotten(machine: Machine, route: str) -> None:
    assert load(machine.board, length=len(OLD)) == OLD
    entry = DEVICE_TABLE + REQUESTER * ENTRY_BYTES
    other = DeviceTableEntry(levels=1, root=TABLES + 60 * PAGE_BYTES, domain=DOMAIN + 5)
    machine.board.dram.write(other.root + 8, leaf(OTHER).to_bytes(8, "little"))
    POKES[route](machine, entry, other.pack())
    assert load(machine.board, length=len(OLD)) == OLD
    do(machine.board, machine.driver.command(invalidate_device(REQUESTER)))
    assert load(machine.board, PAGE_BYTES, len(NEW)) == NEW
    assert isinstance(load(machine.board), op.Fault)


def test_another_domain_s_translations_stay_when_one_s_are_forgotten(machine: Machine) -> None:
    driver = machine.driver
    do(machine.board, driver.attach(REQUESTER + 8, DOMAIN + 1, [(IOVA, TARGET)]))
    for slot in (SLOT, SLOT + 1):
        assert load(machine.board, length=len(OLD), slot=slot) == OLD
    second_leaf = TABLES + (driver.taken - 1) * PAGE_BYTES + (IOVA >> 12) % 512 * 8
    for spa in (LEAF, second_leaf):
        by_dimm(machine, spa, leaf(OTHER).to_bytes(8, "little"))
    do(machine.board, driver.command(invalidate_domain(DOMAIN)))
    assert [load(machine.board, length=8, slot=slot) for slot in (SLOT, SLOT + 1)] == [NEW[:8], OLD[:8]]


def test_devices_of_one_domain_share_translations_even_if_their_tables_differ(machine: Machine) -> None:
    # What a hypervisor gets that gives two page tables one domain id.
    driver = machine.driver
    assert load(machine.board, length=len(OLD)) == OLD
    other = DeviceTableEntry(levels=3, root=TABLES + 50 * PAGE_BYTES, domain=DOMAIN)
    do(machine.board, driver.write_entry(REQUESTER + 8, other))
    assert load(machine.board, length=len(OLD), slot=SLOT + 1) == OLD
