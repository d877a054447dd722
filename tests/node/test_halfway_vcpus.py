"""A vCPU that waits to be started, or was started before it waits, does not travel: its hypervisor alone knows so."""

import dataclasses

import pytest
from test_agent_transfer import QUICK, WITH_AGENT, certified
from test_ap_reset_hold import MILLISECOND
from test_departures_and_arrivals import until
from test_sealed_transfer import certificates, opened, sealed
from toy_guests import guest_spec, make_host, run, script

from node import ghcb_msr as msr
from node.ap_starts import ApStarts
from node.ap_wake import wait_by_page, wake
from node.generation import Generation
from node.migration_refusal import MigrationRefusal
from node.operations import Sleep, VmgExit
from psp.system_bus import PAGE_BYTES

LATER = 100 * MILLISECOND


def company(waits_at, woken_at):
    """A program: a step a millisecond; vCPU 1 waits in one of them, and vCPU 0 starts it in one."""

    def step(placement, registers):
        page = placement.shared_gpa
        yield (VmgExit(msr.RegisterGhcbRequest(page // PAGE_BYTES).value),)
        registers.r13 += 1
        if placement.vcpu and registers.r13 == waits_at:
            yield from wait_by_page(page)
        elif not placement.vcpu and registers.r13 == woken_at:
            yield from wake(page, 1)
        return Sleep(MILLISECOND)

    return {"company": script(step)}


def asked(generation, waits_at, woken_at, seal_ms):
    """A guest that is asked after so long whether it may leave: host, guest, commands of firmware, the answer."""
    programs = company(waits_at, woken_at)
    here, there = (make_host(programs, name=name, platform=WITH_AGENT, costs=QUICK) for name in ("here", "there"))
    spec = dataclasses.replace(guest_spec("vm", generation, "company", vcpus=2), migration_agent=generation is SNP)
    here.launch(spec, lambda _: None, running=True)
    platform = certificates(there, spec)
    if generation is SNP:
        platform = certified(there, platform)
    run(here, seal_ms * MILLISECOND)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    commands = dict(here.tasks.psp_queue.counts)
    wrong, session = sealed(here, "vm", platform)
    if wrong is None:
        assert opened(there, "vm", certified(here, session) if generation is SNP else session) is None
    return here, here.guests["vm"], commands, wrong


ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
BOTH = pytest.mark.parametrize("generation", [ES, SNP])


def steps_behind(host, guest):
    """How long the second vCPU has waited, where nothing went wrong."""
    host.departures.cancel("vm")
    run(host, LATER)
    first, second = (one.registers.r13 for one in guest.vcpus)
    assert second > 50
    return first - second


@BOTH
@pytest.mark.parametrize(("waits_at", "woken_at"), [(20, 40), (40, 20)])
def test_a_guest_whose_vcpu_waits_or_will_not_wait_is_refused_before_firmware_is_asked(generation, waits_at, woken_at):
    host, guest, commands, wrong = asked(generation, waits_at, woken_at, 30)
    assert wrong == MigrationRefusal.VCPU_IN_RESET
    assert host.tasks.psp_queue.counts == commands
    assert steps_behind(host, guest) == max(0, woken_at - waits_at)


@BOTH
@pytest.mark.parametrize(("waits_at", "woken_at"), [(60, 80), (80, 60)])
def test_one_whose_vcpu_begins_to_wait_on_the_way_stays_and_nothing_is_lost(generation, waits_at, woken_at):
    host, guest, _, wrong = asked(generation, waits_at, woken_at, 2)
    assert wrong is None
    run(host, 70 * MILLISECOND)
    told, failed = [], []
    host.departures.stop("vm", 0, told.append, failed.append)
    until(lambda: told or failed, host)
    assert failed == [MigrationRefusal.VCPU_IN_RESET]
    assert steps_behind(host, guest) == max(0, woken_at - waits_at)


@pytest.mark.parametrize("book", [{"holds": {1: (0, None)}}, {"had_init": {1}}, {"had_sipi": {1}}])
def test_any_step_between_reset_and_start_counts(book):
    assert ApStarts(**book).halfway
    assert not ApStarts().halfway


@BOTH
def test_one_whose_vcpus_have_all_been_started_leaves(generation):
    assert asked(generation, 5, 10, 30)[3] is None
