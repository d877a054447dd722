"""A guest's own handler moves it, in its SVSM at VMPL0: hypervisors carry ciphertext, and it is nowhere twice."""

import dataclasses
import hashlib

import msgpack
import pytest
from overheard_hypervisors import overheard
from svsm_guests import HANDS_OFF, PAGES, Talker
from test_agent_transfer import certified, changed, validated
from test_departures_and_arrivals import leftovers, until
from test_departures_and_arrivals import stopped as stands_still
from test_sealed_transfer import certificates, kept, laid, opened, sealed
from test_svsm_vtpm import vtpm
from test_tpm import DIGEST, STARTUP, extend, read
from toy_guests import COSTS, IMAGE, RECORD, SECOND, guest_spec, ledger, look, make_host, run, script

from node import handler_core, handler_transfer, migration_handler
from node import operations as op
from node.agent_messages import AgentRefusal, Hello
from node.generation import Generation
from node.guest import GuestState
from node.handler_transfer import export_by_handler, handler_greets, meet_target
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.migration_handler import STATE_GPA
from node.migration_refusal import MigrationRefusal
from node.operations import Shutdown, Sleep
from node.packing import packed
from node.platform import Platform
from node.product import PRODUCTS
from node.svsm_call import CoreCall, PageEntry, Protocol, page_list
from node.svsm_memory import TPM_GPA
from psp.exported_context import ExportedContext
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report

UNITS = 60
QUICK = dict(COSTS) | {"psp.guest_request_ns": 100_000}
"""So that a move does not take longer than the guest's work."""
SPEC = dataclasses.replace(
    guest_spec("vm", Generation.SEV_SNP, "ledger", vcpus=2, units=UNITS), svsm=True, migration_handler=True
)
IN_THE_MIDDLE = 7_000_000


def host(name="host"):
    return make_host(name=name, costs=QUICK)


def started(one):
    one.launch(SPEC, lambda _: None, running=True)
    guest = one.guests["vm"]
    assert guest.state is GuestState.RUNNING, guest.reason
    return guest


def stopped(source, name):
    """As it stands still, in the middle of its work."""
    assert all(4 < one.registers.r13 < UNITS - 9 for one in source.guests[name].vcpus)
    return stands_still(source, name)


