"""SNP guests go from host to host by migration agents: whole, between agents that believe each other, and once."""

import dataclasses

import msgpack
import pytest
from overheard_hypervisors import overheard
from test_departures_and_arrivals import UNITS, leftovers, stopped, until
from test_sealed_transfer import certificates, kept, laid, opened, sealed
from toy_guests import COSTS, IMAGE, RECORD, SECOND, guest_spec, ledger, look, make_host, run

from cluster.agent_certificates import agent_certified
from node import agent_transfer
from node import operations as op
from node.agent_core import AGENT_IMAGE
from node.agent_transfer import AGENT, greet, order_agent
from node.firmware_image import firmware_image
from node.generation import Generation
from node.guest import GuestState
from node.host import Host, HostSpec
from node.hypervisor_port import LaunchRefused
from node.launched_vm import DOORBELLS
from node.migration_agent import MARK, Hello
from node.migration_refusal import MigrationRefusal
from node.packing import packed
from node.page_swaps import with_metadata
from node.platform import Platform
from node.product import PRODUCTS
from node.vmsa import SevFeature
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.page_swap import PageSwap
from psp.policy import SnpPolicy
from psp.status import PspError, Status
from psp.swap_buffers import SnpPageMdInit
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

SNP = Generation.SEV_SNP
WITH_AGENT = Platform(migration_agent=True)
QUICK = dict(COSTS) | {"psp.guest_request_ns": 100_000}
"""So that agents do not take longer to meet than the guest to do its work."""


def hosts(product="Milan"):
    names = ("here", "there")
    return [make_host(product=product, name=name, platform=WITH_AGENT, costs=QUICK) for name in names]


def started(host, name, *args, **kwargs):
    spec = dataclasses.replace(guest_spec(name, SNP, *args, **kwargs), migration_agent=True)
    host.launch(spec, lambda _: None, running=True)
    guest = host.guests[name]
    assert guest.state is GuestState.RUNNING, guest.reason
    return guest


def certified(host, hello):
    return agent_certified(hello, host.board.psp)


def agree(source, target, name):
    guest = source.guests[name]
    assert not isinstance(source.departures.begin(name, lambda _: None), MigrationRefusal)
    wrong, hello = sealed(source, name, certified(target, certificates(target, guest.spec)))
    assert wrong is None
    assert opened(target, name, certified(source, hello)) is None


def move(source, target, name):
    agree(source, target, name)
    what = stopped(source, name)
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    assert laid(target, name, what) is None
    target.arrivals.start(name)
    source.departures.finish(name)
    run(source, source.now_ns + SECOND)
    return what


@pytest.fixture(scope="module")
def expected():
    """What a guest that stays ends with."""
    stayed = make_host(platform=WITH_AGENT)
    guest = started(stayed, "vm", "ledger", vcpus=2, units=UNITS)
    run(stayed)
    return kept(stayed, guest)


