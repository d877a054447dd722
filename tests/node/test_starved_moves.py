"""Moves of protected guests on hosts that run out of memory: refused, with the guest in one place and nothing left."""

import pytest
from test_agent_transfer import UNITS, agree, hosts, started
from test_agent_transfer import certified as of_agent
from test_departures_and_arrivals import leftovers, stopped, until
from test_sealed_transfer import certificates, kept, laid, opened, sealed
from toy_guests import SECOND, run, start

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.migration_refusal import MigrationRefusal
from psp.system_bus import PAGE_BYTES

SEV, ES, SNP = Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
MOST = 40
"""Pages that are more than any of these moves takes besides the guest's memory."""


def launched(host, generation):
    if generation is SNP:
        return started(host, "vm", "ledger", vcpus=2, units=UNITS)
    return start(host, "vm", generation, "ledger", vcpus=2, units=UNITS)


def all_there_is(host):
    """What would be left behind: memory taken, frames that are free and say something, keys, and firmware's guests."""
    board, frames = host.board, host.hypervisor.frames
    keys = [asid for asid in range(1, host.spec.product.max_asid + 1) if board.controller.has_key(asid)]
    says = [
        page for run in frames.free_runs() for spa, length in board.dram.resident_runs(*run)
        for page in range(spa, spa + length, PAGE_BYTES) if any(board.dram.read(page, PAGE_BYTES))
    ]  # fmt: skip
    return frames.used_bytes, says, keys, sorted(board.psp.legacy.guests)


def starve(host, pages, apart=1):
    """Take all of a host's free memory but so many pages, each so many behind the one before; what was taken."""
    frames = host.hypervisor.frames
    last = frames.allocate_run(2 * MOST * PAGE_BYTES, PAGE_BYTES)
    free = range(last, last + pages * apart * PAGE_BYTES, apart * PAGE_BYTES)
    taken = [(spa, PAGE_BYTES) for spa in range(last, last + 2 * MOST * PAGE_BYTES, PAGE_BYTES) if spa not in free]
    for piece in frames.free_runs():
        assert frames.allocate_run(piece[1], PAGE_BYTES) == piece[0]
        taken.append(piece)
    assert frames.free_bytes == 0
    frames.release([(spa, PAGE_BYTES) for spa in free])
    return taken


def tried(here, there, poor, pages, *, before=False, apart=1):
    """A move while one of the hosts has so many free pages, from its first command on or once all have agreed.

    Why it did not come about, None where it did.
    """
    guest, taken, told = here.guests["vm"], [], []

    def refused(wrong):
        here.departures.cancel("vm")
        there.arrivals.abandon("vm")
        run(there, there.now_ns + SECOND)
        run(here, here.now_ns + SECOND)
        poor.hypervisor.frames.release(taken)
        return wrong

    assert not isinstance(here.departures.begin("vm", lambda _: None), MigrationRefusal)
    shown = certificates(there, guest.spec)
    if before:
        taken += starve(poor, pages, apart)
    wrong, session = sealed(here, "vm", of_agent(there, shown) if guest.spec.migration_agent else shown)
    if wrong is not None:
        return refused(wrong)
    assert opened(there, "vm", of_agent(here, session) if guest.spec.migration_agent else session) is None
    if not before:
        taken += starve(poor, pages, apart)
    here.departures.stop("vm", 0, told.append, told.append)
    until(lambda: told, here)
    (what,) = told
    if isinstance(what, str):
        return refused(what)
    there.clock.env.run(until=max(there.now_ns + 1, here.now_ns))
    wrong = laid(there, "vm", what)
    if wrong is not None:
        return refused(wrong)
    there.arrivals.start("vm")
    here.departures.finish("vm")
    run(here, here.now_ns + SECOND)
    poor.hypervisor.frames.release(taken)
    return None


@pytest.fixture(scope="module")
def expected():
    """What each guest ends with that stays."""
    ends = {}
    for generation in (SEV, ES, SNP):
        stayed, _ = hosts()
        guest = launched(stayed, generation)
        run(stayed)
        ends[generation] = kept(stayed, guest)
    return ends


@pytest.mark.parametrize(
    ("generation", "which", "before", "least"),
    [(SEV, 0, True, 7), (ES, 0, True, 7), (SNP, 0, False, 5), (ES, 1, False, 2), (SNP, 1, False, 7)],
    ids=["source of SEV", "source of SEV-ES", "source with agent", "target of SEV-ES", "target with agent"],
)
def test_however_few_pages_a_host_has_left_a_move_comes_about_or_is_refused_and_leaves_nothing(
    generation, which, before, least, expected
):
    """An agent's takes a page to swap through and four of Metadata; at the target a context and a save area besides."""
    here, there = pair = hosts()
    poor = pair[which]
    guest = launched(here, generation)
    run(here, 2_000_000)
    # So much that three Metadata pages have one above them.
    place = guest.spec.memory.placement("vm", 0, 0)
    written = op.Write(place.base_gpa + (1 << 20), bytes(80 * PAGE_BYTES))
    assert here.board.execute_guest(here.board.vmcb("vm", 0), (written,)) == (None,)
    empty, used = all_there_is(there), []
    wanted = f"{7 * PAGE_BYTES} bytes wanted in a row" if before else f"{PAGE_BYTES} bytes wanted"
    for pages in range(MOST):
        wrong = tried(here, there, poor, pages, before=before)
        if wrong is None:
            break
        assert wrong.startswith(f"memory: {wanted}, ")
        assert guest.state is GuestState.RUNNING
        assert "vm" not in there.guests
        assert all_there_is(there) == empty
        used.append(here.hypervisor.frames.used_bytes)
    assert pages == least
    assert len(set(used)) == 1
    assert all_there_is(here)[1:] == ([], empty[2], [])
    assert (guest.state, leftovers(here)[2]) == (GuestState.DEPARTED, {"vm": GuestState.DEPARTED})
    came = there.guests["vm"]
    run(there, there.now_ns + 100 * SECOND)
    assert (came.faults, kept(there, came)) == (0, expected[generation])


@pytest.mark.parametrize("generation", [SEV, ES])
def test_firmware_is_given_no_frames_that_do_not_lie_in_a_row(generation):
    here, there = hosts()
    guest = launched(here, generation)
    run(here, 2_000_000)
    wrong = tried(here, there, here, MOST, before=True, apart=2)
    assert wrong == f"memory: {7 * PAGE_BYTES} bytes wanted in a row, {MOST * PAGE_BYTES} free"
    assert guest.state is GuestState.RUNNING
    assert tried(here, there, here, MOST, before=True) is None


def test_a_guest_that_is_out_comes_in_again_where_nothing_is_free_any_more(expected):
    """Else a host that ran out of memory meanwhile would lose it."""
    here, there = hosts()
    guest = launched(here, SNP)
    run(here, 2_000_000)
    used = here.hypervisor.frames.used_bytes
    agree(here, there, "vm")
    stopped(here, "vm")
    taken = starve(here, 0)
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    run(here, here.now_ns + 100 * SECOND)
    assert (guest.state, guest.faults, kept(here, guest)) == (GuestState.RUNNING, 0, expected[SNP])
    here.hypervisor.frames.release(taken)
    assert here.hypervisor.frames.used_bytes == used
