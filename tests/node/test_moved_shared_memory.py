"""What a guest shares nobody seals on its way: its hypervisors carry it as it is, and it is shared where it comes."""

from functools import partial

import pytest
import test_agent_transfer as by_agents
import test_handler_transfer as by_handlers
from test_sealed_transfer import laid
from toy_guests import run

from node import operations as op
from psp.system_bus import PAGE_BYTES

MARK = bytes(range(256)) * (PAGE_BYTES // 256)


def with_agents():
    """Two hosts with agents, a guest in the middle of its work, and how it meets the target and moves."""
    here, there = by_agents.hosts()
    by_agents.started(here, "vm", "ledger", vcpus=2, units=by_agents.UNITS)
    run(here, 2_000_000)
    return here, there, partial(by_agents.agree, name="vm"), partial(by_agents.move, name="vm")


def with_handlers():
    here, there = by_handlers.host("here"), by_handlers.host("there")
    by_handlers.started(here)
    run(here, by_handlers.IN_THE_MIDDLE)
    return here, there, by_handlers.agree, by_handlers.move


BOTH = pytest.mark.parametrize("scene", [with_agents, with_handlers])


def last_shared_page(one):
    """The system address of the last page that a guest shares, which its program does not use."""
    record = one.hypervisor.launched("vm")
    gpa, length = record.shared.ranges()[-1]
    spa = record.page_spa(gpa + length - PAGE_BYTES)
    assert spa is not None
    return spa


@BOTH
def test_it_comes_as_it_was_left_and_is_shared_there(scene):
    here, there, _, move = scene()
    here.board.execute_host((op.HostWrite(last_shared_page(here), MARK),))
    before = here.hypervisor.launched("vm").shared.ranges()
    move(here, there)
    assert there.hypervisor.launched("vm").shared.ranges() == before
    assert there.board.execute_host((op.HostRead(last_shared_page(there), PAGE_BYTES),)) == (MARK,)


@BOTH
def test_it_travels_as_pages_and_all_else_sealed(scene):
    here, there, agree, _ = scene()
    agree(here, there)
    here.board.execute_host((op.HostWrite(last_shared_page(here), MARK),))
    what = by_agents.stopped(here, "vm")
    shared = here.hypervisor.launched("vm").shared
    assert MARK in b"".join([data for _, data in what.state.pages])
    assert all(
        length == len(data) and alike
        for gpa, data in what.state.pages
        for _, length, alike in shared.parts(gpa, len(data))
    )
    assert not any(alike for gpa, _, _ in what.state.packets for _, _, alike in shared.parts(gpa, PAGE_BYTES))
    there.clock.env.run(until=max(there.now_ns + 1, here.now_ns))
    assert laid(there, "vm", what) is None
