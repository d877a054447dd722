"""A VM leaves one host whole and comes to another whole, or not at all."""

import dataclasses
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_guests import (
    DEMANDS,
    GENERATIONS,
    MIB,
    MIX,
    SECOND,
    Script,
    final_state,
    guest_spec,
    look,
    make_host,
    run,
    script,
    start,
)

from node.dirty_rates import LOOK_NS, DirtyRates
from node.generation import Generation
from node.guest import GuestState
from node.migration_frames import NO_SESSION, PageDigests, Stream, frames_of, page_digests
from node.migration_loads import StreamRates
from node.migration_refusal import REFUSALS, MigrationRefusal
from node.operations import BLOCK_BYTES, BlockWrite, Compute, Read, Shutdown, Write
from node.platform import HostMode, Platform
from psp.system_bus import PAGE_BYTES

UNITS = 30
PLAIN = Generation.PLAIN


def until(condition, *hosts):
    while not condition():
        first = min(hosts, key=lambda host: host.clock.env.peek())
        first.clock.env.step()


def stopped(source, name, since_ns=0):
    told = []
    source.departures.stop(name, since_ns, told.append)
    until(lambda: told, source)
    return told[0]


def place(target, spec):
    told = []
    target.arrivals.prepare(spec, lambda wrong, _: told.append(wrong))
    until(lambda: told, target)
    return told[0]


def arrive(target, name, frames, digests, books):
    told = []
    target.arrivals.complete(name, frames, digests, books, told.append)
    until(lambda: told, target)
    if told[0] is None:
        target.arrivals.start(name)
    return told[0]


def move(source, target, name):
    """Everything a migration does, by hand; ends with the VM at the target."""
    guest = source.guests[name]
    pools = source.departures.begin(name, lambda _: None)
    assert not isinstance(pools, MigrationRefusal)
    assert place(target, guest.spec) is None
    what = stopped(source, name)
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    assert arrive(target, name, frames_of(what.state), page_digests(what.state.pages), what.books) is None
    source.departures.finish(name)
    run(source, source.now_ns + SECOND)
    return what


def uninterrupted(host):
    guest = start(host, "vm", PLAIN, "ledger", vcpus=2, units=UNITS)
    run(host)
    return final_state(host, guest)


def leftovers(host):
    return (host.hypervisor.frames.used_bytes, host.board.dram.resident_bytes, host.guests and
            {name: one.state for name, one in host.guests.items()})


def standing_between():
    """A ledger that stands still at its source, halfway through its work, with its place at a target."""
    here, there = make_host(), make_host()
    guest = start(here, "vm", PLAIN, "ledger", units=UNITS)
    run(here, 5_000_000)
    here.departures.begin("vm", lambda _: None)
    assert place(there, guest.spec) is None
    what = stopped(here, "vm")
    return here, there, guest, what


@settings(max_examples=15, deadline=None)
@given(moves=st.lists(st.integers(1, 20_000_000), min_size=1, max_size=4))
def test_a_vm_that_moves_in_the_middle_of_its_work_ends_as_one_that_stayed(moves):
    stayed = make_host()
    expected = uninterrupted(stayed)
    here, there = make_host(), make_host()
    start(here, "vm", PLAIN, "ledger", vcpus=2, units=UNITS)
    for at in moves:
        run(here, here.now_ns + at)
        here.clock.env.run(until=here.now_ns + 1)
        if here.guests["vm"].state is not GuestState.RUNNING:
            break
        move(here, there, "vm")
        here, there = there, here
    guest = here.guests["vm"]
    run(here, here.now_ns + 100 * SECOND)
    assert final_state(here, guest) == expected
    assert guest.faults == 0


def test_an_sme_guest_moves_between_hosts_whose_keys_differ():
    platform = Platform(mode=HostMode.SME)
    here, there = (make_host(platform=platform, name=name) for name in ("here", "there"))
    start(here, "vm", Generation.SME, "ledger", vcpus=2, units=UNITS)
    run(here, 5_000_000)
    what = move(here, there, "vm")
    gpa, data = what.state.pages[-1]
    ((at, *_),) = there.board.vmcb("vm", 0).nested.translate(gpa, len(data))
    assert there.board.dram.read(at, len(data)) != data
    guest = there.guests["vm"]
    run(there, there.now_ns + 100 * SECOND)
    assert final_state(there, guest) == uninterrupted(make_host())
    assert guest.faults == 0


