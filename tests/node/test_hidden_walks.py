"""While ciphertext is hidden, page walks find ones in an SNP guest's page, as their core would read them."""

from __future__ import annotations

import pytest
from paged_guests import LONG, MEMORY_BYTES, MEMORY_SPA, ROOT, PagedGuest, new_board, paged_guest
from rmp_laboratory import GUEST_SPA, Laboratory, give, laboratory, page_of

from node import operations as op
from node.generation import Generation
from node.physical_port import PhysicalPort
from node.platform import Platform
from psp.system_bus import PAGE_BYTES, RmpEntry

NEXT, TARGET = 40 << 20, 44 << 20
PRESENT_WRITABLE_USER, LARGE, ACCESSED, DIRTY = 7, 0x80, 0x20, 0x40
ONES = b"\xff" * 16
HOSTS = {
    "hiding": Platform(max_snp_asid=40),
    "hiding, with caches": Platform(max_snp_asid=40, caches=True),
    "hiding, with translation buffers": Platform(max_snp_asid=40, tlb_entries=16),
    "not hiding": Platform(),
}


def entry(spa: int, more: int = 0) -> bytes:
    return (spa | PRESENT_WRITABLE_USER | ACCESSED | DIRTY | more).to_bytes(8, "little")


def through_a_guests_page(platform: Platform) -> Laboratory:
    """A plain VM whose nested tables' root lies in an SNP guest's page, where the ciphertext happens to be entries."""
    lab = laboratory("Turin", platform)
    give(lab, page_of())
    PhysicalPort(lab.board.dram).poke(GUEST_SPA, entry(NEXT) + entry(NEXT))
    lab.host(op.HostWrite(NEXT, entry(NEXT + PAGE_BYTES)), op.HostWrite(NEXT + PAGE_BYTES, entry(TARGET, LARGE)))
    lab.host(op.HostWrite(TARGET, b"of the host"))
    assert lab.host(op.VmcbWrite("evil", 0, 0, "PLAIN", 48 << 20, GUEST_SPA), op.VmRun("evil", 0, 5)) == (None, 0)
    return lab


@pytest.mark.parametrize("name", HOSTS)
def test_a_nested_table_in_an_snp_guests_page_is_ones_while_hidden(name: str) -> None:
    lab = through_a_guests_page(HOSTS[name])
    (seen,) = lab.host(op.HostRead(GUEST_SPA, 16))
    (found,) = lab.guest("evil", op.Read(0, 11))
    if name == "not hiding":
        assert seen == entry(NEXT) + entry(NEXT)
        assert found == b"of the host"
    else:
        assert seen == ONES
        # P, U and RSV: ones set bits that an entry must leave zero (APM volume 2, 15.25.6).
        assert found == op.Fault(op.FaultKind.NESTED_PAGE_FAULT, 0, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 32)


def test_a_walk_sees_what_lies_there_once_the_page_is_the_hosts() -> None:
    lab = through_a_guests_page(HOSTS["hiding"])
    # Given back, the page holds what its DIMM holds; given away again, it is hidden again.
    for owner, hidden in ((RmpEntry(), False), (page_of(0x7000), True), (RmpEntry(), False)):
        assert lab.host(op.RmpUpdate(GUEST_SPA, PAGE_BYTES, owner)) == (0,)
        (found,) = lab.guest("evil", op.Read(0, 11))
        assert isinstance(found, op.Fault) if hidden else found == b"of the host"


def test_tables_of_whom_hides_nothing_from_are_walked_as_ever() -> None:
    lab = laboratory("Turin", HOSTS["hiding"])
    give(lab, page_of())
    lab.host(op.HostRead(6 << 20, 1 << 18))  # whoever looks at nested tables has them walked from then on
    lab.guest("one", op.Write(0, b"own"))
    assert lab.guest("one", op.Read(0, 3)) == (b"own",)


@pytest.mark.parametrize("caches", [False, True])
def test_a_plain_guests_own_table_that_the_host_puts_onto_an_snp_guests_page(caches: bool) -> None:
    board = new_board(product="Turin", caches=caches)
    paged_guest(Generation.SEV_SNP, LONG, board=board)
    plain = paged_guest(Generation.PLAIN, LONG, board=board, asid=2)
    plain.map(1 << 30, 0x5000 | PRESENT_WRITABLE_USER)
    assert plain.do(op.Write(0x5000, b"data")) is None
    assert plain.do(op.VirtualRead(1 << 30, 4)) == b"data"
    page = MEMORY_SPA + 0x30_0000
    (root,) = plain.host(op.HostRead(MEMORY_SPA + MEMORY_BYTES + ROOT, PAGE_BYTES))
    assert isinstance(root, bytes)
    PhysicalPort(board.dram).poke(page, root)
    assert plain.host(op.NestedMap(plain.vm, ROOT, page, PAGE_BYTES, large=False)) == (None,)
    assert walked(plain) == b"data"
    board.bus.hide_ciphertext(40)
    assert plain.do(op.Read(ROOT, 16, private=False)) == ONES
    # #PF of a reserved bit, in the guest.
    assert walked(plain) == op.Fault(op.FaultKind.PAGE_FAULT, 1 << 30, 1 << 0 | 1 << 3)
    board.bus.hide_ciphertext(0)
    assert walked(plain) == b"data"


def walked(guest: PagedGuest) -> op.Answer:
    return guest.do(op.VirtualRead(1 << 30, 4))
