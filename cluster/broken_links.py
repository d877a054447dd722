"""Links that are down, and hosts that crash: what moves send breaks off.

Before the commit point the VM goes on at its source, as with any other failure; one that runs ahead of its memory
waits (``cluster.post_copy``). What hosts and control plane say to each other goes another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.hand_over import Phase
from cluster.migration import Due, Migration, Outcome
from cluster.post_copy import lose, pause, settle

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations

_CONNECTED = frozenset({Phase.PRE, Phase.STOPPED})
"""Phases in which bytes go over and the VM is its source's."""


def break_link(live: LiveMigrations, host: str, now_ns: int) -> None:
    """A host's link is down from now on: its connections break."""
    live.down[host] = live.down.get(host, 0) + 1
    live.is_whole = False
    for one in live.under_way():
        if host in (one.source, one.destination):
            if one.phase is Phase.DRAINING:
                pause(live, one, now_ns)
            elif one.phase in _CONNECTED and one.precopy is not None:
                give_up(live, one, now_ns)


def mend_link(live: LiveMigrations, host: str, now_ns: int) -> None:
    """It is up again; moves that wait for it go on in a while."""
    live.down[host] -= 1
    for one in live.under_way():
        if one.broken_ns >= 0 and not live.is_cut_off(one):
            live.plan(now_ns + live.settings.recover_after_ns, Due.WAY_BACK, one)


def crash(live: LiveMigrations, host: str, now_ns: int) -> None:
    """A host crashes: what it had not sent yet of a VM is gone, and so is what it had got."""
    live.is_whole = False
    for one in live.under_way():
        if one.started_ns < 0 or host not in (one.source, one.destination):
            continue
        one.source_lost |= host == one.source
        one.target_lost |= host == one.destination and one.has_place
        if one.phase is Phase.DRAINING:
            lose(live, one, now_ns)
        elif one.phase in _CONNECTED and one.precopy is not None:
            give_up(live, one, now_ns)


def give_up(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """The connection of a move that has not been committed broke."""
    if one.source_lost:
        live.on_lost(one, now_ns)
    elif one.target_lost:
        live.fail(one, Outcome.TARGET_LOST, now_ns, f"{one.destination} had nothing of it any more")
    else:
        live.fail(one, Outcome.LINK_DOWN, now_ns, f"between {one.source} and {one.destination}")


def break_off(live: LiveMigrations, one: Migration, now_ns: int) -> int:
    """A flow goes no further: the bytes of memory that it brought, and no others were on the wire."""
    assert one.flow is not None
    moved, wire_ratio = live.fabric.cancel(one.flow, now_ns), one.wire_ratio
    one.wire_bytes -= round(one.flow_bytes * wire_ratio - moved)
    one.flow = None
    return min(one.flow_bytes, round(moved / wire_ratio))


def break_round_off(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """The present round goes no further, or the next one does not begin: what it was to send is left."""
    assert one.precopy is not None
    sent_bytes = 0
    if one.flow is not None or one.unserved:
        sent_bytes = break_off(live, one, now_ns) if one.flow is not None else one.precopy.size_bytes
        one.told_bytes = one.precopy.size_bytes - sent_bytes
    one.unserved = ()
    one.precopy.break_off(sent_bytes, now_ns)


def hold_back(one: Migration, unsent_pages: int, now_ns: int) -> int:
    """Of a round that was broken off firmware has so many pages in line: what the network had carried ahead of it.

    It counts as sent in the round no more, though the network is not to carry it again.
    """
    if not one.private_pages:
        return 0
    assert one.precopy is not None
    size_bytes, sent_bytes = one.precopy.size_bytes, one.precopy.rounds[-1].size_bytes
    carried = max(0, sent_bytes - (size_bytes - size_bytes * unsent_pages // one.private_pages))
    if carried:
        one.precopy.hold_back(carried, now_ns)
        one.told_bytes += carried
    return carried


def end_flow(live: LiveMigrations, one: Migration, now_ns: int) -> None:
    """A move's flow, if it has one, ends before its time: of a round or the last copy, what it brought is sent."""
    if one.flow is None:
        return
    if one.phase is Phase.DRAINING:
        settle(live, one, now_ns)
    else:
        one.final_bytes = break_off(live, one, now_ns)