def test_the_source_gives_everything_back_and_the_target_holds_the_same_pages():
    here, there = make_host(), make_host()
    empty = leftovers(make_host())
    guest = start(here, "vm", PLAIN, "ledger", units=UNITS)
    run(here, 5_000_000)
    before = here.guests["vm"].operations
    what = move(here, there, "vm")
    assert guest.state is GuestState.DEPARTED
    assert leftovers(here)[:2] == empty[:2]
    arrived = there.guests["vm"]
    assert arrived.operations >= before > 0
    pages = sum(len(data) for _, data in what.state.pages) // PAGE_BYTES
    assert there.arrivals.pages_checked == pages > 0
    gpa, data = what.state.pages[-1]
    fresh = make_host()
    assert place(fresh, guest.spec) is None
    assert arrive(fresh, "vm", frames_of(what.state), page_digests(what.state.pages), what.books) is None
    assert look(fresh, fresh.guests["vm"], gpa, len(data)) == data


def test_a_byte_changed_on_the_wire_is_caught_and_the_vm_goes_on_at_the_source():
    here, there, guest, what = standing_between()
    frames = list(frames_of(what.state))
    for number, frame in enumerate(frames):
        spoiled = bytearray(frame)
        spoiled[len(frame) // 2] ^= 1
        wrong = arrive(there, "vm", [*frames[:number], bytes(spoiled), *frames[number + 1 :]], b"", what.books)
        assert wrong.startswith(f"frame {number}: ")
    there.arrivals.abandon("vm")
    run(there, there.now_ns + SECOND)
    assert leftovers(there) == leftovers(make_host())
    here.departures.cancel("vm")
    run(here)
    assert guest.state is GuestState.RUNNING
    assert guest.vcpus[0].registers.r13 == UNITS


def test_bytes_changed_with_their_checksum_are_caught_by_the_comparison_of_pages():
    _, there, guest, what = standing_between()
    gpa, data = what.state.pages[0]
    forged = what.state._replace(pages=((gpa, bytes([data[0] ^ 1]) + data[1:]), *what.state.pages[1:]))
    wrong = arrive(there, "vm", frames_of(forged), page_digests(what.state.pages), what.books)
    assert wrong == f"page {gpa:#x}: expected the source's bytes, got others"
    assert there.guests["vm"].state is GuestState.ARRIVING
    # In one process no frames are made, and what is compared are the pages themselves.
    near = make_host()
    assert place(near, guest.spec) is None
    assert arrive(near, "vm", Stream(forged, NO_SESSION), PageDigests(what.state.pages), what.books) == wrong


@pytest.mark.parametrize("generation", [one for one in GENERATIONS if one in REFUSALS])
def test_encrypted_vms_refuse_with_a_typed_reason_and_go_on(generation):
    host = make_host()
    guest = start(host, "vm", generation, "ledger", units=UNITS)
    assert host.departures.begin("vm", lambda _: None) is REFUSALS[generation]
    run(host)
    assert guest.vcpus[0].registers.r13 == UNITS


def test_a_vm_that_is_not_there_not_running_or_leaving_already_is_refused():
    host = make_host()
    start(host, "vm", PLAIN, "busy")
    assert host.departures.begin("other", lambda _: None) is MigrationRefusal.NO_SUCH_VM
    host.pause("vm")
    assert host.departures.begin("vm", lambda _: None) is MigrationRefusal.NOT_RUNNING
    host.resume("vm")
    assert not isinstance(host.departures.begin("vm", lambda _: None), MigrationRefusal)
    assert host.departures.begin("vm", lambda _: None) is MigrationRefusal.UNDER_WAY


def test_a_target_without_room_says_so_and_keeps_nothing():
    host = make_host(memory_bytes=1 << 30)
    before = leftovers(host)
    told = place(host, guest_spec("vm", PLAIN, memory_bytes=2 << 30))
    assert "memory" in told
    assert leftovers(host) == before


def test_a_place_that_is_given_back_before_it_is_ready_leaves_nothing():
    host = make_host()
    before = leftovers(host)
    told = []
    host.arrivals.prepare(guest_spec("vm", PLAIN), lambda wrong, _: told.append(wrong))
    host.arrivals.abandon("vm")
    run(host)
    assert told == [None]
    assert leftovers(host) == before
    assert place(host, guest_spec("vm", PLAIN)) is None


def test_a_place_that_is_wanted_again_before_it_is_given_back_is_kept_unless_that_is_over_too():
    host = make_host()
    before, told, numbers = leftovers(host), [], count()

    def wanted(*, given_back):
        number = next(numbers)
        host.arrivals.prepare(guest_spec("vm", Generation.SEV), lambda *_: told.append(number))
        if given_back:
            host.arrivals.abandon("vm")

    wanted(given_back=True)
    wanted(given_back=True)
    run(host)
    assert (told, leftovers(host)) == ([0], before)
    wanted(given_back=True)
    wanted(given_back=False)
    run(host)
    assert told == [0, 2, 3]
    assert host.guests["vm"].state is GuestState.ARRIVING


@pytest.mark.parametrize("then", ["comes", "does not come", "leaves", "stays", "is lost"])
def test_a_move_s_stream_takes_nothing_of_a_host_any_more_when_it_is_over(then):
    here, there = (make_host(name=name, streams=StreamRates(1e9)) for name in ("here", "there"))
    guest = start(here, "vm", PLAIN)
    run(here, 5_000_000)
    assert here.contention.running == 0
    here.departures.begin("vm", lambda _: None)
    assert place(there, guest.spec) is None
    assert (here.contention.running, there.contention.running) == (1, 1)
    if then in ("comes", "leaves"):
        what = stopped(here, "vm")
        told = []
        there.arrivals.complete("vm", frames_of(what.state), page_digests(what.state.pages), what.books, told.append)
        until(lambda: told, there)
        here.departures.finish("vm")
    elif then == "is lost":
        here.departures.forget("vm")
    else:
        here.departures.cancel("vm")
        there.arrivals.abandon("vm")
    host = there if then in ("comes", "does not come") else here
    assert host.contention.running == 0


@pytest.mark.parametrize("stops", [False, True])
def test_a_guest_that_was_slowed_down_goes_at_its_own_pace_again_when_it_stays(stops):
    host = make_host()
    guest = start(host, "vm", PLAIN, "busy")
    run(host, 5_000_000)

    def pace():
        first = guest.vcpus[0].registers.r13
        host.clock.env.run(until=host.now_ns + SECOND // 10)
        return guest.vcpus[0].registers.r13 - first

    alone = pace()
    host.departures.begin("vm", lambda _: None)
    host.departures.slow("vm", 0.9, 0.0)
    assert pace() < alone / 5
    if stops:
        stopped(host, "vm")
    host.departures.cancel("vm")
    assert pace() == pytest.approx(alone, rel=0.05)


@dataclass(frozen=True, slots=True)
class Writer(Script):
    """Computes for ever, and writes a set of pages all over meanwhile."""

    demands = tuple(
        dataclasses.replace(one, written_set_bytes=MIB, written_bytes_per_kilo_instruction=100.0) for one in DEMANDS[:1]
    )


def writes(_, __):
    """One unit of work a phase."""
    return Compute(0, 1_000_000)
    yield ()


@pytest.mark.parametrize("before_ns", [0, 1, 5000, LOOK_NS // 2])
def test_how_fast_a_guest_writes_is_measured_for_a_whole_interval_from_when_it_was_slowed_down(before_ns):
    host = make_host({"writer": lambda _, placement: Writer(placement, writes)})
    start(host, "vm", PLAIN, "writer")
    run(host, 5_000_000)
    stated = []
    ((_, alone),) = host.departures.begin("vm", lambda pools: stated.append((host.now_ns, pools)))
    departure = host.departures.under_way["vm"]
    departure.guest.changed()
    slowed_ns = departure.look_at_ns - before_ns
    host.clock.env.run(until=slowed_ns)
    host.departures.slow("vm", 0.5, 0.0)
    run(host, slowed_ns + 3 * LOOK_NS)
    ((stated_ns, ((_, slowed),)),) = stated
    assert stated_ns == slowed_ns + LOOK_NS
    assert slowed == pytest.approx(alone / 2, rel=0.1)


def test_what_was_written_in_no_time_says_nothing_of_how_fast():
    host = make_host({"writer": lambda _, placement: Writer(placement, writes)})
    guest = start(host, "vm", PLAIN, "writer")
    run(host, 5_000_000)
    host.contention.advance(host.now_ns)
    rates = DirtyRates(guest.vcpus, guest.software.demands, host.contention, host.now_ns)
    stated = rates.stated
    assert not rates.look(host.now_ns)
    assert rates.stated == stated


def test_a_stream_with_digests_of_fewer_pages_is_not_the_source_s():
    _, there, _, what = standing_between()
    digests = page_digests(what.state.pages)
    for some in (b"", digests[:-8], digests + digests[-8:]):
        wrong = arrive(there, "vm", frames_of(what.state), some, what.books)
        assert wrong == f"pages: expected {len(some) // 8}, got {len(digests) // 8}"


def off(_, __):
    """Power off after a while."""
    (found,) = yield (Read(0, 8),)
    return Shutdown(0) if found else None


def test_a_vm_that_powers_itself_off_before_it_could_be_stopped_does_not_travel():
    host = make_host({"off": script(off)})
    guest = start(host, "vm", PLAIN, "off")
    until(lambda: guest.vcpus[0].registers.rip == MIX and guest.software.running[0] is not None, host)
    host.departures.begin("vm", lambda _: None)
    assert stopped(host, "vm") is None
    assert guest.state is GuestState.STOPPED
    host.departures.cancel("vm")
    assert guest.state is GuestState.STOPPED


def test_one_that_is_called_off_while_it_is_read_goes_on_and_nothing_is_handed_over():
    host = make_host()
    guest = start(host, "vm", PLAIN, "ledger", units=UNITS)
    run(host, 5_000_000)
    host.departures.begin("vm", lambda _: None)
    told = []
    host.departures.stop("vm", 0, told.append)
    until(lambda: guest.state is GuestState.PAUSED and guest.when_parked is None, host)
    host.departures.cancel("vm")
    run(host)
    assert told == []
    assert guest.vcpus[0].registers.r13 == UNITS


def test_what_a_disk_holds_moves_with_its_vm():
    here, there = make_host(), make_host()
    start(here, "vm", PLAIN, "ledger", units=UNITS)
    run(here, 5_000_000)
    what = move(here, there, "vm")
    assert sum(len(data) for _, data in what.state.blocks) > 0
    run(there)
    assert there.guests["vm"].vcpus[0].registers.r13 == UNITS
    books = there.guests["vm"].disk
    assert (books.reads, books.writes) == (UNITS, UNITS)  # on both hosts


def test_a_file_behind_a_disk_is_opened_at_the_target_and_only_what_covers_it_travels(tmp_path):
    file = tmp_path / "disk.img"
    file.write_bytes(b"\x77" * 4 * BLOCK_BYTES)
    here, there = make_host(), make_host()
    spec = dataclasses.replace(guest_spec("vm", PLAIN), disk=str(file))
    here.launch(spec, lambda _: None, running=True)
    gpa = spec.memory.placement("vm", 0, 0).base_gpa
    wrote = (Write(gpa, b"\x11" * BLOCK_BYTES), BlockWrite(2, 1, gpa))
    assert here.board.execute_guest(here.board.vmcb("vm", 0), wrote) == (None, 0)
    what = move(here, there, "vm")
    assert what.state.blocks == ((2, b"\x11" * BLOCK_BYTES),)
    media = there.board.disk("vm").media
    assert media.read(0, 4) == b"\x77" * 2 * BLOCK_BYTES + b"\x11" * BLOCK_BYTES + b"\x77" * BLOCK_BYTES
    assert "vm" not in here.board.disk_files


def test_a_target_without_the_file_behind_a_disk_has_no_place_for_its_vm(tmp_path):
    spec = dataclasses.replace(guest_spec("vm", PLAIN), disk=str(tmp_path / "gone.img"))
    there = make_host()
    expected = "expected a file that can be read, got no such file or directory"
    assert place(there, spec) == f"disk {tmp_path}/gone.img: {expected}"
    assert "vm" not in there.guests