@pytest.fixture
def on_its_way():
    """A guest whose two agents believe each other, in the middle of its work."""
    here, there = hosts()
    started(here, "vm", "ledger", vcpus=2, units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    assert all(0 < one.registers.r13 < UNITS for one in here.guests["vm"].vcpus)
    return here, there


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_guest_that_moves_there_and_back_ends_as_one_that_stayed(product, expected):
    here, there = hosts(product)
    empty = leftovers(there)[0]
    started(here, "vm", "ledger", vcpus=2, units=UNITS)
    run(here, 2_000_000)
    for _ in range(2):
        run(here, here.now_ns + 300_000)
        move(here, there, "vm")
        here, there = there, here
    assert leftovers(there)[0] == empty
    guest = here.guests["vm"]
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


def test_every_private_page_comes_validated_with_its_vmsa_and_no_key_is_left_at_the_source(on_its_way):
    here, there = on_its_way
    gctx = here.hypervisor.launched("vm").gctx
    asid, before = here.guests["vm"].asid, here.board.psp.snp.guests.pages.read(gctx)
    valid = validated(here, "vm")
    what = stopped(here, "vm")
    assert before.state == SnpGuestState.RUNNING
    assert not here.board.controller.has_key(asid)
    with pytest.raises(PspError):
        here.board.psp.snp.guests.in_state(gctx, SnpCommand.GUEST_STATUS)
    assert laid(there, "vm", what) is None
    assert validated(there, "vm") == valid > 0.9 * here.guests["vm"].spec.memory_bytes
    after = there.board.psp.snp.guests.pages.read(there.hypervisor.launched("vm").gctx)
    assert after.memory_key != before.memory_key
    assert (after.digest, after.vmpcks, after.oek) == (before.digest, before.vmpcks, before.oek)
    assert after.report_id_ma == agent_of(there).report_id


def validated(host, name):
    """Bytes of memory that the guest may use."""
    rmp, record = host.board.rmp, host.hypervisor.launched(name)
    return sum(
        PAGE_BYTES for _, spa, length in record.ram for page in range(spa, spa + length, PAGE_BYTES)
        if rmp.entry(page).validated
    )


def agent_of(host):
    return host.board.psp.snp.guests.pages.read(host.hypervisor.launched(AGENT).gctx)


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_guest_that_stays_after_all_goes_on_as_if_nothing_had_been(on_its_way, expected, stands_still):
    here, there = on_its_way
    if stands_still:
        stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    guest = here.guests["vm"]
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


def changed(packets, number, data):
    name, header, _ = packets[number]
    return (*packets[:number], (name, header, data), *packets[number + 1 :])


SPOILT = {
    "a page": lambda state: {"packets": changed(state.packets, 0, bytes(PAGE_BYTES))},
    "two pages exchanged": lambda state: {
        "packets": changed(changed(state.packets, 0, state.packets[1][2]), 1, state.packets[0][2])
    },
    "a page at another address": lambda state: {
        "packets": ((state.packets[0][0] + PAGE_BYTES, *state.packets[0][1:]), *state.packets[2:])
    },
    "a save area": lambda state: {"sealed_areas": changed(state.sealed_areas, 0, bytes(PAGE_BYTES))},
    "two save areas exchanged": lambda state: {
        "sealed_areas": changed(
            changed(state.sealed_areas, 0, state.sealed_areas[1][2]), 1, state.sealed_areas[0][2]
        )
    },
    "a Metadata page": lambda state: {"metadata": (bytes(PAGE_BYTES), *state.metadata[1:])},
    "the root's Metadata page": lambda state: {"metadata": (*state.metadata[:-1], bytes(PAGE_BYTES))},
    "no Metadata page": lambda state: {"metadata": state.metadata[1:]},
    "a row that is longer": lambda state: {
        "rows": ((state.rows[0][0], state.rows[0][1] - 1, state.rows[0][2]), *state.rows[1:])
    },
    "the context": lambda state: {"context": state.context[:-1] + bytes([state.context[-1] ^ 1])},
}


def test_what_was_changed_on_the_way_is_refused_and_the_guest_is_taken_back(on_its_way, expected):
    here, there = on_its_way
    what, guest = stopped(here, "vm"), here.guests["vm"]
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    empty = leftovers(there)[0]
    for name, spoil in SPOILT.items():
        hello = certificates(there, guest.spec)
        assert Hello.parse(hello).public_key
        assert opened(there, "vm", certified(here, greeting(here))) is None
        assert laid(there, "vm", what, what.state._replace(**spoil(what.state))) is not None, name
        there.arrivals.abandon("vm")
        run(there, there.now_ns + SECOND)
        assert leftovers(there)[0] == empty, name
    here.departures.cancel("vm")
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


@pytest.mark.parametrize("refused", ["PSmash", "RmpUpdate"])
def test_a_guest_whose_block_somebody_smashed_stays_and_leaves_no_frame_to_firmware(on_its_way, expected, refused):
    """The refusal comes as its pages are smashed where it holds bytes, and else as they are put to Pre-Guest."""
    here, there = on_its_way
    there.arrivals.abandon("vm")
    guest, record, rmp = here.guests["vm"], here.hypervisor.launched("vm"), here.board.rmp
    blocks = [at for _, spa, length in record.ram for at in range(spa, spa + length, LARGE_PAGE_BYTES)]
    holds = {at: any(here.board.dram.resident_runs(at, LARGE_PAGE_BYTES)) for at in blocks if rmp.entry(at).large}
    block = next(at for at in holds if holds[at] == (refused == "PSmash"))
    assert here.board.execute_host((op.PSmash(block),)) == (0,)
    used, told = here.hypervisor.frames.used_bytes, []
    here.departures.stop("vm", 0, told.append, told.append)
    until(lambda: told, here)
    assert str(told[0]).startswith(f"{refused}: ")
    assert here.hypervisor.frames.used_bytes == used
    free = [page for spa, length in here.hypervisor.frames.free_runs() for page in range(spa, spa + length, PAGE_BYTES)]
    assert free
    assert not [page for page in free if rmp.entry(page).assigned]
    here.departures.cancel("vm")
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


def greeting(host):
    """What a host's agent shows others."""
    return host.tasks.at_once(greet(host.hypervisor))


@pytest.mark.parametrize("then", ["stays", "is destroyed"])
def test_a_guest_whose_agent_has_forgotten_it_when_all_is_out_comes_back_in(on_its_way, expected, then):
    here, there = on_its_way
    there.arrivals.abandon("vm")
    guest, refused = here.guests["vm"], []
    del here.board.agents.agents[AGENT]
    here.departures.stop("vm", 0, lambda _: None, refused.append)
    until(lambda: refused, here)
    if then == "stays":
        here.departures.cancel("vm")
        run(here, here.now_ns + 100 * SECOND)
        assert (guest.faults, kept(here, guest)) == (0, expected)
    else:
        here.departures.forget("vm")
        here.destroy("vm")
        run(here, here.now_ns + SECOND)
        assert guest.state is GuestState.DESTROYED


def test_a_guest_whose_context_went_with_an_agent_is_lost_and_says_so(on_its_way):
    here, there = on_its_way
    there.arrivals.abandon("vm")
    stopped(here, "vm")
    del here.board.agents.agents[AGENT]
    here.departures.cancel("vm")
    run(here, here.now_ns + SECOND)
    guest = here.guests["vm"]
    assert (guest.state, guest.reason) == (GuestState.DESTROYED, "migration agent: nothing of this guest is kept")
    assert not here.board.controller.has_key(guest.asid)


@pytest.mark.parametrize(
    ("then", "order", "refusal"),
    [
        ("is called off before it stops", "export", "no peer was met for this guest"),
        ("is taken back", "take back", "nothing of this guest is kept"),
        ("lives elsewhere", "take back", "nothing of this guest is kept"),
        ("lives elsewhere", "export", "no peer was met for this guest"),
    ],
)
def test_when_a_move_is_over_its_agent_has_nothing_of_the_guest_to_give_again(on_its_way, then, order, refusal):
    """Or a hypervisor could have a second one of it."""
    here, there = on_its_way
    gctx = here.hypervisor.launched("vm").gctx
    if then == "lives elsewhere":
        what = stopped(here, "vm")
        assert laid(there, "vm", what) is None
        there.arrivals.start("vm")
        here.departures.finish("vm")
    else:
        if then == "is taken back":
            stopped(here, "vm")
        here.departures.cancel("vm")
        there.arrivals.abandon("vm")
    run(here, here.now_ns + SECOND)
    with pytest.raises(LaunchRefused, match=f"migration agent: {refusal}"):
        here.tasks.at_once(order_agent(here.hypervisor, order, "vm", gctx))


def test_a_guest_that_was_taken_back_and_whose_next_move_is_called_off_at_once_goes_on(on_its_way, expected):
    here, there = on_its_way
    stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    until(lambda: here.guests["vm"].state is GuestState.RUNNING, here)
    run(there, max(there.now_ns, here.now_ns) + SECOND)
    agree(here, there, "vm")
    here.departures.cancel("vm")
    guest = here.guests["vm"]
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


def test_a_guest_that_came_whole_and_is_not_started_leaves_nothing(on_its_way, expected):
    here, there = on_its_way
    what, guest = stopped(here, "vm"), here.guests["vm"]
    assert laid(there, "vm", what) is None
    asid = there.hypervisor.launched("vm").asid
    assert there.board.controller.has_key(asid)
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    assert ("vm" in there.guests, there.board.controller.has_key(asid)) == (False, False)
    here.departures.cancel("vm")
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.faults, kept(here, guest)) == (0, expected)


