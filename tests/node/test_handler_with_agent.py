"""A handler in its guest's SVSM, and agents of its hosts."""

import dataclasses
from contextlib import nullcontext

import msgpack
import pytest
from test_agent_transfer import WITH_AGENT, certified
from test_departures_and_arrivals import leftovers, stopped, until
from test_handler_transfer import IN_THE_MIDDLE, QUICK, SPEC, started
from test_handler_transfer import agree as handler_agrees
from test_handler_transfer import move as handler_moves
from test_sealed_transfer import certificates, kept, laid, opened, sealed
from toy_guests import SECOND, make_host, run

from cluster.agent_certificates import with_own_chain
from node import handler_transfer, migration_handler
from node.agent_messages import AgentRefusal, Hello, Voucher
from node.agent_transfer import AGENT, greet, order_agent, own_report
from node.guest import GuestState
from node.handler_transfer import handler_greets
from node.hypervisor_port import LaunchRefused
from node.migration_agent import MigrationAgent
from node.migration_handler import _has_become
from node.migration_refusal import MigrationRefusal
from node.packing import packed
from psp import command_buffers as buffers
from psp.exported_context import ExportedContext
from psp.guest_context import NO_MIGRATION_AGENT
from psp.migration_messages import MigrationMessages
from psp.verifier.reasons import Trail
from psp.verifier.report import parse_report


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


# A guest that has both: its handler moves its memory, and its agent hands its identity over.

BOTH = dataclasses.replace(SPEC, migration_agent=True)


def begun(host):
    host.launch(BOTH, lambda _: None, running=True)
    guest = host.guests["vm"]
    assert guest.state is GuestState.RUNNING, guest.reason
    return guest


def shown_by(here, there):
    """What the target shows, as it comes to the source."""
    return with_own_chain(certified(there, certificates(there, BOTH)), here.board.psp)


def agree(here, there):
    handler_agrees(here, there, shown_by(here, there))


def move(here, there):
    handler_moves(here, there, shown_by(here, there))


@pytest.fixture(scope="module")
def expected():
    """What a guest that stays ends with."""
    stayed = with_agent("host")
    guest = begun(stayed)
    run(stayed)
    return kept(stayed, guest)


@pytest.fixture
def ready():
    here, there = with_agent("here"), with_agent("there")
    begun(here)
    run(here, IN_THE_MIDDLE)
    return here, there


@pytest.fixture
def on_its_way(ready):
    agree(*ready)
    return ready


def ends_well(host, expected):
    guest = host.guests["vm"]
    run(host, host.now_ns + 100 * SECOND)
    assert (guest.faults, kept(host, guest)) == (0, expected)


def report_of(host):
    """As the firmware has it of the guest, when its SVSM asks."""
    hello = host.tasks.at_once(handler_greets(host.hypervisor, "vm", host.hypervisor.launched("vm")))
    return parse_report(Hello.parse(hello).report, Trail())


def test_a_guest_that_moves_there_and_back_ends_as_one_that_stayed(expected, monkeypatch):
    absorbed = []
    for name in ("_absorb", "_absorb_alone", "_import"):
        step = getattr(MigrationMessages, name)
        monkeypatch.setattr(
            MigrationMessages, name, lambda *of, step=step, name=name: (absorbed.append(name), step(*of))
        )
    here, there = with_agent("here"), with_agent("there")
    empty = leftovers(there)[0]
    begun(here)
    run(here, IN_THE_MIDDLE)
    before, guest = context(here), report_of(here)
    for _ in range(2):
        move(here, there)
        assert leftovers(here)[0] == empty
        here, there = there, here
        now = report_of(here)
        assert (now.measurement, now.report_id) == (guest.measurement, guest.report_id)
        assert now.report_id_ma == context(here, AGENT).report_id != NO_MIGRATION_AGENT
        run(here, here.now_ns + 200_000)
    after = context(here)
    assert (after.digest, after.vmpcks, after.imd) == (before.digest, before.vmpcks, before.imd)
    assert after.memory_key != before.memory_key
    assert absorbed == ["_absorb"] * 2
    ends_well(here, expected)


@pytest.mark.parametrize("was_stopped", [False, True])
def test_a_guest_that_stays_after_all_goes_on_as_if_nothing_had_been(on_its_way, expected, was_stopped):
    here, there = on_its_way
    if was_stopped:
        stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    until(lambda: here.guests["vm"].state is GuestState.RUNNING, here)
    agree(here, there)
    here.departures.cancel("vm")
    ends_well(here, expected)


def vouching(monkeypatch, change):
    """Have the hypervisor change what the agent says to the guest's handler."""
    honest = handler_transfer.order_agent

    def lies(hypervisor, order, *rest):
        said = yield from honest(hypervisor, order, *rest)
        return change(Voucher.parse(said)).pack() if order == "vouch" else said

    monkeypatch.setattr(handler_transfer, "order_agent", lies)


