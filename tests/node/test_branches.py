"""Branches on a board: whose predictions a guest's are, what runs ahead of a wrong one, and who counts."""

from __future__ import annotations

import pytest
from rmp_laboratory import Laboratory, gctx, laboratory, save_area

from node import operations as op
from node.branch_operations import MOST_DISCLOSING
from node.branch_target_buffer import ENTRIES, HOST, BranchTargetBuffer
from node.performance_counters import CounterEvent
from node.platform import Platform
from node.vmsa import VMSA_FIELDS, SevFeature
from psp import command_buffers as buffers
from psp.commands import SnpCommand

SITE, CALLEE, GADGET = 0x100, 0x200, 0x300
PAGE = 3 * 4096
TAKEN, ALL = CounterEvent.RETIRED_TAKEN_BRANCHES, CounterEvent.RETIRED_BRANCHES


def lab_with(features: int, product: str = "Turin") -> Laboratory:
    lab = laboratory(product, Platform(cache_timing=True))
    at = VMSA_FIELDS["SEV_FEATURES"]
    lab.board.controller.write(save_area("one", 0) + at.offset, int(features | 1).to_bytes(at.width, "little"), 1)
    return lab


def slow(lab: Laboratory, gpa: int) -> bool:
    """Whether a line of the guest's shared page is in no cache; asking brings it there."""
    spa = lab.board.vmcb("one", 0).nested.translate(gpa, 1)[0][0]
    (ns,) = lab.host(op.HostTimedRead(spa))
    return ns == 103


def flushed(lab: Laboratory, gpa: int) -> None:
    spa = lab.board.vmcb("one", 0).nested.translate(gpa, 1)[0][0]
    lab.host(op.HostClflush(spa, 64))


def jumped(lab: Laboratory, target: int = CALLEE, disclosing: tuple = ((GADGET, PAGE),)) -> bool:
    """Whether a jump left the line."""
    flushed(lab, PAGE)
    assert lab.guest("one", op.IndirectBranch(SITE, target, disclosing)) == (None,)
    return not slow(lab, PAGE)


def test_what_the_host_left_predicts_a_guests_jump_once() -> None:
    lab = lab_with(0)
    assert not jumped(lab)
    lab.host(op.HostBranch(0, SITE, GADGET))
    assert jumped(lab)
    assert not jumped(lab)  # it has left its own target
    lab.host(op.HostBranch(0, SITE, GADGET))
    assert not jumped(lab, target=GADGET)  # predicted rightly
    lab.host(op.HostBranch(0, SITE, GADGET))
    assert not jumped(lab, disclosing=((GADGET + 1, PAGE),))
    lab.host(op.HostBranch(1, SITE, GADGET))
    assert not jumped(lab)  # another thread's


@pytest.mark.parametrize("feature", [SevFeature.BTB_ISOLATION, SevFeature.IBPB_ON_ENTRY])
def test_an_isolated_guest_is_predicted_by_its_own_jumps_alone(feature: SevFeature) -> None:
    lab = lab_with(feature)
    lab.host(op.HostBranch(0, SITE, GADGET))
    assert not jumped(lab)
    assert not jumped(lab, target=GADGET)
    assert jumped(lab)


def test_a_barrier_on_entry_forgets_the_guests_own_too() -> None:
    lab = lab_with(SevFeature.IBPB_ON_ENTRY)
    assert not jumped(lab, target=GADGET)
    assert lab.host(op.VmRun("one", 0)) == (0,)
    assert not jumped(lab)


def test_a_load_that_runs_ahead_faults_with_nobody_and_leaves_no_line_where_it_may_not_read() -> None:
    lab = lab_with(0)
    lab.host(op.HostBranch(0, SITE, GADGET))
    assert lab.guest("one", op.IndirectBranch(SITE, CALLEE, ((GADGET, 1 << 45),))) == (None,)


def test_predictions_are_of_a_thread_an_address_and_an_owner() -> None:
    buffer = BranchTargetBuffer()
    buffer.train(1, SITE, HOST, GADGET)
    assert [buffer.predict(thread, SITE, 5) for thread in (0, 1)] == [None, GADGET]
    assert buffer.predict(1, SITE + 1, 5) is None
    assert buffer.predict(1, SITE, 5, isolated=True) is None
    buffer.train(1, SITE, 5, CALLEE)
    assert buffer.predict(1, SITE, 5, isolated=True) == CALLEE
    buffer.train(2, SITE, HOST, GADGET)
    buffer.barrier(1)
    assert [buffer.predict(thread, SITE, 5) for thread in (1, 2)] == [None, GADGET]


def test_the_oldest_prediction_makes_room() -> None:
    buffer = BranchTargetBuffer()
    for site in range(ENTRIES + 1):
        buffer.train(0, site, HOST, GADGET)
    assert [buffer.predict(0, site, HOST) for site in (0, 1, ENTRIES)] == [None, GADGET, GADGET]


def test_a_jump_names_no_more_code_than_can_be_looked_at() -> None:
    lab = lab_with(0)
    for count, answer in ((MOST_DISCLOSING, None), (MOST_DISCLOSING + 1, op.Fault(op.FaultKind.GENERAL_PROTECTION, 0))):
        assert lab.guest("one", op.IndirectBranch(SITE, CALLEE, ((GADGET, PAGE),) * count)) == (answer,)


@pytest.mark.parametrize(("features", "counts"), [(0, (2, 3)), (SevFeature.PMC_VIRTUALIZATION, (0, 0))])
def test_the_host_counts_a_guests_branches_unless_the_counters_are_the_guests(features: int, counts: tuple) -> None:
    lab = lab_with(features)
    lab.guest("one", op.Branch(taken=True), op.Branch(taken=False), op.IndirectBranch(SITE, CALLEE))
    assert lab.host(op.HostReadCounter(0, TAKEN), op.HostReadCounter(0, ALL)) == counts
    assert lab.host(op.HostReadCounter(1, TAKEN)) == (0,)


def test_no_counter_and_no_thread() -> None:
    lab = lab_with(0)
    kinds = op.FaultKind.GENERAL_PROTECTION, op.FaultKind.UNDEFINED_OPCODE
    protection, undefined = (op.Fault(kind, 0) for kind in kinds)
    answers = lab.host(
        op.HostReadCounter(0, 0xC3), op.HostReadCounter(-1, TAKEN), op.HostReadCounter(1 << 40, TAKEN),
        op.HostBranch(-1, SITE, GADGET), op.HostBranch(lab.board.product.threads, SITE, GADGET),
    )  # fmt: skip
    assert answers == (protection, protection, protection, undefined, undefined)


def test_a_feature_that_the_part_lacks_is_no_vmrun() -> None:
    for product, code in (("Milan", -1), ("Turin", 0)):
        assert lab_with(SevFeature.PMC_VIRTUALIZATION, product).host(op.VmRun("one", 0)) == (code,)




def test_a_branch_whose_features_cannot_be_read_any_more_is_a_fault():
    lab = laboratory("Milan")
    lab.firmware(SnpCommand.DECOMMISSION, buffers.GuestContextPage(gctx("one")))
    for one in (op.Branch(taken=True), op.IndirectBranch(1, 2, ())):
        assert lab.guest("one", one) == (op.Fault(op.FaultKind.MACHINE_CHECK, 0),)
