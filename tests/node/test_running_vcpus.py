"""A save area is in use from VMRUN until its vCPU exits, whoever entered it."""

from __future__ import annotations

import pytest
from rmp_laboratory import AREAS_GPA, Laboratory, laboratory, save_area
from toy_guests import make_host, run, start

from node import operations as op
from node.generation import Generation
from node.guest import Guest, GuestState
from node.host import Host
from node.host_instructions import VMEXIT_BUSY, VMEXIT_INVALID
from node.vmexit import ExitCode
from psp.system_bus import PAGE_BYTES, RmpEntry

SNP = Generation.SEV_SNP
AREA = save_area("one", 1)
IN_USE = 3


@pytest.fixture
def lab() -> Laboratory:
    """The vCPU of guest one at VMPL 1 runs on thread 5."""
    made = laboratory("Milan")
    assert made.host(op.VmRun("one", 1, 5)) == (0,)
    return made


def is_in_use(lab: Laboratory) -> bool:
    """Whether the host may not take the page; what it asks for is what the entry says."""
    assert lab.board.rmp is not None
    before = lab.board.rmp.entry(AREA)
    frozen = RmpEntry(assigned=True, immutable=True, gpa=before.gpa, asid=before.asid)
    (code,) = lab.host(op.RmpUpdate(AREA, PAGE_BYTES, frozen))
    if code == 0:
        lab.board.bus.rmp_set(AREA, before)
    assert code in (0, IN_USE)
    return code == IN_USE


def test_another_thread_cannot_enter_it_and_its_own_can(lab: Laboratory) -> None:
    assert lab.host(op.VmRun("one", 1, 6), op.VmRun("one", 1, 5)) == (VMEXIT_BUSY, 0)
    assert is_in_use(lab)


def test_another_control_block_of_the_save_area_is_as_busy(lab: Laboratory) -> None:
    assert lab.host(op.VmcbWrite("one", 9, 1, SNP.name, AREA), op.VmRun("one", 9, 6)) == (None, VMEXIT_BUSY)
    assert lab.host(op.VmRun("one", 9, 5)) == (0,)
    assert is_in_use(lab)


@pytest.mark.parametrize("refused", [False, True])
def test_a_thread_that_executes_vmrun_anew_has_left_its_vcpu(lab: Laboratory, refused: bool) -> None:
    other = op.VmRun("one", 1, 5) if refused else op.VmRun("two", 0, 5)
    if refused:  # The save area is not there any more, though it is the same vCPU.
        lab.host(op.VmcbWrite("one", 1, 1, SNP.name, 0))
    assert lab.host(other) == (VMEXIT_INVALID if refused else 0,)
    assert not is_in_use(lab)


def test_what_is_preempted_or_torn_down_is_in_use_no_more(lab: Laboratory) -> None:
    assert lab.host(op.VmPreempt("one", 1), op.VmPreempt("nobody", 0)) == (None, None)
    assert not is_in_use(lab)
    assert lab.host(op.VmRun("one", 1, 6)) == (0,)
    assert is_in_use(lab)
    lab.host(op.VmcbClear("two"))
    assert is_in_use(lab)
    lab.host(op.VmcbClear("one"))
    assert not is_in_use(lab)


@pytest.mark.parametrize("generation", ["PLAIN", "SEV"])
def test_the_save_area_of_a_vm_without_snp_is_in_use_as_well(generation: str) -> None:
    """Or its registers would be stored over what an SNP guest has there since, and loaded from its ciphertext."""
    lab, area = laboratory("Milan"), 48 << 20
    taken = RmpEntry(assigned=True, gpa=1 << 30, asid=1)
    lab.host(op.NestedFrames("old", 47 << 20, 64 << 10), op.NestedMap("old", 0, 50 << 20, 2 << 20))
    asid = 0 if generation == "PLAIN" else 150
    if asid:
        lab.board.controller.install_key(asid, bytes(16))
    assert lab.host(op.VmcbWrite("old", 0, asid, generation, area), op.VmRun("old", 0, 7)) == (None, 0)
    assert lab.host(op.RmpUpdate(area, PAGE_BYTES, taken)) == (IN_USE,)
    # A second vCPU of the same block's area, and only the last of them gives it up.
    assert lab.host(op.VmcbWrite("old", 1, asid, generation, area), op.VmRun("old", 1, 8)) == (None, 0)
    assert lab.host(op.VmPreempt("old", 0), op.RmpUpdate(area, PAGE_BYTES, taken)) == (None, IN_USE)
    assert lab.host(op.VmPreempt("old", 1), op.RmpUpdate(area, PAGE_BYTES, taken)) == (None, 0)
    assert lab.host(op.VmRun("old", 0, 7)) == (VMEXIT_INVALID,)


