"""An access that came through once is let through again only while all of what let it through still stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rmp_laboratory import GUEST_SPA, TABLES_BYTES, TABLES_SPA, VMS, Laboratory, give, laboratory, page_of

from node import operations as op
from node.operations import FaultKind
from node.physical_port import PhysicalPort
from psp.system_bus import PAGE_BYTES, RmpEntry

LINE = 64
AT = PAGE_BYTES
"""Of the guest, and from the start of the memory that it sees."""


def taken(lab: Laboratory) -> None:
    assert lab.host(op.RmpUpdate(GUEST_SPA + AT, PAGE_BYTES, RmpEntry())) == (0,)


def given_to_another(lab: Laboratory) -> None:
    assert lab.host(op.RmpUpdate(GUEST_SPA + AT, PAGE_BYTES, page_of(AT, asid=VMS["two"]))) == (0,)


def unmapped(lab: Laboratory) -> None:
    assert lab.host(op.NestedUnmap("one", AT, PAGE_BYTES)) == (None,)


def mapped_elsewhere(lab: Laboratory) -> None:
    assert lab.host(op.NestedMap("one", AT, GUEST_SPA + 7 * PAGE_BYTES, PAGE_BYTES)) == (None,)


def entry_poked(lab: Laboratory) -> None:
    PhysicalPort(lab.board.dram).poke(lab.entries_spa(GUEST_SPA + AT), bytes(16))


def table_poked(lab: Laboratory) -> None:
    PhysicalPort(lab.board.dram).poke(TABLES_SPA + VMS["one"] * TABLES_BYTES, bytes(PAGE_BYTES))


def entry_poked_after_a_look(lab: Laboratory) -> None:
    port, spa = PhysicalPort(lab.board.dram), lab.entries_spa(GUEST_SPA + AT)
    entry = port.dump(spa, 16)
    port.poke(spa, entry)
    twice_read(lab)
    port.poke(spa, bytes(16))


def twice_read(lab: Laboratory) -> None:
    for _ in range(2):
        assert lab.guest("one", op.Read(AT + LINE, LINE), op.Write(AT + LINE, b"o" * LINE)) == (b"o" * LINE, None)


@pytest.mark.parametrize("fault", [
    (taken, FaultKind.RMP_FAULT), (given_to_another, FaultKind.RMP_FAULT), (unmapped, FaultKind.NESTED_PAGE_FAULT),
    (mapped_elsewhere, FaultKind.RMP_FAULT), (entry_poked, FaultKind.RMP_FAULT),
    (table_poked, FaultKind.NESTED_PAGE_FAULT), (entry_poked_after_a_look, FaultKind.RMP_FAULT),
], ids=lambda fault: fault[0].__name__)  # fmt: skip
def test_a_guest_that_read_a_page_faults_once_it_is_gone(
    fault: tuple[Callable[[Laboratory], None], FaultKind],
) -> None:
    change, kind = fault
    lab = laboratory()
    give(lab, page_of(AT), offset=AT)
    assert lab.guest("one", op.Write(AT + LINE, b"o" * LINE)) == (None,)
    twice_read(lab)
    change(lab)
    for one in (op.Read(AT + LINE, LINE), op.Write(AT + LINE, b"n" * LINE)):
        (answer,) = lab.guest("one", one)
        assert isinstance(answer, op.Fault)
        assert answer.kind is kind


def test_a_page_that_may_be_read_may_not_be_stored_to_for_that() -> None:
    lab = laboratory()
    give(lab, page_of(AT), offset=AT)
    lab.guest("one", op.RmpAdjust(AT, PAGE_BYTES, large=False, target=1, permissions=1))
    area = lab.guest("one", op.Read(AT, LINE), vmpl=1)
    assert isinstance(area[0], bytes)
    (answer,) = lab.guest("one", op.Write(AT, bytes(LINE)), vmpl=1)
    assert isinstance(answer, op.Fault)
    assert lab.guest("one", op.Write(AT, bytes(LINE))) == (None,)
