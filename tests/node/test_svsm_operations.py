"""Clearing memory, and time that a guest's code spends: what an SVSM has use for."""

import pytest
from paged_guests import MIB, PAGE, paged_guest
from toy_guests import COSTS, KIND

from node import operations as op
from node.generation import Generation
from node.mechanism import Mechanism
from node.operation_cost import GuestOperationCost
from node.operations import FaultKind

PLAIN, SNP = Generation.PLAIN, Generation.SEV_SNP
GPA = 0x20_0000


@pytest.mark.parametrize("generation", [PLAIN, Generation.SEV, Generation.SEV_ES, SNP])
@pytest.mark.parametrize(
    ("first", "length"), [(0, PAGE), (0, 4 * PAGE), (5, 20), (PAGE - 8, PAGE + 16), (100, 3 * PAGE)]
)
def test_what_is_cleared_reads_as_zeros_and_nothing_beside_it(generation, first, length):
    one = paged_guest(generation)
    data = bytes(range(1, 256)) * (5 * PAGE // 255 + 1)
    assert one.do(op.Write(GPA, data[: 5 * PAGE])) is None
    assert one.do(op.Clear(GPA + first, length)) is None
    expected = data[:first] + bytes(length) + data[first + length : 5 * PAGE]
    assert one.do(op.Read(GPA, 5 * PAGE)) == expected


def test_zeros_of_a_guest_are_ciphertext_to_everybody_else():
    one = paged_guest(SNP)
    one.do(op.Clear(GPA, PAGE))
    (seen,) = one.host(op.HostRead(8 * MIB + GPA, PAGE))
    assert len(set(seen)) > 200


def test_clearing_takes_no_memory_before_somebody_looks():
    one = paged_guest(SNP)
    before = one.board.dram.resident_pages
    assert one.do(op.Clear(GPA, 4 * MIB)) is None
    assert one.board.dram.resident_pages <= before
    assert one.do(op.Read(GPA + 3 * MIB, 16)) == bytes(16)


def test_a_range_that_is_not_all_memory_is_left_whole():
    one = paged_guest(SNP)
    last = 8 * MIB - PAGE
    assert one.do(op.Write(last, b"here")) is None
    for asked in (op.Clear(last, 2 * PAGE), op.Clear(last, 1 << 60), op.Clear(last, -1)):
        answer = one.do(asked)
        assert answer is None or answer.kind is FaultKind.NESTED_PAGE_FAULT, asked
    assert one.do(op.Read(last, 4)) == b"here"


def test_a_shared_page_of_nobody_is_cleared_and_an_assigned_one_is_not():
    one = paged_guest(SNP)
    assert one.do(op.Clear(GPA, PAGE, private=False)).kind is FaultKind.RMP_FAULT


def test_clearing_costs_what_storing_costs():
    cost = GuestOperationCost(SNP, COSTS, KIND)
    lost = [dict.fromkeys(Mechanism, 0.0) for _ in range(2)]
    for private in (True, False):
        stored = cost.price((op.Write(0, bytes(8192), private),), 100.0, lost[0])
        assert cost.price((op.Clear(0, 8192, private),), 100.0, lost[1]) == stored
    assert lost[0] == lost[1]


def test_a_guest_spends_what_the_table_has_for_it_and_nothing_else():
    one = paged_guest(PLAIN)
    lost = dict.fromkeys(Mechanism, 0.0)
    cost = GuestOperationCost(PLAIN, COSTS, KIND)
    assert one.do(op.GuestWork("svsm.vtpm_read_ns")) is None
    assert cost.price((op.GuestWork("svsm.vtpm_read_ns"),), 100.0, lost) == 3_582_000
    for name in ("core.exit_ns", "no.such_ns", ""):
        assert one.do(op.GuestWork(name)).kind is FaultKind.UNDEFINED_OPCODE
        assert cost.price((op.GuestWork(name),), 100.0, lost) == 0
