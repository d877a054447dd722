"""2 MiB asked of what the hypervisor maps otherwise: owner and address come before size (rmp.md, 4.3 and 5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rmp_laboratory import Laboratory, laboratory, page_of

from node import operations as op
from node.platform import Platform, Protection
from node.rmp_faults import RmpCode
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

LARGE, HALF = LARGE_PAGE_BYTES, LARGE_PAGE_BYTES // 2
GPA, SPA, ELSEWHERE = 1 << 30, 40 << 20, 36 << 20
NPF = op.Fault(op.FaultKind.RMP_FAULT, GPA, 1 << 0 | 1 << 2 | 1 << 31 | 1 << 32 | 1 << 34)
# P, U, RMP, final GPA, ENC (APM volume 2, 15.36.10).
MISMATCH = int(RmpCode.FAIL_SIZEMISMATCH)

Placed = list[tuple[int, int, int]]
"""(offset from GPA, SPA, length) of nested mappings."""
BACKINGS: dict[str, Placed] = {
    "between borders": [(0, SPA + PAGE_BYTES, LARGE)],
    "in pieces": [(0, SPA, HALF), (HALF, ELSEWHERE, HALF)],
    "in pieces between borders": [(0, SPA + HALF, HALF), (HALF, ELSEWHERE + PAGE_BYTES, HALF)],
    "with a hole": [(0, SPA, HALF)],
}


def mapped(backing: Placed, *, owned: bool, disabled: frozenset[Protection] = frozenset()) -> Laboratory:
    lab = laboratory("Milan", Platform(disabled=disabled))
    for offset, spa, length in backing:
        assert lab.host(op.NestedMap("one", GPA + offset, spa, length, large=False)) == (None,)
        if owned:
            assert lab.host(op.RmpUpdate(spa, length, page_of(GPA + offset))) == (0,)
            assert accepted(lab, GPA + offset, length, large=False) == 0
    return lab


def accepted(lab: Laboratory, gpa: int = GPA, length: int = LARGE, *, large: bool = True) -> object:
    (answer,) = lab.guest("one", op.PValidate(gpa, length, large))
    return answer.code if isinstance(answer, op.PValidateResult) else answer


def adjusted(lab: Laboratory, target: int = 1, length: int = LARGE) -> object:
    (answer,) = lab.guest("one", op.RmpAdjust(GPA, length, True, target, 1))
    return answer


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("name", BACKINGS)
def test_its_owner_hears_of_the_size_and_others_fault(name: str, looked: bool) -> None:
    for owned, said in ((True, MISMATCH), (False, NPF)):
        lab = mapped(BACKINGS[name], owned=owned)
        before = lab.table() if looked else b""
        assert accepted(lab) == said
        assert adjusted(lab) == said
        assert adjusted(lab, target=0) == RmpCode.FAIL_PERMISSION
        assert not looked or lab.table() == before


def test_a_page_that_is_not_accepted_says_so_before_its_size() -> None:
    lab = mapped(BACKINGS["in pieces"], owned=True)
    assert lab.guest("one", op.PValidate(GPA, PAGE_BYTES, large=False, validate=False))
    assert adjusted(lab) == op.Fault(op.FaultKind.PAGE_NOT_VALIDATED, GPA)


@pytest.mark.parametrize("checked", [False, True])
def test_4_kib_in_a_large_nested_mapping_fault_by_a_switch_alone(checked: bool) -> None:
    lab = laboratory("Milan", nested_size_checked=checked)
    lab.host(op.NestedMap("one", GPA, SPA, LARGE))
    whose = {0: GPA, PAGE_BYTES: GPA + LARGE}
    for offset, gpa in whose.items():
        assert lab.host(op.RmpUpdate(SPA + offset, PAGE_BYTES, page_of(gpa))) == (0,)
    sizem = replace(NPF, error=NPF.error | 1 << 35)
    assert accepted(lab, GPA, PAGE_BYTES, large=False) == (sizem if checked else 0)
    assert lab.guest("one", op.RmpAdjust(GPA, PAGE_BYTES, False, 1, 1)) == (sizem if checked else 0,)
    # To others it is not theirs, before its size.
    assert accepted(lab, GPA + PAGE_BYTES, PAGE_BYTES, large=False) == replace(NPF, address=GPA + PAGE_BYTES)
    lab.host(op.NestedMap("one", GPA, SPA, LARGE, large=False))
    assert accepted(lab, GPA, PAGE_BYTES, large=False) == 0


@pytest.mark.parametrize("looked", [False, True])
def test_a_large_entry_is_found_by_its_first_address_alone(looked: bool) -> None:
    lab = laboratory("Milan")
    assert lab.host(op.RmpUpdate(SPA, LARGE, page_of(GPA, large=True))) == (0,)
    lab.host(op.NestedMap("one", GPA, SPA, HALF, large=False), op.NestedMap("one", GPA + HALF, ELSEWHERE, HALF))
    if looked:
        lab.table()
    assert accepted(lab) == adjusted(lab) == 0
    assert lab.board.bus.rmp_entry(SPA) == RmpEntry(True, True, False, GPA, 1, False, True, (15, 1, 0, 0))
    assert lab.board.bus.rmp_entry(ELSEWHERE) == RmpEntry()


def test_a_range_is_done_as_far_as_its_pages_are_whole() -> None:
    lab = mapped([(2 * LARGE, SPA + 2 * LARGE + PAGE_BYTES, LARGE)], owned=True)
    lab.host(op.NestedMap("one", GPA, SPA, 2 * LARGE, large=False))
    assert lab.host(op.RmpUpdate(SPA, 2 * LARGE, page_of(GPA, large=True))) == (0,)
    assert accepted(lab, length=3 * LARGE) == adjusted(lab, length=3 * LARGE) == MISMATCH
    assert lab.board.bus.rmp_entry(SPA + LARGE).vmpl_permissions == (15, 1, 0, 0)
    # Pieces in the middle: what comes after them is where it was.
    lab.host(op.NestedMap("one", GPA + LARGE + HALF, ELSEWHERE, HALF, large=False))
    lab.host(op.NestedMap("one", GPA + 2 * LARGE, SPA + 2 * LARGE, LARGE, large=False))
    assert accepted(lab, length=3 * LARGE) == replace(NPF, address=GPA + 2 * LARGE)


@pytest.mark.parametrize("looked", [False, True])
def test_without_the_match_of_addresses_no_part_of_a_large_entry_is_a_large_page(looked: bool) -> None:
    lab = laboratory("Milan", Platform(disabled=frozenset({Protection.GPA_MATCH})))
    assert lab.host(op.RmpUpdate(SPA, 2 * LARGE, page_of(GPA, large=True))) == (0,)
    lab.host(op.NestedMap("one", GPA, SPA, 2 * LARGE))
    assert accepted(lab, length=2 * LARGE) == 0
    lab.host(op.NestedMap("one", GPA, SPA + 5 * PAGE_BYTES, LARGE, large=False))
    before = lab.table() if looked else b""
    entries = [lab.board.bus.rmp_entry(SPA + page * PAGE_BYTES) for page in range(1024)]
    assert adjusted(lab) == MISMATCH
    assert accepted(lab) == MISMATCH
    assert [lab.board.bus.rmp_entry(SPA + page * PAGE_BYTES) for page in range(1024)] == entries
    assert not looked or lab.table() == before
