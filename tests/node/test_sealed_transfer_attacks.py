"""What SEV and SEV-ES really allow whoever carries their guests: rows 56, 57 and 58 of the attack matrix, on hosts.

A packet's MAC covers neither its place nor its order, SEND_FINISH takes no key away, and a session opens as often as
it comes: the matrix says corrupted, and so it is. What firmware does refuse is in test_sealed_transfer.
"""


from test_departures_and_arrivals import stopped
from test_sealed_transfer import BOTH, UNITS, agree, certificates, hosts, laid, opened, sealed
from toy_guests import RECORD, run, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.operations import Write
from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.system_bus import PAGE_BYTES

ES = Generation.SEV_ES


def look(host, gpa, length):
    """What the guest sees at an address."""
    (answer,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.Read(gpa, length, True),))
    return answer


def filled(host, guest):
    """Two pages of the guest's own, each with its own text; their GPAs."""
    first = guest.spec.memory.placement("vm", 0, 0).base_gpa + (1 << 20)
    second = first + PAGE_BYTES
    texts = (Write(first, b"A" * PAGE_BYTES), Write(second, b"B" * PAGE_BYTES))
    assert host.board.execute_guest(host.board.vmcb("vm", 0), texts) == (None, None)
    return first, second


def running(generation, units=UNITS):
    here, there = hosts()
    guest = start(here, "vm", generation, "ledger", units=units)
    run(here, 2_000_000)
    return here, there, guest


@BOTH
def test_packets_that_change_places_put_each_other_s_pages_there(generation):
    here, there, guest = running(generation)
    first, second = filled(here, guest)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    packets = {gpa: (head, body) for gpa, head, body in what.state.packets}
    packets[first], packets[second] = packets[second], packets[first]
    swapped = what.state._replace(packets=tuple((gpa, *packets[gpa]) for gpa in sorted(packets)))
    assert laid(there, "vm", what, swapped) is None
    assert look(there, first, 8) == b"B" * 8
    assert look(there, second, 8) == b"A" * 8


@BOTH
def test_a_packet_of_an_earlier_round_of_the_same_session_brings_the_old_page_back(generation):
    here, there, guest = running(generation, units=100_000)
    gpa = guest.spec.memory.placement("vm", 0, 0).base_gpa
    agree(here, there, "vm")
    record = here.hypervisor.launched("vm")
    page = gpa // PAGE_BYTES * PAGE_BYTES
    older = old_packet(here, record, page)
    before = look(here, page + PAGE_BYTES - RECORD // 2, RECORD // 2)
    run(here, here.now_ns + 1_000_000)
    what = stopped(here, "vm")
    assert look(here, page + PAGE_BYTES - RECORD // 2, RECORD // 2) != before
    packets = tuple(older if one[0] == page else one for one in what.state.packets)
    assert laid(there, "vm", what, what.state._replace(packets=packets)) is None
    assert look(there, page + PAGE_BYTES - RECORD // 2, RECORD // 2) == before
    # Its own program finds out, and ends itself: SEV has promised it no integrity.
    there.arrivals.start("vm")
    run(there, there.now_ns + 10**9)
    arrived = there.guests["vm"]
    assert (arrived.state, arrived.shutdown_code) == (GuestState.STOPPED, 1)


def old_packet(host, record, gpa):
    """A packet of a page as it is now, by a hypervisor that keeps it."""
    frames = [host.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0] for _ in range(3)]
    header, transport, command = frames
    update = buffers.SendUpdate(record.handle, header, 0x34, record.spa_of(gpa), PAGE_BYTES, transport, PAGE_BYTES)
    lent = op.RmpEntry(assigned=True, immutable=True)
    answers = host.board.execute_host((
        op.HostWrite(command, update.pack()),
        *[op.RmpUpdate(spa, PAGE_BYTES, lent) for spa in frames],
        op.PspCommand(LegacyCommand.SEND_UPDATE_DATA, command),
        op.HostRead(header, 0x34), op.HostRead(transport, PAGE_BYTES),
    ))  # fmt: skip
    assert answers[4].status == 0
    return gpa, *answers[-2:]


@BOTH
def test_a_source_that_does_not_let_go_after_send_finish_runs_a_second_copy(generation):
    here, there, guest = running(generation)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    (context,) = here.board.psp.legacy.guests.values()
    page = here.hypervisor.launched("vm").small[0]
    (answer,) = here.board.execute_host(
        (op.PspCommand(LegacyCommand.SEND_FINISH, page, buffers.Handle(context.handle).pack()),)
    )
    assert (answer.status, context.state) == (0, LegacyGuestState.SENT)
    assert here.board.controller.has_key(guest.asid)
    here.resume("vm")  # A hypervisor that keeps to nothing.
    run(here)
    run(there)
    assert [one.guests["vm"].vcpus[0].registers.r13 for one in (here, there)] == [UNITS, UNITS]
    assert guest.faults == 0


def test_one_image_that_is_received_twice_is_two_guests():
    here, there, guest = running(ES)
    agree_with = certificates(there, guest.spec)
    here.departures.begin("vm", lambda _: None)
    _, session = sealed(here, "vm", agree_with)
    what = stopped(here, "vm")
    handles = []
    for turn in range(2):
        if turn:
            certificates(there, guest.spec)
        assert opened(there, "vm", session) is None
        assert laid(there, "vm", what) is None
        handles.append(set(there.board.psp.legacy.guests))
        if not turn:
            # The first one goes on; its hypervisor forgets it under this name and takes the image again.
            (first,) = there.board.psp.legacy.guests.values()
            there.hypervisor._vms["other"] = there.hypervisor._vms.pop("vm")
            there.guests["other"] = there.guests.pop("vm")
            there.arrivals._ready.discard("vm")
            there.arrivals._whole.pop("vm")
    assert len(handles[1]) == 2
    assert first.state is LegacyGuestState.RUNNING
    assert {one.state for one in there.board.psp.legacy.guests.values()} == {LegacyGuestState.RUNNING}
    keys = {one.key for one in there.board.psp.legacy.guests.values()}
    assert len(keys) == 2  # Each has a key of its own, and the same registers and memory behind it.