def test_a_guest_may_not_adjust_the_save_area_of_its_running_vcpu(lab: Laboratory) -> None:
    adjust = op.RmpAdjust(AREAS_GPA + PAGE_BYTES, PAGE_BYTES, False, 2, 0)
    assert lab.guest("one", adjust) == (IN_USE,)
    lab.host(op.VmPreempt("one", 1))
    assert lab.guest("one", adjust) == (0,)


def test_psmash_leaves_the_block_of_a_running_save_area_alone() -> None:
    lab = laboratory("Milan")
    base, length = 8 << 20, 2 << 20
    page = RmpEntry(assigned=True, large=True, gpa=0, asid=1)
    assert lab.host(op.RmpUpdate(base, length, page)) == (0,)
    guest = (
        op.PValidate(0, length, large=True), op.Write(0, bytes(PAGE_BYTES)),
        op.RmpAdjust(0, length, True, 1, 0, vmsa=True),
    )  # fmt: skip
    assert lab.guest("one", *guest) == (op.PValidateResult(0, unchanged=False), None, 0)
    block = op.VmcbWrite("one", 9, 1, SNP.name, base)
    assert lab.host(block, op.VmRun("one", 9, 6), op.PSmash(base)) == (None, 0, IN_USE)
    assert lab.host(op.VmPreempt("one", 9), op.PSmash(base)) == (None, 0)


def work(host: Host, guest: Guest) -> None:
    """Let a guest execute some more operations, if it can."""
    until = guest.operations + 50
    while guest.operations < until and guest.state is GuestState.RUNNING:
        host.clock.env.step()


def test_the_schedulers_vcpu_is_busy_until_it_is_preempted_and_enters_anew_with_its_next_batch() -> None:
    host = make_host(product="Milan")
    guest = start(host, "vm", SNP, "ledger", units=10_000)
    work(host, guest)
    board, area = host.board, guest.vcpus[0].save_area_spa
    assert board.execute_host((op.VmRun("vm", 0, 9),)) == (VMEXIT_BUSY,)
    assert board.execute_host((op.VmPreempt("vm", 0), op.VmRun("vm", 0, 9))) == (None, 0)
    assert board.execute_host((op.VmRun("vm", 0, 10), op.VmPreempt("vm", 0))) == (VMEXIT_BUSY, None)
    assert board.rmp is not None
    assert board.rmp.checks.first_in_use(area // PAGE_BYTES, area // PAGE_BYTES + 1) is None
    work(host, guest)
    assert guest.state is GuestState.RUNNING
    assert board.execute_host((op.VmRun("vm", 0, 9),)) == (VMEXIT_BUSY,)
    host.destroy("vm")
    run(host)
    assert guest.state is GuestState.DESTROYED


def test_a_preempted_vcpu_whose_save_area_has_gone_does_not_come_back() -> None:
    host = make_host(product="Milan")
    guest = start(host, "vm", SNP, "ledger", units=10_000)
    work(host, guest)
    area = guest.vcpus[0].save_area_spa
    taken = (op.VmPreempt("vm", 0), op.RmpUpdate(area, PAGE_BYTES, RmpEntry()), op.HostClear(area, PAGE_BYTES))
    assert host.board.execute_host(taken) == (None, 0, None)
    work(host, guest)
    assert guest.state is not GuestState.RUNNING
    assert guest.shutdown_code == ExitCode.INVALID & 0xFF


def test_a_kick_enters_the_vcpu_where_it_was_and_not_with_flushes_that_there_are_not(lab: Laboratory) -> None:
    assert lab.host(op.VmKick("one", 1), op.VmRun("one", 1, 6)) == (0, VMEXIT_BUSY)
    assert lab.host(op.VmRun("two", 0, 5)) == (0,)  # its thread is the host's again
    assert not is_in_use(lab)
    block = op.VmcbWrite("one", 1, 1, SNP.name, AREA, tlb_control=5)
    assert lab.host(block, op.VmRun("one", 1, 6), op.VmKick("one", 1)) == (None, VMEXIT_INVALID, VMEXIT_INVALID)