@pytest.mark.parametrize("change", [{"imd": bytes(48)}, {"peer_id": bytes(32)}, {"report": b""}])
def test_a_handler_takes_no_word_for_its_agent_s_that_no_report_of_its_has(ready, expected, change, monkeypatch):
    here, there = ready
    with monkeypatch.context() as patch:
        vouching(patch, lambda said: dataclasses.replace(said, **change))
        assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
        assert sealed(here, "vm", shown_by(here, there)) == (MigrationRefusal.HANDLER_REFUSES, b"")
    here.departures.cancel("vm")
    ends_well(here, expected)


def test_what_its_agent_said_for_a_key_that_it_had_before_a_handler_takes_for_none_that_it_has(ready, monkeypatch):
    """A hypervisor that kept it could have an older peer believed that its agent would not believe any more."""
    here, there = ready
    honest, kept = handler_transfer.order_agent, []

    def replays(hypervisor, order, *rest):
        said = yield from honest(hypervisor, order, *rest)
        if order != "vouch":
            return said
        kept.append(said)
        return kept[0]

    monkeypatch.setattr(handler_transfer, "order_agent", replays)
    for expected in (None, MigrationRefusal.HANDLER_REFUSES):
        assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
        assert sealed(here, "vm", shown_by(here, there))[0] == expected
        here.departures.cancel("vm")
        there.arrivals.abandon("vm")
        run(there, there.now_ns + SECOND)
        run(here, here.now_ns + SECOND)
    assert len(kept) == 2


def report_bit(report, at):
    """The report with another bit in the byte at an offset."""
    return report[:at] + bytes([report[at] ^ 1]) + report[at + 1 :]


@pytest.mark.parametrize("at", [None, 0x08, 0x90, 0x140], ids=["the same", "policy", "measurement", "report id"])
def test_an_image_that_was_to_become_a_guest_goes_on_as_no_other(at, monkeypatch):
    host = with_agent("here")
    report = host.tasks.at_once(own_report(host.hypervisor))

    def asked(*_):
        return report if at is None else report_bit(report, at)
        yield

    monkeypatch.setattr(migration_handler, "asked_report", asked)
    steps = _has_become(parse_report(report, Trail()))
    with nullcontext() if at is None else pytest.raises(AgentRefusal, match="not the guest that it hands over"):
        assert list(steps) == []


def test_a_handler_believes_no_agent_but_its_own(ready, monkeypatch):
    """One of another chip says what its own would, and that chip's certificates are laid beside it."""
    here, there = ready
    other, own = with_agent("other"), handler_transfer.order_agent
    asked = []

    def elsewhere(hypervisor, order, *rest):
        said = yield from own(hypervisor, order, *rest)
        if order != "vouch":
            return said
        said, data = Voucher.parse(said), Voucher.parse(said).bound_to(context(here).report_id, rest[-1])
        asked.append(order)
        with monkeypatch.context() as patch:
            patch.setattr(Hello, "bound", property(lambda _: data))
            hello = Hello.parse(other.tasks.at_once(own(other.hypervisor, "hello")))
        return dataclasses.replace(said, report=hello.report).pack()

    monkeypatch.setattr(handler_transfer, "order_agent", elsewhere)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = with_own_chain(certified(there, certificates(there, BOTH)), other.board.psp)
    assert sealed(here, "vm", shown) == (MigrationRefusal.HANDLER_REFUSES, b"")
    assert (asked, here.guests["vm"].state) == (["vouch"], GuestState.RUNNING)


@pytest.mark.parametrize(
    "said",
    [b"", b"\xc1", packed(1), packed((bytes(48), bytes(32), b"")), packed((bytes(47), bytes(32), b"", ())),
     packed((bytes(48), bytes(33), b"", ())), packed((bytes(48), bytes(32), "", ())),
     packed((bytes(48), bytes(32), b"", ("",)))],
)  # fmt: skip
def test_an_agent_s_word_that_is_malformed_is_refused(said):
    with pytest.raises(AgentRefusal, match="the agent's word is malformed"):
        Voucher.parse(said)
    good = Voucher(bytes(48), bytes(32), b"report", (b"VCEK",))
    assert Voucher.parse(good.pack()) == good


def test_an_agent_that_began_after_a_guest_did_has_no_part_in_it(ready):
    here, there = ready
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = shown_by(here, there)
    here.tasks.at_once(here.hypervisor.restart_agent())
    assert sealed(here, "vm", shown) == (MigrationRefusal.HANDLER_REFUSES, b"")
    assert here.guests["vm"].state is GuestState.RUNNING


def test_a_handler_gives_nothing_to_its_own_image_under_another_agent_than_its_own_believes(ready):
    """The target's image was launched with an agent of the target's own; one that is believed greets from elsewhere."""
    here, there = ready
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    handler, _ = msgpack.unpackb(certificates(there, BOTH))
    other = with_agent("other")
    agent = certified(other, other.tasks.at_once(greet(other.hypervisor)))
    shown = with_own_chain(packed((certified(there, handler), agent)), here.board.psp)
    assert sealed(here, "vm", shown) == (MigrationRefusal.HANDLER_REFUSES, b"")


