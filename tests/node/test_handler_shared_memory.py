"""What a guest shares is no handler's to seal: its hypervisors carry it as it is, and where it lies."""

from test_handler_transfer import IN_THE_MIDDLE, agree, host, laid, move, started, stopped
from toy_guests import run

from node import operations as op
from psp.system_bus import PAGE_BYTES

MARK = bytes(range(256)) * (PAGE_BYTES // 256)


def last_shared_page(one):
    """The system address of the last page that a guest shares, which its program does not use."""
    record = one.hypervisor.launched("vm")
    gpa, length = record.shared.ranges()[-1]
    spa = record.page_spa(gpa + length - PAGE_BYTES)
    assert spa is not None
    return spa


def test_it_comes_as_it_was_left_and_is_shared_there():
    here, there = host("here"), host("there")
    started(here)
    run(here, IN_THE_MIDDLE)
    here.board.execute_host((op.HostWrite(last_shared_page(here), MARK),))
    before = here.hypervisor.launched("vm").shared.ranges()
    move(here, there)
    assert there.hypervisor.launched("vm").shared.ranges() == before
    assert there.board.execute_host((op.HostRead(last_shared_page(there), PAGE_BYTES),)) == (MARK,)


def test_it_travels_as_pages_and_all_else_sealed():
    here, there = host("here"), host("there")
    started(here)
    run(here, IN_THE_MIDDLE)
    agree(here, there)
    here.board.execute_host((op.HostWrite(last_shared_page(here), MARK),))
    what = stopped(here, "vm")
    shared = here.hypervisor.launched("vm").shared
    assert MARK in b"".join([data for _, data in what.state.pages])
    assert all(length == len(data) and alike for gpa, data in what.state.pages
               for _, length, alike in shared.parts(gpa, len(data)))  # fmt: skip
    assert not any(alike for gpa, _, _ in what.state.packets for _, _, alike in shared.parts(gpa, PAGE_BYTES))
    assert laid(there, "vm", what) is None
