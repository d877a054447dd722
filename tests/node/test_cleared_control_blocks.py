"""A hypervisor takes the control blocks of a VM that runs: the VM ends, its host and neighbours go on."""

from __future__ import annotations

import pytest
from toy_guests import GENERATIONS, SECOND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.ghcb_msr import SevInfoRequest
from node.guest import GuestState


def clear(host, name="vm"):
    host.board.execute_host((op.VmcbClear(name),))


@pytest.mark.parametrize(
    ("program", "generation"),
    [*((one, each) for one in ("rest", "busy") for each in GENERATIONS), ("ledger", GENERATIONS[-1])],
)
def test_a_vm_whose_control_blocks_are_gone_ends_at_its_next_vmrun(program, generation):
    host = make_host(product="Milan")
    guest = start(host, "vm", generation, program, vcpus=2, units=10**6)
    neighbour = start(host, "neighbour", Generation.SEV, "ledger", units=20)
    run(host, SECOND // 4)
    clear(host)
    host.pause("vm", lambda *_: None)
    run(host, SECOND // 2)
    assert guest.state is GuestState.STOPPED
    assert (neighbour.state, neighbour.vcpus[0].registers.r13) == (GuestState.RUNNING, 20)
    assert host.board.running.preempted == set()


def test_a_vm_whose_control_blocks_are_gone_ends_without_anybody_pausing_it():
    host = make_host(product="Milan")
    guest = start(host, "vm", Generation.SEV_SNP, "ledger", units=10**6)
    run(host, SECOND // 4)
    clear(host)
    run(host, SECOND // 2)
    assert guest.state is GuestState.STOPPED


def test_a_paused_vm_whose_control_blocks_are_gone_does_not_run_again():
    host = make_host(product="Milan")
    guest = start(host, "vm", Generation.SEV_SNP, "busy")
    run(host, SECOND // 4)
    host.pause("vm", lambda *_: None)
    run(host, 3 * SECOND // 10)
    assert guest.state is GuestState.PAUSED
    clear(host)
    host.resume("vm")
    run(host, SECOND // 2)
    assert guest.state is GuestState.STOPPED


def served_meanwhile(generation, does):
    """A guest that asks its hypervisor again and again; from some time on that does something else first."""
    told = []

    def call(placement, _):
        answers = yield (op.VmgExit(SevInfoRequest().value), op.Read(placement.base_gpa, 16))
        told.append(len(answers))
        return op.Sleep(SECOND // 100)

    host = make_host({"caller": script(call)}, product="Milan")
    guest = start(host, "vm", generation, "caller")
    run(host, SECOND // 4)
    assert (guest.state, set(told)) == (GuestState.RUNNING, {2})
    served = host.board.exits.vmgexit

    def serve(vm, vcpu, msr):
        value = yield from served(vm, vcpu, msr)
        yield does(host.board.vmcb(vm, vcpu))
        return value

    host.board.exits.vmgexit = serve
    told.clear()
    run(host, SECOND // 2)
    return guest, told


@pytest.mark.parametrize("generation", [Generation.SEV_ES, Generation.SEV_SNP])
def test_a_vm_whose_control_blocks_go_while_its_exit_is_served_ends_there(generation):
    """It executes nothing of what stood behind the exit."""
    guest, told = served_meanwhile(generation, lambda vmcb: (op.VmcbClear(vmcb.vm),))
    assert (guest.state, told) == (GuestState.STOPPED, [])


@pytest.mark.parametrize("generation", [Generation.SEV_ES, Generation.SEV_SNP])
def test_a_vm_that_comes_back_from_an_exit_to_a_page_that_is_no_save_area_ends(generation):
    def elsewhere(vmcb):
        return (
            op.VmcbWrite(
                vmcb.vm, vmcb.vcpu, vmcb.asid, vmcb.generation.value, vmcb.save_area_spa + 4096, vmcb.nested.nested_cr3
            ),
        )

    guest, told = served_meanwhile(generation, elsewhere)
    assert (guest.state, told) == (GuestState.STOPPED, [])