def test_an_old_page_of_a_row_that_was_spent_and_one_that_somebody_wrote_do_not_go_as_a_row(on_its_way):
    here, there = on_its_way
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    record, snp = there.hypervisor.launched("vm"), there.board.psp.snp
    gpa, spa = what.state.packets[0][0], record.page_spa(what.state.packets[0][0])
    held = RmpEntry(assigned=True, immutable=True, gpa=gpa, asid=record.asid)
    metadata = there.hypervisor.frames.allocate(PAGE_BYTES, PAGE_BYTES)[0][0]
    order = SnpPageMdInit(record.gctx, metadata).pack()
    *codes, begun = there.board.execute_host((
        op.RmpUpdate(spa, PAGE_BYTES, held),
        op.RmpUpdate(metadata, PAGE_BYTES, RmpEntry(assigned=True, immutable=True)),
        op.PspCommand(SnpCommand.PAGE_MD_INIT, record.small[0], order),
    ))  # fmt: skip
    assert (codes, begun.status) == ([0, 0], 0)
    with pytest.raises(PspError) as written:
        snp.swap.row_out(record.gctx, spa, 1, metadata, large=False)
    assert written.value.status == Status.INVALID_PAGE_STATE
    first, pages, large = what.state.rows[-1]
    at, size = record.spa_of(first), LARGE_PAGE_BYTES if large else PAGE_BYTES
    held = RmpEntry(assigned=True, immutable=True, large=large, gpa=first, asid=record.asid)
    assert there.board.execute_host((op.RmpUpdate(at, pages * size, held),)) == (0,)
    assert snp.swap.row_out(record.gctx, at, pages, metadata, large=large) == pages
    assert there.board.execute_host((op.RmpUpdate(at, pages * size, held),)) == (0,)
    assert snp.swap.row_in(record.gctx, at, metadata) == pages
    assert there.board.execute_host((op.RmpUpdate(at, pages * size, held),)) == (0,)
    with pytest.raises(PspError) as spent:
        snp.swap.row_in(record.gctx, at, metadata)
    assert spent.value.status == Status.INVALID_MDATA_ENTRY