def agree(source, target, shown=None):
    assert not isinstance(source.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = shown or certified(target, certificates(target, source.guests["vm"].spec))
    wrong, hello = sealed(source, "vm", shown)
    assert wrong is None
    assert opened(target, "vm", certified(source, hello)) is None


def move(source, target, shown=None):
    agree(source, target, shown)
    what = stopped(source, "vm")
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    assert laid(target, "vm", what) is None
    target.arrivals.start("vm")
    source.departures.finish("vm")
    run(source, source.now_ns + SECOND)


@pytest.fixture(scope="module")
def expected():
    """What a guest that stays ends with."""
    stayed = host()
    guest = started(stayed)
    run(stayed)
    return kept(stayed, guest)


@pytest.fixture
def on_its_way():
    here, there = host("here"), host("there")
    started(here)
    run(here, IN_THE_MIDDLE)
    agree(here, there)
    return here, there


def goes_on(host):
    """A move is over, and the guest where it was."""
    host.departures.cancel("vm")
    until(lambda: host.guests["vm"].state is GuestState.RUNNING, host)


def context(host):
    return host.board.psp.snp.guests.pages.read(host.hypervisor.launched("vm").gctx)


def ends_well(host, expected):
    guest = host.guests["vm"]
    run(host, host.now_ns + 100 * SECOND)
    assert (guest.faults, kept(host, guest)) == (0, expected)


def test_a_guest_that_moves_there_and_back_ends_as_one_that_stayed(expected):
    here, there = host("here"), host("there")
    empty = leftovers(there)[0]
    started(here)
    run(here, IN_THE_MIDDLE)
    digest, calls = context(here).digest, here.guests["vm"].svsm.calls
    for _ in range(2):
        move(here, there)
        assert leftovers(here)[0] == empty
        here, there = there, here
        run(here, here.now_ns + 200_000)
    assert context(here).digest == digest
    assert here.guests["vm"].svsm.calls >= calls
    ends_well(here, expected)


def test_identity_moves_and_no_key_does(on_its_way):
    here, there = on_its_way
    before, asid, image = context(here), here.guests["vm"].asid, context(there)
    tpm = look_at_svsm(here, TPM_GPA)
    # What was launched at the target is the image, and nothing else of the guest.
    assert image.digest == image.imd == before.imd != before.digest
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    after = context(there)
    assert (after.digest, after.vmpcks, after.report_id) == (before.digest, before.vmpcks, before.report_id)
    assert after.memory_key == image.memory_key != before.memory_key
    assert look_at_svsm(there, TPM_GPA) == tpm
    # All that its kernel had it has here, and no more.
    assert abs(validated(there, "vm") - validated(here, "vm")) <= 2 << 20
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    assert not here.board.controller.has_key(asid)
    # Its SVSM asks the new host's firmware with the keys and numbers that it had.
    hello = there.tasks.at_once(handler_greets(there.hypervisor, "vm", there.hypervisor.launched("vm")))
    report = parse_report(Hello.parse(hello).report, Trail())
    assert (report.measurement, report.report_id) == (before.digest, before.report_id)


@pytest.mark.parametrize("then", ["is handed over", "is called off", "comes spoilt"])
def test_when_a_move_is_over_its_handlers_keep_nothing_that_opens_what_was_sealed(on_its_way, then):
    """Nor lies any of it in the rest of their pages."""
    here, there = on_its_way
    (key, *_), (peers, *_) = (
        msgpack.unpackb(page[2 : 2 + int.from_bytes(page[:2], "little")])
        for page in (look_at_svsm(here, STATE_GPA), look_at_svsm(there, STATE_GPA))
    )
    assert len({key, peers}) == 2
    assert (len(key), len(peers)) == (32, 32)
    if then == "is called off":
        here.departures.cancel("vm")
        run(here, here.now_ns + SECOND // 1000)
    else:
        what = stopped(here, "vm")
        spoilt = {} if then == "is handed over" else SPOILT["a page"](what.state)
        wrong = laid(there, "vm", what, what.state._replace(**spoilt))
        assert (wrong is not None) is (then == "comes spoilt")
        assert peers[-8:] not in look_at_svsm(there, STATE_GPA)
    assert key[-8:] not in look_at_svsm(here, STATE_GPA)


def look_at_svsm(host, gpa):
    """A page of the SVSM's, as it sees it."""
    area = host.hypervisor.launched("vm").save_areas[0]
    vmcb = dataclasses.replace(host.board.vmcb("vm", 0), save_area_spa=area, vmpl=0)
    (data,) = host.board.execute_guest(vmcb, (op.Read(gpa, PAGE_BYTES),))
    return data


EXTENDS = 8


def measures(placement, registers):
    """Call the SVSM block by block: begin, extend a PCR again and again, read it and keep it."""
    if placement.vcpu:
        return Sleep(10**18)
    done = registers.rbx
    command = STARTUP if not done else extend(4, (0xB, DIGEST)) if done <= EXTENDS else read(0xB, 1 << 4)
    result, response = yield from vtpm(Talker(registers, placement), command)
    if result:
        return Shutdown(9)
    registers.rbx += 1
    if done > EXTENDS:
        yield (op.Write(PAGES[1], response[-32:]),)
        return Sleep(10**18)
    return Sleep(1_000_000)


def test_what_a_guest_measured_before_it_moved_is_in_its_vtpm_after():
    programs = {"measures": script(measures)}
    here, there = (make_host(programs, name=name, costs=QUICK) for name in ("here", "there"))
    program = dataclasses.replace(SPEC.program, name="measures")
    spec = dataclasses.replace(SPEC, program=program)
    here.launch(spec, lambda _: None, running=True)
    guest = here.guests["vm"]
    until(lambda: guest.vcpus[0].thread == 0 and guest.vcpus[0].registers.rbx == EXTENDS // 2, here)
    agree(here, there)
    assert guest.vcpus[0].registers.rbx < EXTENDS
    what = stands_still(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(there, there.now_ns + SECOND)
    expected = bytes(32)
    for _ in range(EXTENDS):
        expected = hashlib.sha256(expected + DIGEST).digest()
    assert look(there, there.guests["vm"], PAGES[1], 32) == expected


def lends(placement, registers):
    """Lend a page to the SVSM, and see again and again what comes of reading it."""
    if placement.vcpu:
        return Sleep(10**18)
    talker = Talker(registers, placement)
    if not registers.rbx:
        yield (op.Write(PAGES[2], page_list([PageEntry(PAGES[3], validate=False)])),)
        if (yield from talker.call(Protocol.CORE, CoreCall.DEPOSIT_MEM, PAGES[2])).result:
            return Shutdown(9)
    else:
        (found,) = yield (op.Read(PAGES[3], 16),)
        yield (op.Write(PAGES[1], bytes([isinstance(found, op.Fault), registers.rbx])),)
    registers.rbx += 1
    return Sleep(1_000_000)


def test_what_a_guest_lent_to_its_svsm_it_has_no_rights_to_where_it_came_either():
    programs = {"lends": script(lends)}
    here, there = (make_host(programs, name=name, costs=QUICK) for name in ("here", "there"))
    program = dataclasses.replace(SPEC.program, name="lends")
    here.launch(dataclasses.replace(SPEC, program=program, kernel=HANDS_OFF), lambda _: None, running=True)
    guest = here.guests["vm"]
    until(lambda: guest.vcpus[0].thread == 0 and guest.vcpus[0].registers.rbx == 3, here)
    agree(here, there)
    what = stands_still(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    before = look(there, there.guests["vm"], PAGES[1], 2)
    run(there, there.now_ns + SECOND // 100)
    after = look(there, there.guests["vm"], PAGES[1], 2)
    assert (before[0], after[0]) == (1, 1)
    assert after[1] > before[1] > 0


def test_a_handler_does_each_thing_of_a_move_once_and_on_its_own_side(on_its_way, expected):
    here, there = on_its_way

    def refused(host, *order):
        record = host.hypervisor.launched("vm")
        with pytest.raises(LaunchRefused) as caught:
            host.tasks.at_once(handler_transfer._order(host.hypervisor, "vm", record, *order))
        return str(caught.value).removeprefix("migration handler: ")

    gctx = here.hypervisor.launched("vm").gctx
    assert refused(here, "meet", gctx, b"", True, b"") == "no greeting is open"
    assert refused(here, "in", (), (), b"", ()) == "there is nobody to have a guest from"
    assert refused(there, "out", gctx, ()) == "there is nobody to hand the guest to"
    stopped(here, "vm")
    assert refused(here, "out", gctx, ()) == "there is nobody to hand the guest to"
    assert refused(here, "hello") == "the guest was handed over"
    here.departures.cancel("vm")
    ends_well(here, expected)


@pytest.mark.parametrize("halfway", ["not started", "at VMPL0", "in reset"])
def test_a_guest_with_a_vcpu_on_its_way_into_its_kernel_is_not_handed_over(on_its_way, expected, halfway):
    here, _ = on_its_way
    record = here.hypervisor.launched("vm")
    started = (True, halfway != "not started")
    with pytest.MonkeyPatch.context() as patch:
        if halfway == "at VMPL0":
            patch.setitem(record.vmpls.running, 1, 0)
        elif halfway == "in reset":
            patch.setitem(record.starts.holds, 1, (0, None))
        with pytest.raises(LaunchRefused, match=MigrationRefusal.VCPU_IN_RESET):
            here.tasks.at_once(export_by_handler(here.hypervisor, record, "vm", started, ()))
        if halfway == "in reset":
            with pytest.raises(LaunchRefused, match=MigrationRefusal.VCPU_IN_RESET):
                here.tasks.at_once(meet_target(here.hypervisor, record, "vm", b""))
    here.departures.cancel("vm")
    ends_well(here, expected)


@pytest.mark.parametrize("was_stopped", [False, True])
def test_a_guest_that_stays_after_all_goes_on_as_if_nothing_had_been(on_its_way, expected, was_stopped):
    here, there = on_its_way
    if was_stopped:
        stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    ends_well(here, expected)


def test_a_guest_that_was_handed_over_is_entered_by_nobody_until_its_handler_lets_it(on_its_way, expected):
    here, _ = on_its_way
    stopped(here, "vm")
    assert here.board.enter("vm", 0) != 0
    here.departures.cancel("vm")
    ends_well(here, expected)


@pytest.mark.parametrize("answers", [True, False])
def test_a_guest_whose_handler_failed_after_it_took_the_save_areas_goes_on_only_with_its_word(
    on_its_way, expected, answers
):
    here, _ = on_its_way

    def fails(self, gctx):
        raise AgentRefusal("EXPORT: firmware is busy")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migration_handler.MigrationHandler, "_export", fails)
        told = []
        here.departures.stop("vm", 0, told.append, told.append)
        until(lambda: told, here)
        assert told == ["migration handler: EXPORT: firmware is busy"]
        assert here.board.enter("vm", 0) != 0
        if not answers:
            patch.setattr(handler_core, "HANDLER_MARK", b"nobody's mark")
        here.departures.cancel("vm")
        run(here, here.now_ns + SECOND)
    if answers:
        ends_well(here, expected)
        assert not here.hypervisor.launched("vm").handed_over
    else:
        guest = here.guests["vm"]
        assert (guest.state, guest.reason) == (GuestState.DESTROYED, "the migration handler does not answer")


def test_a_handler_that_takes_no_word_for_it_lets_the_guest_go_on_nowhere_but_where_it_was_handed(on_its_way):
    here, _ = on_its_way
    here.board.handlers.handler = dataclasses.replace(here.board.handlers.handler, resumes_on_word=False)
    stopped(here, "vm")
    here.departures.cancel("vm")
    run(here, here.now_ns + SECOND)
    guest = here.guests["vm"]
    assert (guest.state, guest.reason) == (GuestState.DESTROYED, "migration handler: the guest was handed over")


def test_a_hypervisor_that_lies_has_two_of_a_guest_whose_handler_takes_its_word(on_its_way):
    """What ``resumes_on_word`` costs: firmware keeps apart what agents export, not what an image absorbs."""
    here, there = on_its_way
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.cancel("vm")
    for one in (here, there):
        guest = one.guests["vm"]
        until(lambda guest=guest: guest.state is GuestState.RUNNING and guest.vcpus[0].registers.r13 == UNITS, one)


SPOILT = {
    "a page": lambda state: {"packets": changed(state.packets, 0, bytes(PAGE_BYTES))},
    "two pages exchanged": lambda state: {
        "packets": changed(changed(state.packets, 0, state.packets[1][2]), 1, state.packets[0][2])
    },
    "a page left out": lambda state: {"packets": state.packets[1:]},
    "the last page left out": lambda state: {"packets": state.packets[:-1]},
    "a page at another address": lambda state: {
        "packets": ((state.packets[0][0] + PAGE_BYTES, *state.packets[0][1:]), *state.packets[1:])
    },
    "a save area": lambda state: {"sealed_areas": changed(state.sealed_areas, 0, bytes(PAGE_BYTES))},
    "two save areas exchanged": lambda state: {
        "sealed_areas": changed(
            changed(state.sealed_areas, 0, state.sealed_areas[1][2]), 1, state.sealed_areas[0][2]
        )
    },
    "the identity": lambda state: {"context": state.context[:-1] + bytes([state.context[-1] ^ 1])},
    "more that is shared": lambda state: {"shared": (*state.shared, (48 << 20, PAGE_BYTES))},
}


def test_what_was_changed_on_the_way_is_refused_and_the_guest_goes_on(on_its_way, expected):
    here, there = on_its_way
    what = stopped(here, "vm")
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    empty = leftovers(there)[0]
    for name, spoil in SPOILT.items():
        goes_on(here)
        agree(here, there)
        what = stopped(here, "vm")
        assert laid(there, "vm", what, what.state._replace(**spoil(what.state))) is not None, name
        there.arrivals.abandon("vm")
        run(there, there.now_ns + SECOND)
        assert leftovers(there)[0] == empty, name
    here.departures.cancel("vm")
    ends_well(here, expected)


def test_memory_that_both_hypervisors_leave_out_is_missed_by_the_guest(on_its_way, monkeypatch):
    """It finds no other bytes than its own there, but a page that nobody accepted."""
    here, there = on_its_way
    base = SPEC.memory.placement("vm", 0, 0).base_gpa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    all_of_it = handler_transfer._moved

    def most_of_it(record):
        for gpa, length in all_of_it(record):
            yield from handler_transfer._without(gpa, length, ((base, LARGE_PAGE_BYTES),))

    monkeypatch.setattr(handler_transfer, "_moved", most_of_it)
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    guest = there.guests["vm"]
    run(there, there.now_ns + 100 * SECOND)
    assert (guest.state, guest.vcpus[0].registers.r13 < UNITS) == (GuestState.STOPPED, True)


def test_what_was_sealed_for_one_image_no_other_opens(on_its_way):
    """A recording of a move is worth nothing, even to the same handler on the same host."""
    here, there = on_its_way
    what = stopped(here, "vm")
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    goes_on(here)
    agree(here, there)
    assert "not all that the peer sealed" in laid(there, "vm", what)


def test_a_handler_gives_nothing_to_a_peer_that_is_not_its_own_image_or_has_no_report():
    here, there = host("here"), host("there")
    guest = started(here)
    run(here, IN_THE_MIDDLE)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    hello = certificates(there, SPEC)
    genuine = Hello.parse(certified(there, hello))
    # One that runs the same image under a guest of its own is not the image alone.
    other = host("other")
    started(other)
    greeting = handler_greets(other.hypervisor, "vm", other.hypervisor.launched("vm"))
    whole = certified(other, other.tasks.at_once(greeting))
    mine = dataclasses.replace(genuine, public_key=bytes(31) + b"\1")
    for peer in (b"", hello, mine.pack(), dataclasses.replace(genuine, certificates=()).pack(), whole):
        assert sealed(here, "vm", peer) == (MigrationRefusal.HANDLER_REFUSES, b"")
    assert guest.state is GuestState.RUNNING


def test_a_handler_gives_nothing_to_its_own_image_under_an_older_firmware():
    here = host("here")
    tcb = here.board.psp.firmware.current.tcb - (1 << 48)
    there = make_host(name="there", costs=QUICK, platform=Platform(firmware_tcb=tcb))
    started(here)
    run(here, IN_THE_MIDDLE)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certified(there, certificates(there, SPEC))
    assert sealed(here, "vm", shown) == (MigrationRefusal.HANDLER_REFUSES, b"")
    assert here.guests["vm"].state is GuestState.RUNNING


def test_the_image_at_the_target_is_measured_with_the_processor_that_its_guest_is_shown():
    here, there = host("here"), host("there")
    here.launch(dataclasses.replace(SPEC, cpu_model="EPYC-Milan"), lambda _: None, running=True)
    run(here, IN_THE_MIDDLE)
    agree(here, there)


def test_a_guest_with_a_vcpu_that_nobody_has_started_is_refused_before_it_is_touched():
    here, there = host("here"), host("there")
    guest = started(here)
    run(here, 1_000_000)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certified(there, certificates(there, SPEC))
    assert sealed(here, "vm", shown) == (MigrationRefusal.VCPU_IN_RESET, b"")
    here.departures.cancel("vm")
    run(here)
    assert [one.registers.r13 for one in guest.vcpus] == [UNITS, UNITS]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (lambda pieces: [(gpa, size, not large) for gpa, size, large in pieces], "was validated before, or is none"),
        (lambda pieces: pieces[1:], "its memory is another than the guest's was"),
    ],
)
def test_a_handler_that_is_told_of_other_entries_than_there_are_accepts_no_memory(on_its_way, monkeypatch, told, why):
    here, there = on_its_way
    what, honest = stopped(here, "vm"), handler_transfer._order

    def lies(hypervisor, vm, record, order, *rest):
        rest = (*rest[:-1], tuple(told(rest[-1]))) if order == "in" else rest
        return (yield from honest(hypervisor, vm, record, order, *rest))

    monkeypatch.setattr(handler_transfer, "_order", lies)
    assert why in laid(there, "vm", what)


@pytest.mark.parametrize("change", [{"digest": bytes(48)}, {"report_id": bytes(32)}, {"policy": 0}])
def test_an_image_becomes_no_guest_but_the_one_whose_report_it_was_shown(on_its_way, change):
    here, there = on_its_way
    taken = []
    absorb = there.board.handlers.handler.__class__._absorb

    def another(self, exported, report):
        found = ExportedContext.parse(exported)
        taken.append(found)
        yield from absorb(self, dataclasses.replace(found, **change).pack(), report)

    what = stopped(here, "vm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.board.handlers.handler.__class__, "_absorb", another)
        assert "not the guest that it hands over" in laid(there, "vm", what)
    assert taken


@pytest.mark.parametrize("exported", [b"", bytes(767), bytes(768), bytes([255]) * 768])
def test_what_a_peer_has_made_up_is_refused(on_its_way, monkeypatch, exported):
    """A guest that may be moved has a report as well, whatever its handler is."""
    here, there = on_its_way
    monkeypatch.setattr(
        migration_handler, "packed", lambda body: packed((exported, *body[1:]) if len(body) == 4 else body)
    )
    what = stopped(here, "vm")
    monkeypatch.undo()
    assert laid(there, "vm", what).startswith("migration handler: the peer")


def test_the_hypervisors_see_neither_a_page_nor_the_identity():
    """With hypervisors in processes of their own everything that they are shown crosses as bytes."""
    crossed, remote = overheard(IMAGE)

    def far(name):
        spec = HostSpec(name, PRODUCTS["Milan"], 4 << 30, 100, 7, 60 * SECOND)
        return Host(spec, {"ledger": ledger}, {"auto": IMAGE}, QUICK, hypervisor=remote)

    here, there = far("here"), far("there")
    guest = started(here)
    run(here, IN_THE_MIDDLE)
    agree(here, there)
    (gctx,) = here.board.psp.snp.guests.pages.spas
    secrets = here.board.psp.snp.guests.pages.read(gctx)
    base = guest.spec.memory.placement("vm", 0, 0).base_gpa
    plain = look(here, guest, base + PAGE_BYTES - RECORD // 2, RECORD)
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    run(there)
    arrived = there.guests["vm"]
    assert ([one.registers.r13 for one in arrived.vcpus], arrived.faults) == ([UNITS] * 2, 0)
    assert any(plain)
    for secret in (plain, secrets.oek, secrets.vmpck(0), secrets.memory_key[:16]):
        assert not [one for one in crossed if secret in one]


@pytest.mark.parametrize(
    "order",
    [b"", b"\xc1", packed(("hello", 1)), packed(("out", 1, ((-1, 2),))), packed(("out", 1, ((1,),))),
     packed(("meet", -1, b"", True, b"")), packed(("meet", 0, b"\x90", True, b"")), packed(("out", 1, ())),
     packed(("meet", 0, b"\x90", True)), packed(("meet", 0, b"\x90", True, ())),
     packed(("in", (), (), b"", ())), packed(("in", ((1, b"", b""),), (), b"", ((0, 4096, False),)))],
)  # fmt: skip
def test_a_handler_refuses_an_order_that_is_none_and_serves_the_next(handlers_host, order):
    record = handlers_host.hypervisor.launched("vm")
    own = record.request_pages
    call = op.HandlerCall("vm", order, record.svsm.gpa, record.save_areas[0], record.gctx, record.small[0], *own)
    (answer,) = handlers_host.board.execute_host((call,))
    assert msgpack.unpackb(answer)[0] == "refused"
    greeting = handler_greets(handlers_host.hypervisor, "vm", record)
    assert Hello.parse(handlers_host.tasks.at_once(greeting)).public_key


@pytest.fixture(scope="module")
def handlers_host():
    one = host()
    started(one)
    run(one, IN_THE_MIDDLE)
    one.tasks.at_once(handler_greets(one.hypervisor, "vm", one.hypervisor.launched("vm")))
    return one


def test_an_svsm_without_a_handler_answers_no_order():
    one = host()
    one.launch(dataclasses.replace(SPEC, migration_handler=False), lambda _: None, running=True)
    run(one, IN_THE_MIDDLE)
    assert one.departures.begin("vm", lambda _: None) is MigrationRefusal.NEEDS_MIGRATION_AGENT
    record = one.hypervisor.launched("vm")
    with pytest.raises(LaunchRefused, match="does not answer"):
        one.tasks.at_once(handler_greets(one.hypervisor, "vm", record))
