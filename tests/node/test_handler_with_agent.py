"""A handler in its guest's SVSM, and agents of its hosts."""

import dataclasses

import pytest
from test_agent_transfer import WITH_AGENT, certified
from test_handler_transfer import IN_THE_MIDDLE, QUICK, SPEC, started
from test_sealed_transfer import certificates, sealed
from toy_guests import make_host, run

from node.agent_transfer import AGENT
from node.guest import GuestState
from node.migration_refusal import MigrationRefusal
from psp import command_buffers as buffers
from psp.guest_context import NO_MIGRATION_AGENT


def with_agent(name):
    return make_host(name=name, costs=QUICK, platform=WITH_AGENT)


def context(host, vm="vm"):
    return host.board.psp.snp.guests.pages.read(host.hypervisor.launched(vm).gctx)


@pytest.mark.parametrize("rogue", [True, False])
def test_a_handler_gives_nothing_to_its_own_image_where_that_has_an_agent(rogue, monkeypatch):
    """An agent may export the image, and then speaks with its keys: its hypervisor has any report of it made."""
    here, there = make_host(name="here", costs=QUICK), with_agent("there")
    started(here)
    run(here, IN_THE_MIDDLE)
    if rogue:
        agent, pack = there.hypervisor.launched(AGENT).gctx, buffers.SnpLaunchStart.pack

        def lent(start):
            flags = start.flags | buffers.SNP_START_MA
            return pack(dataclasses.replace(start, ma_gctx=agent, flags=flags))

        monkeypatch.setattr(buffers.SnpLaunchStart, "pack", lent)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certified(there, certificates(there, SPEC))
    assert (context(there).report_id_ma != NO_MIGRATION_AGENT) is rogue
    assert context(there).digest == context(there).imd == context(here).imd
    wrong, _ = sealed(here, "vm", shown)
    assert wrong == (MigrationRefusal.HANDLER_REFUSES if rogue else None)
    assert here.guests["vm"].state is GuestState.RUNNING