def test_a_row_that_is_seen_to_be_one_goes_as_its_pages_one_by_one(monkeypatch):
    moved = []
    for one_by_one in (False, True):
        if one_by_one:
            monkeypatch.setattr(PageSwap, "_is_one", lambda *_: False)
        here, there = hosts()
        started(here, "vm", "ledger", units=UNITS)
        run(here, 2_000_000)
        what = move(here, there, "vm")
        record, rmp = there.hypervisor.launched("vm"), there.board.rmp
        entries = [rmp.entry(page) for _, spa, length in record.ram for page in range(spa, spa + length, PAGE_BYTES)]
        moved.append((what.state, entries))
    assert moved[0] == moved[1]
    assert len(moved[0][0].rows) > 1


@pytest.mark.parametrize(("pages", "levels"), [(1, [1]), (64, [1]), (65, [2, 1]), (4096, [64, 1]), (4097, [65, 2, 1])])
def test_with_pages_go_the_metadata_pages_of_all_levels(pages, levels):
    assert with_metadata(pages) == pages + sum(levels)
    assert with_metadata(0) == 0


def test_as_many_metadata_pages_go_as_a_move_is_charged_for(on_its_way):
    here, _ = on_its_way
    place = here.guests["vm"].spec.memory.placement("vm", 0, 0)
    written = op.Write(place.base_gpa + (1 << 20), bytes(80 * PAGE_BYTES))
    assert here.board.execute_guest(here.board.vmcb("vm", 0), (written,)) == (None,)
    state = stopped(here, "vm").state
    entries = len(state.packets) + len(state.sealed_areas) + len(state.rows)
    assert entries > 64
    assert entries + len(state.metadata) == with_metadata(entries)


