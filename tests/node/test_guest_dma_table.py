"""A guest's own tables in front of its device: they say what each of the device's addresses means, and nobody else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from iommu_boards import events
from rmp_laboratory import GUEST_SPA, Laboratory, give, laboratory, page_of
from trusted_cards import ALLOWED, CARDS, DATA, GPU, STREAM, attach, trusted_io

from node import operations as op
from node.iommu_events import FLAG_PERMISSION, FLAG_PRESENT, FLAG_RESERVED, EventCode
from node.platform import Platform
from node.trusted_dma import TrustedDma
from psp.system_bus import PAGE_BYTES, RmpEntry
from psp.tsm.trusted_io import TdiBinding
from tio.dma_port import DmaFault

GCR3, PML4, PDPT, PD, PT = range(0x4000, 0x9000, PAGE_BYTES)
TABLES = (GCR3, PML4, PDPT, PD, PT)
IOVA = 0x7F12_3456_7000
P, W, U, PS = 1, 2, 4, 1 << 7
SECRET = b"where the guest has it.."
PLACES = {
    GCR3: 0, PML4: IOVA >> 39 & 511, PDPT: IOVA >> 30 & 511, PD: IOVA >> 21 & 511, PT: IOVA >> 12 & 511,
}  # fmt: skip
USUAL = {GCR3: PML4 | 1, PML4: PDPT | P | W | U, PDPT: PD | P | W | U, PD: PT | P | W | U, PT: DATA | P | W | U}


@pytest.fixture(scope="module")
def made() -> Laboratory:
    lab = laboratory("Turin", Platform(cards=CARDS))
    for gpa in (DATA, *TABLES):
        give(lab, page_of(gpa), offset=gpa)
    attach(lab, [(gpa, GUEST_SPA + gpa) for gpa in (DATA, *TABLES)])
    return lab


@pytest.fixture
def lab(made: Laboratory) -> Iterator[Laboratory]:
    """The guest's tables lead ``IOVA`` to its page of data."""
    for table in TABLES:
        entry(made, table, USUAL[table])
    made.guest("one", op.Write(DATA, SECRET))
    bus = trusted_io(made)
    bus.bind(GPU.requester, TdiBinding(1, 0x20, frozenset({STREAM})))
    bus.write_entry(GPU.requester, ALLOWED)
    bus.start(GPU.requester)
    dma(made).use_guest_tables(GPU.requester, GCR3)
    events(made.board)
    yield made
    bus.unbind(GPU.requester)
    assert bus.fence_clear(1)


def dma(lab: Laboratory) -> TrustedDma:
    found = lab.board.trusted_dma
    assert found is not None
    return found


def entry(lab: Laboratory, table: int, word: int) -> None:
    assert lab.guest("one", op.Write(table + 8 * PLACES[table], struct.pack("<Q", word))) == (None,)


def loads(lab: Laboratory, address: int = IOVA) -> bytes:
    return dma(lab).read(GPU.requester, STREAM, address, len(SECRET))


def test_an_address_means_what_the_guest_s_tables_say(lab: Laboratory) -> None:
    assert loads(lab) == SECRET
    dma(lab).write(GPU.requester, STREAM, IOVA + 64, SECRET[::-1])
    assert lab.guest("one", op.Read(DATA + 64, len(SECRET))) == (SECRET[::-1],)
    # Addresses that are the guest's own mean nothing any more, unless it drops its tables.
    with pytest.raises(DmaFault):
        loads(lab, DATA)
    dma(lab).use_guest_tables(GPU.requester, None)
    assert loads(lab, DATA) == SECRET


@pytest.mark.parametrize(("table", "bits"), [(PD, 21), (PDPT, 30)])
def test_large_pages_begin_at_their_own_borders(lab: Laboratory, table: int, bits: int) -> None:
    entry(lab, table, P | W | U | PS)  # the page that begins at guest-physical zero
    assert loads(lab, IOVA >> bits << bits | DATA) == SECRET


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("word", "flags"),
    [
        (0, 0),
        (None, FLAG_PRESENT | FLAG_PERMISSION),
        (1 << 50 | P | W | U, FLAG_PRESENT | FLAG_RESERVED),
    ],
)
def test_what_the_guest_s_tables_do_not_permit_is_its_own_affair(
    lab: Laboratory, table: int, word: int | None, flags: int
) -> None:
    if table == GCR3 and word != 0:
        word, flags = PML4 | P | W, FLAG_PRESENT | FLAG_RESERVED
    entry(lab, table, USUAL[table] & ~U if word is None else word)
    with pytest.raises(DmaFault):
        loads(lab)
    (event,) = events(lab.board)
    assert (event.code, event.flags, event.address) == (EventCode.IO_PAGE_FAULT, flags, IOVA)
    assert trusted_io(lab).fence_status(1) == 0


def test_a_page_that_the_guest_maps_read_only_is_not_written(lab: Laboratory) -> None:
    entry(lab, PT, DATA | P | U)
    dma(lab).write(GPU.requester, STREAM, IOVA, b"x" * 24)
    assert loads(lab) == SECRET
    (event,) = events(lab.board)
    assert event.flags & FLAG_PERMISSION


@pytest.mark.parametrize("address", [1 << 48, 1 << 63, IOVA + PAGE_BYTES])
def test_an_address_without_an_entry_leads_nowhere(lab: Laboratory, address: int) -> None:
    with pytest.raises(DmaFault):
        loads(lab, address)
    assert [one.code for one in events(lab.board)] == [EventCode.IO_PAGE_FAULT]
    assert trusted_io(lab).fence_status(1) == 0


@pytest.mark.parametrize("table", [*TABLES, DATA])
@pytest.mark.parametrize("taken", [RmpEntry(), page_of(0x77_0000), page_of(0, asid=2)])
def test_a_table_or_page_that_the_host_takes_or_swaps_fences_the_guest(
    lab: Laboratory, table: int, taken: RmpEntry
) -> None:
    """The tables are believed only where the RMP says that they are the guest's: the host cannot put others there."""
    spa = GUEST_SPA + table
    kept = lab.host(op.HostRead(spa, PAGE_BYTES))
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, taken)) == (0,)
    with pytest.raises(DmaFault):
        loads(lab)
    assert [one.code for one in events(lab.board)] == [EventCode.RMP_PAGE_FAULT]
    assert trusted_io(lab).fence_status(1) == 0b1101
    give(lab, page_of(table), offset=table)
    assert lab.host(op.HostRead(spa, PAGE_BYTES)) == kept


def test_tables_lie_below_vtom_or_not_and_what_they_lead_to_is_judged_by_it(lab: Laboratory) -> None:
    """Everything above 0 is shared: so is the page, which is the guest's own and so refused."""
    trusted_io(lab).write_entry(GPU.requester, replace(ALLOWED, vtom_enabled=True, vtom=0))
    with pytest.raises(DmaFault):
        loads(lab)
    assert [one.code for one in events(lab.board)] == [EventCode.RMP_PAGE_FAULT]
