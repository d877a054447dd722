"""SEV and SEV-ES guests go from host to host through both firmwares: whole, under their policy, and nowhere twice."""

import dataclasses

import pytest
from cached_boards import base, by_guest, by_host
from overheard_hypervisors import overheard
from test_departures_and_arrivals import UNITS, leftovers, place, stopped, until
from toy_guests import (
    COSTS,
    IMAGE,
    RECORD,
    RECORDS,
    SECOND,
    final_state,
    guest_spec,
    ledger,
    look,
    make_host,
    run,
    start,
)

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.migration_frames import frames_of, page_digests
from node.migration_refusal import MigrationRefusal
from node.platform import Platform
from node.product import PRODUCTS
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.policy import LegacyPolicy
from psp.status import Status

SEV, ES = Generation.SEV, Generation.SEV_ES
BOTH = pytest.mark.parametrize("generation", [SEV, ES])


def certificates(target, spec):
    """Keep a place at a target; what its platform shows."""
    told = []
    target.arrivals.prepare(spec, lambda *what: told.append(what))
    until(lambda: told, target)
    assert told[0][0] is None
    return told[0][1]


def sealed(source, name, platform):
    told = []
    source.departures.seal(name, platform, lambda *what: told.append(what))
    until(lambda: told, source)
    return told[0]


def opened(target, name, session):
    told = []
    target.arrivals.open(name, session, told.append)
    until(lambda: told, target)
    return told[0]


def laid(target, name, what, state=None):
    told = []
    state = state or what.state
    digests = page_digests(what.state.pages)
    target.arrivals.complete(name, frames_of(state), digests, what.books, told.append)
    until(lambda: told, target)
    return told[0]


def agree(source, target, name):
    """Both firmwares have agreed on keys."""
    guest = source.guests[name]
    assert not isinstance(source.departures.begin(name, lambda _: None), MigrationRefusal)
    wrong, session = sealed(source, name, certificates(target, guest.spec))
    assert wrong is None
    assert opened(target, name, session) is None


def move(source, target, name):
    agree(source, target, name)
    what = stopped(source, name)
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    assert laid(target, name, what) is None
    target.arrivals.start(name)
    source.departures.finish(name)
    run(source, source.now_ns + SECOND)
    return what