def test_a_context_that_was_changed_cut_or_meant_for_another_is_opened_by_no_agent(on_its_way):
    here, there = on_its_way
    gctx, sealed_for_peer = there.hypervisor.launched("vm").gctx, stopped(here, "vm").state.context
    flips = [
        sealed_for_peer[:at] + bytes([sealed_for_peer[at] ^ 1]) + sealed_for_peer[at + 1 :]
        for at in (0, 31, 32, 48, len(sealed_for_peer) // 2, len(sealed_for_peer) - 16, len(sealed_for_peer) - 1)
    ]
    for other in (*flips, sealed_for_peer[:-1], sealed_for_peer + b"\0", sealed_for_peer[:32], b""):
        with pytest.raises(LaunchRefused, match="not sealed by the peer for this guest"):
            there.tasks.at_once(order_agent(there.hypervisor, "import", "vm", gctx, other))
    peer = certified(here, greeting(here))
    there.tasks.at_once(order_agent(there.hypervisor, "meet", "other", peer, True))
    with pytest.raises(LaunchRefused, match="not sealed by the peer for this guest"):
        there.tasks.at_once(order_agent(there.hypervisor, "import", "other", gctx, sealed_for_peer))


def test_an_agent_that_begins_anew_opens_nothing_that_was_sealed_for_it_before(on_its_way):
    """Its ledger would be empty: whoever runs the host has it begin anew when he likes."""
    here, there = on_its_way
    what, guest, theirs = stopped(here, "vm"), here.guests["vm"], certified(here, greeting(here))
    assert laid(there, "vm", what) is None
    there.arrivals.abandon("vm")
    there.crash()
    run(there, there.now_ns + SECOND)
    assert Hello.parse(certificates(there, guest.spec)).public_key
    assert opened(there, "vm", theirs) is None
    assert laid(there, "vm", what) == "migration agent: what came is not sealed by the peer for this guest"


def test_an_agent_gives_nothing_to_a_peer_that_no_report_vouches_for():
    here, there = hosts()
    guest = started(here, "vm", "rest")
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    hello = certificates(there, guest.spec)
    genuine = Hello.parse(certified(there, hello))
    others = dataclasses.replace(genuine, public_key=bytes(31) + b"\1"), dataclasses.replace(genuine, certificates=())
    for peer in (b"", hello, *[one.pack() for one in others]):
        assert sealed(here, "vm", peer) == (MigrationRefusal.AGENT_REFUSES, b"")
    assert guest.state is GuestState.RUNNING


def test_an_agent_of_another_image_is_given_nothing(monkeypatch):
    data = bytearray(AGENT_IMAGE.data)
    data[len(MARK)] ^= 1
    (here, _), image = hosts(), firmware_image(bytes(data), "another agent")
    monkeypatch.setattr(agent_transfer, "AGENT_IMAGE", image)
    there = hosts()[1]
    monkeypatch.undo()
    guest = started(here, "vm")
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certified(there, certificates(there, guest.spec))
    assert sealed(here, "vm", shown) == (MigrationRefusal.AGENT_REFUSES, b"")


def test_an_agent_that_keeps_a_ledger_takes_nothing_in_twice_and_nothing_back(on_its_way):
    here, there = on_its_way
    for host in (here, there):
        host.board.agents.agents[AGENT].keeps_ledger = True
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    gctx = there.hypervisor.launched("vm").gctx
    for host, order, more, why in (
        (there, "import", (what.state.context,), "this context was taken in already"),
        (here, "take back", (), "nothing of this guest is kept"),
    ):
        with pytest.raises(LaunchRefused, match=why):
            host.tasks.at_once(order_agent(host.hypervisor, order, "vm", gctx, *more))


def older(host):
    """A platform like a host's, whose firmware has a lower security version in one part."""
    tcb = host.board.psp.firmware.current.tcb
    return dataclasses.replace(WITH_AGENT, firmware_tcb=tcb - (1 << 48))


def test_where_a_vcpu_awaits_interrupts_the_next_hypervisor_knows():
    """Without its doorbell a guest with restricted injection is brought none any more, and is told nothing of that."""
    here, there = hosts()
    more = {"migration_agent": True, "sev_features": int(SevFeature.RESTRICTED_INJECTION)}
    here.launch(dataclasses.replace(guest_spec("vm", SNP, "ledger", vcpus=2, units=UNITS), **more), print, running=True)
    run(here, 2_000_000)
    here.hypervisor.launched("vm").doorbells[1] = here.guests["vm"].spec.memory.shared.gpa
    move(here, there, "vm")
    assert there.hypervisor.launched("vm").doorbells == {1: there.guests["vm"].spec.memory.shared.gpa}
    there.hypervisor.launched("vm").hear_of_vcpus(((DOORBELLS, 0x5008, 0),))
    assert set(there.hypervisor.launched("vm").doorbells) == {1}


def test_an_agent_sends_nothing_under_an_older_firmware_and_takes_a_guest_that_comes_from_one():
    here, other = hosts()
    there = make_host(name="there", platform=older(other), costs=QUICK)
    guest = started(here, "vm", "ledger", units=UNITS)
    run(here, 2_000_000)
    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certified(there, certificates(there, guest.spec))
    assert sealed(here, "vm", shown) == (MigrationRefusal.AGENT_REFUSES, b"")
    here.departures.cancel("vm")
    started(there, "old", "ledger", units=UNITS)
    run(there, 2_000_000)
    move(there, other, "old")
    # Nor is it sent back there by a hypervisor that has its agent meet nobody anew.
    gctx = other.hypervisor.launched("old").gctx
    for order, *more in (("export",), ("export live",), ("vouch", bytes(32))):
        with pytest.raises(LaunchRefused, match="no peer was met for this guest"):
            other.tasks.at_once(order_agent(other.hypervisor, order, "old", gctx, *more))
    run(other)
    assert other.guests["old"].vcpus[0].registers.r13 == UNITS


def test_a_guest_without_leave_and_a_host_without_agent_are_refused_before_the_guest_is_touched():
    here = make_host(platform=WITH_AGENT)
    here.launch(guest_spec("vm", SNP), lambda _: None, running=True)
    assert here.departures.begin("vm", lambda _: None) is MigrationRefusal.NEEDS_MIGRATION_AGENT
    told, spec = [], dataclasses.replace(guest_spec("other", SNP), migration_agent=True)
    bare = make_host()
    bare.arrivals.prepare(spec, lambda *what: told.append(what))
    until(lambda: told, bare)
    assert told == [(MigrationRefusal.NO_AGENT_THERE, b"")]
    bare.launch(dataclasses.replace(spec, name="third"), lambda _: None, running=True)
    assert bare.guests["third"].state is GuestState.REFUSED


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_guest_whose_clock_began_with_its_host_s_is_refused_before_it_is_touched(product):
    here = make_host(product=product, platform=WITH_AGENT)
    features = int(SevFeature.SECURE_TSC)
    spec = dataclasses.replace(
        guest_spec("vm", SNP, "ledger", units=UNITS), migration_agent=True, sev_features=features
    )
    here.launch(spec, lambda _: None, running=True)
    run(here, 1_000_000)
    guest = here.guests["vm"]
    assert guest.state is GuestState.RUNNING, guest.reason
    before = leftovers(here)
    assert here.departures.begin("vm", lambda _: None) is MigrationRefusal.SECURE_TSC
    assert (guest.dirty_log, leftovers(here)) == (None, before)
    run(here)
    assert (guest.vcpus[0].registers.r13, guest.faults) == (UNITS, 0)


def test_a_guest_that_runs_with_what_the_target_s_line_lacks_gets_no_place_there():
    spec = dataclasses.replace(guest_spec("vm", SNP), migration_agent=True, sev_features=int(SevFeature.SMT_PROTECTION))
    for product, wrong in (("Milan", MigrationRefusal.SEV_FEATURES), ("Genoa", None)):
        told, there = [], make_host(product=product, platform=WITH_AGENT)
        before = leftovers(there)[0]
        there.arrivals.prepare(spec, lambda *what, told=told: told.append(what[0]))
        until(lambda told=told: told, there)
        assert told == [wrong]
        assert (leftovers(there)[0] == before) is (wrong is not None)


def test_an_agent_itself_is_no_vm_that_anybody_could_move():
    here = make_host(platform=WITH_AGENT)
    assert AGENT in here.hypervisor._vms
    assert here.departures.begin(AGENT, lambda _: None) is MigrationRefusal.NO_SUCH_VM


def test_the_hypervisors_on_the_way_see_neither_a_page_nor_the_exported_context():
    """With hypervisors in processes of their own everything that they are shown crosses as bytes."""
    crossed, remote = overheard(IMAGE)

    def far(name):
        spec = HostSpec(name, PRODUCTS["Milan"], 4 << 30, 100, 7, 60 * SECOND, platform=WITH_AGENT)
        return Host(spec, {"ledger": ledger}, {"auto": IMAGE}, QUICK, hypervisor=remote)

    here, there = far("here"), far("there")
    guest = started(here, "vm", "ledger", units=UNITS)
    run(here, 2_000_000)
    agree(here, there, "vm")
    (gctx,) = [one for one in here.board.psp.snp.guests.pages.spas if context(here, one).policy & SnpPolicy.MIGRATE_MA]
    secrets = context(here, gctx)
    plain = look(here, guest, guest.spec.memory.placement("vm", 0, 0).base_gpa + PAGE_BYTES - RECORD // 2, RECORD)
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    run(there)
    arrived = there.guests["vm"]
    assert (arrived.vcpus[0].registers.r13, arrived.faults) == (UNITS, 0)
    assert any(plain)
    for secret in (plain, secrets.oek, secrets.vmpck(0), secrets.memory_key[:16]):
        assert not [one for one in crossed if secret in one]


def context(host, gctx):
    return host.board.psp.snp.guests.pages.read(gctx)


@pytest.mark.parametrize(
    "order",
    [b"", b"\xc1", packed(("hello", 1)), packed(("export", "vm", -1)), packed(("export", "vm", 1)),
     packed(("import", "vm", 1 << 63, b"")), packed(("take back", "vm", 0)), packed(("meet", "vm", b"\x90", False)),
     packed(("export live", "vm", 1)), packed(("absorb", "vm", 1, b"")), packed(("absorb", "vm", -1, b"")),
     packed(("vouch", "vm", 1, bytes(32))), packed(("vouch", "vm", 1, b"")), packed(("vouch", "vm", -1, bytes(32)))],
)  # fmt: skip
def test_an_agent_refuses_an_order_that_is_none_and_serves_the_next(agents_host, order):
    record = agents_host.hypervisor.launched(AGENT)
    call = op.AgentCall(AGENT, order, record.gctx, record.small[0], *record.request_pages)
    (answer,) = agents_host.board.execute_host((call,))
    assert msgpack.unpackb(answer)[0] == "refused"
    assert Hello.parse(greeting(agents_host)).public_key


@pytest.fixture(scope="module")
def agents_host():
    return make_host(platform=WITH_AGENT)
