"""Post-copy: a machine runs at its target while the rest of its memory comes, and waits for what it touches before.

Until all is there neither host has all of it. Where the link between them breaks, both keep what they have, and the
machine runs until it touches a page that has not come. When there is a way again, and somebody has the move go on, the
target says which pages it has, a bit for each, and the rest follows: QEMU's postcopy-paused and postcopy-recover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.hand_over import Event, Phase, Report
from cluster.migration import Migration, Outcome
from cluster.precopy import MOST_STALLED
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations


def drain(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """The rest comes from the source while the VM runs, from now on, or again."""
    assert one.precopy is not None
    assert one.guest is not None
    if one.source_lost or one.target_lost:
        lose(live, one, now_ns)
        return
    live.send(one.source, "ahead", (one.number, one.order.vm))
    if live.is_cut_off(one):
        pause(live, one, now_ns)
        return
    if one.broken_ns >= 0:
        one.paused_ns += now_ns - one.broken_ns
        one.broken_ns = -1
        one.wire_bytes += -(-one.precopy.memory_bytes // PAGE_BYTES // 8)
    missing = one.pulled_bytes - one.came_bytes
    zeros = one.unsent_zero_bytes * missing // max(1, one.pulled_bytes) // PAGE_BYTES * PAGE_BYTES
    rate = max(1.0, live.start_flow(one, missing, now_ns, zeros).rate)
    took_ns = max(1, round(missing * one.wire_ratio * 1e9 / rate))
    faults, stalled = one.precopy.stalled_while(missing, took_ns, one.guest.vcpus, one.touched_ns)
    stalled = min(MOST_STALLED, max(0.0, stalled + one.owed_ns / took_ns))
    one.owed_ns = 0.0
    one.pulling = now_ns, took_ns, stalled
    one.faults = round(one.faulted + faults)
    _set_pace(live, one, stalled, now_ns)


def pause(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """No page comes any more: whoever touches one that is missing stands still, and that is soon, or hardly ever."""
    assert one.precopy is not None
    if one.broken_ns >= 0:
        return
    one.broken_ns = now_ns
    one.pauses += 1
    if one.flow is not None:
        settle(live, one, now_ns)
    waits = one.precopy.missed_pages(one.pulled_bytes - one.came_bytes, one.touched_ns) >= 1.0
    _set_pace(live, one, MOST_STALLED if waits else 0.0, now_ns)


def go_on(live: LiveMigrations, one: Migration, _: Phase, now_ns: int) -> None:
    """There is a way again for a move that was broken off."""
    if one.phase is Phase.DRAINING and one.broken_ns >= 0:
        drain(live, one, now_ns)


def lose(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """A host of a machine that ran ahead of its memory crashed: it lived by both, and is lost."""
    if one.flow is not None:
        settle(live, one, now_ns)
    one.pulled_bytes = one.came_bytes
    one.outcome, one.reason = Outcome.LOST, f"it lived by {one.source} and {one.destination}"
    if one.source_lost:
        live.step(one, Event.LOST, now_ns)  # It may not move before its target has ended it.
    else:
        live.step(one, Event.CARRIED, now_ns)
        live.end(one, one.outcome, now_ns, one.reason)


def destroyed(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """The target has ended a machine whose memory is lost, or has not had it any more."""
    if live.step(one, Event.DESTROYED, now_ns):
        live.end(one, one.outcome, now_ns, one.reason)


def drained(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """All of its memory is there."""
    one.ran_ahead_ns = now_ns - one.resumed_ns
    live.step(one, Event.CARRIED, now_ns)
    _set_pace(live, one, 0.0, now_ns)
    live.end(one, Outcome.COMPLETED, now_ns, "")


def say_pace(live: LiveMigrations, one: Migration) -> None:
    """Tell the target how far the machine stands still, and when that was found."""
    live.send(one.destination, "stall", (one.number, one.order.vm, *one.pace, live.wants_answer(one)))


def paced(_: LiveMigrations, one: Migration, __: int, since: int) -> None:
    """The target has heard that."""
    if since == one.pace[0]:
        one.unanswered -= {Report.PACED}


def _set_pace(live: LiveMigrations, one: Migration, standing_still: float, now_ns: int) -> None:
    one.pace = max(now_ns, one.pace[0] + 1), standing_still
    if live.patience.again_after_ns:
        one.unanswered |= {Report.PACED}
    say_pace(live, one)


def settle(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """What came over a connection that is no more, and what the machine waited for meanwhile."""
    assert one.precopy is not None
    assert one.guest is not None
    assert one.flow is not None
    missing = one.pulled_bytes - one.came_bytes
    began_ns, took_ns, stalled = one.pulling
    pace, passed_ns = 1.0 - stalled, now_ns - began_ns
    faults = one.precopy.faults_while(missing, took_ns, pace, passed_ns, one.touched_ns)
    # Most pages are waited for at first; the share was that of the whole stream.
    one.owed_ns += faults * live.settings.fault_ns / one.guest.vcpus - stalled * passed_ns
    one.faulted += faults
    one.touched_ns += pace * passed_ns
    one.faults = round(one.faulted)
    moved, wire_ratio = live.fabric.cancel(one.flow, now_ns), one.wire_ratio
    one.wire_bytes -= round(missing * wire_ratio - moved)
    one.came_bytes += min(missing, int(moved / wire_ratio))
    one.flow = None
