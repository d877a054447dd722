"""A vCPU that its hypervisor makes exit: its registers lie in its save area, and VMRUN takes them from there."""

import pytest
from toy_guests import SECOND, make_host, script, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.platform import Platform, Protection
from node.program import Registers
from node.vcpu_runner import PROGRAM_FAULT
from node.vmexit import ExitCode
from node.vmsa import VMSA_FIELDS, read_field

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
R13 = VMSA_FIELDS["R13"].offset
FAR = 1 << 40


def by_host(host, *batch):
    return host.board.execute_host(batch)


def sleepy(_, registers):
    registers.r13 += 1
    return op.Sleep(SECOND // 4 + 1)
    yield ()


def halted(generation, program="sleepy", platform=Platform()):  # noqa: B008  # frozen
    host = make_host({"sleepy": script(sleepy)}, platform=platform)
    guest = start(host, "vm", generation, program)
    host.clock.env.run(until=SECOND)
    return host, guest, guest.vcpus[0].save_area_spa


@pytest.mark.parametrize("generation", [PLAIN, SEV])
def test_what_is_stored_over_the_registers_of_one_that_is_out_is_what_it_goes_on_with(generation):
    host, guest, spa = halted(generation)
    assert by_host(host, op.VmPreempt("vm", 0), op.HostRead(spa + R13, 8))[1] == guest.vcpus[0].registers.r13.to_bytes(
        8, "little"
    )
    by_host(host, op.HostWrite(spa + R13, FAR.to_bytes(8, "little")))
    host.clock.env.run(until=3 * SECOND)
    assert guest.state is GuestState.RUNNING
    assert guest.vcpus[0].registers.r13 > FAR


@pytest.mark.parametrize("entered", [op.VmKick("vm", 0), op.VmRun("vm", 0, 3)])
def test_vmrun_takes_them_at_once_and_what_is_stored_later_reaches_nobody(entered):
    host, guest, spa = halted(PLAIN)
    store = op.HostWrite(spa + R13, FAR.to_bytes(8, "little"))
    assert by_host(host, op.VmPreempt("vm", 0), store, entered) == (None, None, 0)
    assert guest.vcpus[0].registers.r13 == FAR
    host, guest, spa = halted(PLAIN)
    by_host(host, op.VmPreempt("vm", 0), entered, op.HostWrite(spa + R13, FAR.to_bytes(8, "little")))
    host.clock.env.run(until=3 * SECOND)
    assert guest.vcpus[0].registers.r13 < FAR


def test_nothing_changes_for_one_that_nobody_stores_to():
    for generation in (PLAIN, SEV, ES, SNP):
        host, guest, _ = halted(generation)
        other, untouched, _ = halted(generation)
        by_host(host, op.VmPreempt("vm", 0), op.VmPreempt("vm", 0))
        for one in (host, other):
            one.clock.env.run(until=4 * SECOND)
        found, expected = (
            {name: getattr(one.vcpus[0].registers, name) for name in Registers.__slots__} for one in (guest, untouched)
        )
        assert found == expected
        assert found["r13"] > 12


def test_a_save_area_of_sev_es_that_was_changed_meanwhile_is_refused_and_stays_as_it_is():
    host, guest, spa = halted(ES)
    junk = bytes(range(16))
    _, _, code, kept = by_host(
        host, op.VmPreempt("vm", 0), op.HostWrite(spa + R13 // 16 * 16, junk), op.VmKick("vm", 0),
        op.HostRead(spa + R13 // 16 * 16, 16),
    )  # fmt: skip
    assert (code, kept) == (ExitCode.SHUTDOWN, junk)
    host.clock.env.run(until=3 * SECOND)
    assert by_host(host, op.VmKick("vm", 0)) == (ExitCode.SHUTDOWN,)
    assert guest.vcpus[0].state == "paused"


def test_the_schedulers_own_vmrun_of_a_changed_save_area_ends_the_vm():
    host, guest, spa = halted(ES)
    by_host(host, op.VmPreempt("vm", 0), op.HostWrite(spa, bytes(16)))
    host.clock.env.run(until=3 * SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, ExitCode.SHUTDOWN)


def test_without_the_value_it_goes_on_with_whatever_that_decrypts_to():
    host, guest, spa = halted(ES, platform=Platform(disabled=frozenset({Protection.SAVE_AREA_INTEGRITY})))
    before = guest.vcpus[0].registers.r13
    *_, code = by_host(
        host, op.VmPreempt("vm", 0), op.HostWrite(spa + R13 // 16 * 16, bytes(16)), op.VmKick("vm", 0)
    )
    assert code == 0
    assert guest.vcpus[0].registers.r13 != before
    assert read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13") == guest.vcpus[0].registers.r13


@pytest.mark.parametrize("name", ["R14", "R15", "RIP"])
@pytest.mark.parametrize("value", [5, 1 << 63, (1 << 64) - 1])
def test_no_register_of_a_paused_vcpu_breaks_the_host(name, value):
    host, guest, spa = halted(PLAIN, "busy")
    host.pause("vm")
    host.clock.env.run(until=2 * SECOND)
    by_host(host, op.HostWrite(spa + VMSA_FIELDS[name].offset, value.to_bytes(8, "little")))
    host.resume("vm")
    host.clock.env.run(until=3 * SECOND)
    assert guest.state is GuestState.RUNNING or guest.shutdown_code == PROGRAM_FAULT