def test_what_an_agent_says_of_another_guest_of_its_own_a_handler_does_not_take_for_its_own(ready, monkeypatch):
    """Its hypervisor could have launched one with any image, and have the same at the target."""
    here, there = ready
    here.launch(dataclasses.replace(BOTH, name="other"), lambda _: None, running=True)
    another, honest = here.hypervisor.launched("other").gctx, handler_transfer.order_agent

    def lies(hypervisor, order, vm, gctx, *rest):
        return (yield from honest(hypervisor, order, vm, another if order == "vouch" else gctx, *rest))

    monkeypatch.setattr(handler_transfer, "order_agent", lies)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    assert sealed(here, "vm", shown_by(here, there)) == (MigrationRefusal.HANDLER_REFUSES, b"")


@pytest.mark.parametrize("shown", [b"", b"\xc1", packed((b"", b"")), packed((b"", b"", (1,))), packed((1, 2, ()))])
def test_greetings_that_are_none_are_refused(ready, expected, shown):
    here, there = ready
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    wrong, _ = sealed(here, "vm", with_own_chain(shown, here.board.psp))
    assert wrong in (MigrationRefusal.HANDLER_REFUSES, MigrationRefusal.AGENT_REFUSES)
    certificates(there, BOTH)
    assert opened(there, "vm", shown) is not None
    here.departures.cancel("vm")
    ends_well(here, expected)


@pytest.mark.parametrize("change", [{"digest": bytes(48)}, {"report_id": bytes(32)}, {"vmpcks": bytes(128)}])
def test_an_image_becomes_no_guest_but_the_one_whose_report_it_was_shown(on_its_way, expected, change, monkeypatch):
    here, there = on_its_way
    what = stopped(here, "vm")
    honest = MigrationAgent._taken_in

    def another(self, gctx, blob, how):
        found = dataclasses.replace(ExportedContext.parse(blob), **change)
        yield from honest(self, gctx, found.pack(), how)

    with monkeypatch.context() as patch:
        patch.setattr(MigrationAgent, "_taken_in", another)
        wrong = laid(there, "vm", what)
    known = "no answer of the firmware's" if "vmpcks" in change else "the peer is not the guest that it hands over"
    assert wrong == f"migration handler: {known}"
    there.arrivals.abandon("vm")
    here.departures.cancel("vm")
    ends_well(here, expected)


def test_an_image_that_no_agent_had_absorb_anything_becomes_nobody(on_its_way, monkeypatch):
    here, there = on_its_way
    what, honest = stopped(here, "vm"), handler_transfer.order_agent

    def lazy(hypervisor, order, *rest):
        if order != "absorb":
            return (yield from honest(hypervisor, order, *rest))
        return None

    monkeypatch.setattr(handler_transfer, "order_agent", lazy)
    assert laid(there, "vm", what) == "migration handler: no answer of the firmware's"


def test_what_an_agent_sealed_for_another_is_absorbed_by_nobody(on_its_way, expected):
    here, there = on_its_way
    what = stopped(here, "vm")
    identity, blob = msgpack.unpackb(what.state.context)
    for wrong, why in (
        (b"", "HANDLER_REFUSES"),
        (packed((identity, blob[:-1] + bytes([blob[-1] ^ 1]))), "not sealed by the peer"),
        (packed((identity[:-1] + bytes([identity[-1] ^ 1]), blob)), "not all that the peer sealed"),
    ):
        state = what.state._replace(context=wrong or b"\0")
        said = laid(there, "vm", what, state)
        assert (MigrationRefusal.HANDLER_REFUSES if why == "HANDLER_REFUSES" else why) in said
        there.arrivals.abandon("vm")
        run(there, there.now_ns + SECOND)
        here.departures.cancel("vm")
        until(lambda: here.guests["vm"].state is GuestState.RUNNING, here)
        agree(here, there)
        what = stopped(here, "vm")
        identity, blob = msgpack.unpackb(what.state.context)
    here.departures.cancel("vm")
    ends_well(here, expected)


def test_an_agent_that_keeps_a_ledger_has_one_context_absorbed_once(on_its_way):
    here, there = on_its_way
    there.board.agents.agents[AGENT].keeps_ledger = True
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    _, blob = msgpack.unpackb(what.state.context)
    gctx = there.hypervisor.launched("vm").gctx
    with pytest.raises(LaunchRefused, match="this context was taken in already"):
        there.tasks.at_once(order_agent(there.hypervisor, "absorb", "vm", gctx, blob))


def test_an_agent_vouches_for_nobody_before_it_has_met_a_peer_and_for_no_guest_of_another(ready):
    here, there = ready
    gctx = here.hypervisor.launched("vm").gctx
    for who, context_of, why in ((here, gctx, "no peer was met"), (there, gctx, "no peer was met")):
        with pytest.raises(LaunchRefused, match=why):
            who.tasks.at_once(order_agent(who.hypervisor, "vouch", "vm", context_of, bytes(32)))
    peer = certified(there, there.tasks.at_once(greet(there.hypervisor)))
    here.tasks.at_once(order_agent(here.hypervisor, "meet", "vm", peer, False))
    with pytest.raises(LaunchRefused, match="EXPORT: INVALID_PARAM"):
        here.tasks.at_once(order_agent(here.hypervisor, "vouch", "vm", 0, bytes(32)))