def kept(host, guest):
    """Registers, records and shared memory of a ledger that is done; around them is noise of the guest's key."""
    registers, memory, units = final_state(host, guest, 8192)
    return registers, [one[4096 - RECORD // 2 :][: RECORD * RECORDS] + one[8192:] for one in memory], units


def hosts(product="Milan"):
    return make_host(product=product, name="here"), make_host(product=product, name="there")


@BOTH
@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_a_guest_that_moves_there_and_back_ends_as_one_that_stayed(generation, product):
    stayed = make_host(product=product)
    guest = start(stayed, "vm", generation, "ledger", vcpus=2, units=UNITS)
    run(stayed)
    expected = kept(stayed, guest)
    here, there = hosts(product)
    empty = leftovers(there)[:2]
    start(here, "vm", generation, "ledger", vcpus=2, units=UNITS)
    run(here, 2_000_000)
    for _ in range(2):
        run(here, here.now_ns + 300_000)
        move(here, there, "vm")
        here, there = there, here
    assert leftovers(there)[:2] == empty
    arrived = here.guests["vm"]
    run(here, here.now_ns + 100 * SECOND)
    assert kept(here, arrived) == expected
    assert (arrived.faults, arrived.state) == (0, GuestState.RUNNING)


@BOTH
def test_nothing_that_travels_and_nothing_at_the_target_s_memory_shows_a_private_page(generation):
    here, there = hosts()
    guest = start(here, "vm", generation, "ledger", units=UNITS)
    run(here, 2_000_000)
    gpa = guest.spec.memory.placement("vm", 0, 0).base_gpa
    agree(here, there, "vm")
    what = stopped(here, "vm")
    plain = look(here, guest, gpa, 8192)
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    carried = b"".join(frames_of(what.state))
    assert plain[4000:4096] not in carried
    assert not any(first <= gpa < first + len(data) for first, data in what.state.pages)
    ((spa, *_),) = there.board.vmcb("vm", 0).nested.translate(gpa, 4096)
    assert there.board.dram.read(spa, 4096) != plain[:4096]
    assert look(there, there.guests["vm"], gpa, 8192) == plain
    assert len(what.state.sealed_areas) == (generation is ES)
    if generation is ES:
        assert not what.state.save_areas


@BOTH
def test_the_source_s_firmware_has_no_guest_and_no_key_of_it_afterwards(generation):
    here, there = hosts()
    guest = start(here, "vm", generation, "ledger", units=UNITS)
    run(here, 2_000_000)
    asid = guest.asid
    assert here.board.controller.has_key(asid)
    move(here, there, "vm")
    assert not here.board.psp.legacy.guests
    assert not here.board.controller.has_key(asid)
    (context,) = there.board.psp.legacy.guests.values()
    assert context.state is LegacyGuestState.RUNNING
    assert context.transport.tek == bytes(16)


@BOTH
def test_the_source_s_firmware_has_finished_sending_before_the_guest_is_given_up(generation):
    """From SEND_FINISH on it takes no SEND_CANCEL: what stands still there does not run again, whoever asks."""
    here, there = hosts()
    start(here, "vm", generation, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    seen, execute = [], here.board.execute_host

    def watched(operations):
        answers = execute(operations)
        seen.extend(
            (one.command, answer.status) for one, answer in zip(operations, answers, strict=True)
            if isinstance(one, op.PspCommand)
        )
        return answers

    here.board.execute_host = watched
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    sent = [one for one in seen if one[0] in (LegacyCommand.SEND_FINISH, LegacyCommand.DEACTIVATE)]
    assert sent == [(LegacyCommand.SEND_FINISH, Status.SUCCESS), (LegacyCommand.DEACTIVATE, Status.SUCCESS)]
    assert not here.board.psp.legacy.guests


@BOTH
def test_one_that_is_called_off_goes_on_and_can_be_sent_anew(generation):
    here, there = hosts()
    guest = start(here, "vm", generation, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    assert leftovers(there) == leftovers(make_host())
    assert not there.board.psp.legacy.guests
    run(here, here.now_ns + 1_500_000)
    (context,) = here.board.psp.legacy.guests.values()
    assert context.state is LegacyGuestState.RUNNING
    move(here, there, "vm")
    run(there)
    assert there.guests["vm"].vcpus[0].registers.r13 == UNITS
    assert guest.faults == 0


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda gpa, head, body: (gpa, head, bytes([body[0] ^ 1]) + body[1:]), "BAD_MEASUREMENT"),
        (lambda gpa, head, body: (gpa, head[:4] + bytes([head[4] ^ 1]) + head[5:], body), "BAD_MEASUREMENT"),
        (lambda gpa, head, body: (gpa, head[:-1] + bytes([head[-1] ^ 1]), body), "BAD_MEASUREMENT"),
        (lambda gpa, head, body: (gpa, b"\1" + head[1:], body), "UNSUPPORTED"),
        (lambda gpa, head, body: (gpa, b"\2" + head[1:], body), "INVALID_PARAM"),
    ],
)
def test_a_packet_that_was_changed_is_refused_by_firmware_and_the_guest_goes_on_at_the_source(spoil, line):
    here, there = hosts()
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    packets = (*what.state.packets[:-1], spoil(*what.state.packets[-1]))
    forged = what.state._replace(packets=packets)
    assert laid(there, "vm", what, forged) == f"RECEIVE_UPDATE_DATA: {line}"
    there.arrivals.abandon("vm")
    here.departures.cancel("vm")
    run(here)
    assert guest.vcpus[0].registers.r13 == UNITS


def test_what_was_called_off_is_not_sent_without_a_new_agreement():
    here, there = hosts()
    start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    here.departures.cancel("vm")
    run(here, here.now_ns + 100_000)
    with pytest.raises(LaunchRefused, match="SEND_START has not been"):
        here.tasks.at_once(here.hypervisor.export("vm", (True,), ()))


@pytest.mark.parametrize("change", [lambda one: one[:-1], lambda one: one + b"\0", lambda _: b"", lambda one: one * 2])
def test_a_session_of_another_length_is_opened_by_nobody_and_the_guest_goes_on_at_the_source(change):
    here, there = hosts()
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    wrong, session = sealed(here, "vm", certificates(there, guest.spec))
    assert wrong is None
    commands, changed = dict(there.tasks.psp_queue.counts), change(session)
    assert opened(there, "vm", changed) == f"session: expected {len(session)} bytes, got {len(changed)}"
    assert there.tasks.psp_queue.counts == commands
    there.arrivals.abandon("vm")
    here.departures.cancel("vm")
    run(here)
    assert guest.vcpus[0].registers.r13 == UNITS


def test_packets_of_another_session_are_refused():
    here, there = hosts()
    start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    old = stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    run(here, here.now_ns + 500_000)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    assert laid(there, "vm", what, what.state._replace(packets=old.state.packets)).endswith(
        "BAD_MEASUREMENT"
    )


def test_a_policy_without_sending_refuses_before_firmware_is_asked():
    here, there = hosts()
    spec = dataclasses.replace(guest_spec("vm", SEV, "ledger", units=UNITS), sev_policy=int(LegacyPolicy.NOSEND))
    here.launch(spec, lambda _: None, running=True)
    run(here, 2_000_000)
    platform = certificates(there, spec)
    here.departures.begin("vm", lambda _: None)
    commands = dict(here.tasks.psp_queue.counts)
    wrong, session = sealed(here, "vm", platform)
    assert (wrong, session) == (MigrationRefusal.POLICY_FORBIDS_SENDING, b"")
    assert here.tasks.psp_queue.counts == commands
    here.departures.cancel("vm")
    run(here)
    assert here.guests["vm"].vcpus[0].registers.r13 == UNITS


@pytest.mark.parametrize(
    ("policy", "change", "refusal"),
    [
        (LegacyPolicy.DOMAIN, lambda shown: shown, MigrationRefusal.POLICY_FORBIDS_TARGET),
        (LegacyPolicy.SEV, lambda shown: shown, MigrationRefusal.TARGET_NOT_GENUINE),
        (0xFF << 16, lambda shown: shown, MigrationRefusal.POLICY_FORBIDS_TARGET),
        (0, lambda shown: shown[:100] + bytes([shown[100] ^ 1]) + shown[101:], MigrationRefusal.TARGET_NOT_GENUINE),
        (0, lambda shown: shown[:-1], MigrationRefusal.TARGET_NOT_GENUINE),
        (0, lambda shown: shown + bytes(5000), MigrationRefusal.TARGET_NOT_GENUINE),
    ],
)
def test_a_target_that_policy_or_firmware_does_not_want_is_refused(policy, change, refusal):
    here, there = hosts()
    # What the launch itself would refuse is set afterwards.
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    (context,) = here.board.psp.legacy.guests.values()
    context.policy |= int(policy)
    run(here, 2_000_000)
    here.departures.begin("vm", lambda _: None)
    shown, asked = certificates(there, guest.spec), context.policy
    assert sealed(here, "vm", change(shown)) == (refusal, b"")
    assert context.state is LegacyGuestState.RUNNING
    context.policy &= ~int(policy)
    assert sealed(here, "vm", shown)[0] is None
    context.policy = asked
    here.departures.cancel("vm")
    run(here)
    assert guest.vcpus[0].registers.r13 == UNITS


def test_a_target_without_an_asid_keeps_no_place():
    here, there = make_host(), make_host(min_sev_asid=510, name="there")
    before = leftovers(there)
    told = []
    there.arrivals.prepare(guest_spec("vm", SEV), lambda wrong, _: told.append(wrong))
    until(lambda: told, there)
    assert "ASID" in told[0]
    assert leftovers(there) == before
    assert place(here, guest_spec("vm", SEV)) is None


def test_a_guest_that_has_not_said_what_it_shares_is_refused():
    here, there = hosts()
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    platform = certificates(there, guest.spec)
    here.departures.begin("vm", lambda _: None)  # Its kernel has not run yet.
    assert sealed(here, "vm", platform)[0] == MigrationRefusal.SHARED_PAGES_UNKNOWN


# Caches that share no domain: Naples and Rome.

CACHED = Platform(caches=True)
STALE, NEW = b"what memory has " * 4, b"what the line is" * 4


def on_its_way(product):
    """A guest of hosts with caches, whose firmwares have agreed; its GPA."""
    here, there = (make_host(product=product, name=name, platform=CACHED) for name in ("here", "there"))
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    return here, there, guest, base(guest) + (1 << 20)


@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_what_a_guest_wrote_last_travels_though_it_lies_in_a_cache(product):
    here, there, guest, gpa = on_its_way(product)
    by_guest(here, guest, op.Write(gpa, STALE))
    by_host(here, op.Wbinvd())
    by_guest(here, guest, op.Write(gpa, NEW))
    flushed = here.board.bus.wbinvds
    assert laid(there, "vm", stopped(here, "vm")) is None
    assert here.board.bus.wbinvds - flushed == (not PRODUCTS[product].coherent_across_keys)
    assert look(there, there.guests["vm"], gpa, len(NEW)) == NEW


@pytest.mark.parametrize("product", ["Rome", "Milan"])
def test_lines_that_a_host_has_of_a_guest_s_frames_land_on_no_page_that_came(product):
    here, there, guest, gpa = on_its_way(product)
    by_guest(here, guest, op.Write(gpa, NEW))
    what = stopped(here, "vm")
    (spa,) = there.hypervisor.launched("vm").spas_of([gpa])
    by_host(there, op.HostWrite(spa, STALE))
    flushed = there.board.bus.wbinvds
    assert laid(there, "vm", what) is None
    assert there.board.bus.wbinvds - flushed == (not PRODUCTS[product].coherent_across_keys)
    there.board.caches.cache.flush_all()
    assert look(there, there.guests["vm"], gpa, len(NEW)) == NEW


def test_what_vcpus_told_their_hypervisor_the_next_one_knows():
    """Where the jump table lies, by which a vCPU that is held in reset goes on; a vCPU's DR7, and its GHCB."""
    here, there = hosts()
    start(here, "vm", ES, "ledger", vcpus=2, units=UNITS)
    run(here, 2_000_000)
    record = here.hypervisor.launched("vm")
    assert record.jump_table
    record.dr7[1, 0], record.ghcbs[0, 0] = 0x455, 9
    move(here, there, "vm")
    now = there.hypervisor.launched("vm")
    assert (now.jump_table, now.dr7, now.ghcbs) == (record.jump_table, {(1, 0): 0x455}, {(0, 0): 9})


@pytest.mark.parametrize("change", [lambda session: session[:-1], lambda session: session + bytes(3 * 4096)])
def test_a_session_of_another_length_is_refused_before_a_byte_of_it_is_laid_down(change):
    here, there = hosts()
    start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    here.departures.begin("vm", lambda _: None)
    wrong, session = sealed(here, "vm", certificates(there, here.guests["vm"].spec))
    assert wrong is None
    before = there.board.dram.resident_bytes
    assert opened(there, "vm", change(session)).startswith(f"session: expected {len(session)} bytes, got")
    assert there.board.dram.resident_bytes == before


def test_what_firmware_was_to_copy_of_a_move_that_is_called_off_it_does_not():
    here, there = hosts()
    start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    copied = []
    here.departures.copy("vm", 2, lambda: copied.append("here"))
    there.arrivals.copy("vm", 2, lambda: copied.append("there"))
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    run(here, here.now_ns + SECOND)
    run(there, there.now_ns + SECOND)
    assert not copied


def test_after_the_source_has_let_go_no_command_of_sending_is_answered():
    here, there = hosts()
    guest = start(here, "vm", SEV, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    (handle,) = here.board.psp.legacy.guests
    stopped(here, "vm")
    page = here.hypervisor.launched("vm").small[0]
    buffer = handle.to_bytes(4, "little")
    for command, status in (
        (LegacyCommand.SEND_FINISH, Status.SUCCESS),
        (LegacyCommand.SEND_CANCEL, Status.INVALID_GUEST_STATE),
        (LegacyCommand.SEND_FINISH, Status.INVALID_GUEST_STATE),
        (LegacyCommand.ACTIVATE, Status.INVALID_ASID),
    ):
        (answer,) = here.board.execute_host((op.PspCommand(command, page, buffer.ljust(8, b"\0")),))
        if command is not LegacyCommand.ACTIVATE:
            assert answer.status == status
    assert guest.state is GuestState.PAUSED


@BOTH
def test_hypervisors_in_processes_of_their_own_move_a_guest_as_those_here(generation):
    """All that a hypervisor is told and says crosses as bytes; nothing of a private page is in it."""
    crossed, remote = overheard(IMAGE)

    def far(name):
        spec = HostSpec(name, PRODUCTS["Milan"], 4 << 30, 100, 7, 60 * SECOND)
        return Host(spec, {"ledger": ledger}, {"auto": IMAGE}, COSTS, hypervisor=remote)

    here, there = far("here"), far("there")
    guest = start(here, "vm", generation, "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    what = stopped(here, "vm")
    plain = look(here, guest, guest.spec.memory.placement("vm", 0, 0).base_gpa + 4096 - RECORD // 2, RECORD)
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    run(there)
    arrived = there.guests["vm"]
    assert (arrived.vcpus[0].registers.r13, arrived.faults) == (UNITS, 0)
    assert not here.board.psp.legacy.guests
    assert any(plain)
    assert not [one for one in crossed if plain in one]
