"""What each command of the hand-over tells a host, and what a host is waited for when a move is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cluster.guest_body import GuestBody
from cluster.hand_over import Command, Phase, Report
from cluster.migration import Migration
from node.migration_frames import Stream

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations

Told = tuple[str, tuple[object, ...]]


def _keep(_: LiveMigrations, one: Migration) -> Told:
    assert one.guest is not None
    return one.destination, (one.source, GuestBody(one.guest))


def _stop(_: LiveMigrations, one: Migration) -> Told:
    assert one.precopy is not None
    return one.source, (one.precopy.began_ns,)


def _come(live: LiveMigrations, one: Migration) -> Told:
    frames, digests, books = one.luggage
    if not live.patience.again_after_ns:
        one.luggage = ()
    if live.wire is not None:
        frames = live.wire(one.order.vm, frames.made() if isinstance(frames, Stream) else frames)
    return one.destination, (frames, digests, books)


TOLD: Mapping[Command, Callable[[LiveMigrations, Migration], Told]] = {
    Command.BEGIN: lambda live, one: (
        one.source, (one.destination, live.settings.let_go_within_ns, live.settings.zero_share is not None)
    ),
    Command.KEEP: _keep,
    Command.STOP: _stop,
    Command.COME: _come,
    Command.GO: lambda _, one: (one.destination, ()),
    Command.DESTROY: lambda _, one: (one.destination, ()),
    Command.STAY: lambda live, one: (one.source, (live.wants_answer(one),)),
    Command.LEAVE: lambda live, one: (one.source, (live.wants_answer(one),)),
    Command.GIVE_BACK: lambda live, one: (one.destination, (live.wants_answer(one),)),
}
"""Whom a command goes to, and what it says besides the move's number and the VM."""

AWAITED: Mapping[Phase, frozenset[Report]] = {
    Phase.DESTINATION: frozenset({Report.LEFT}),
    Phase.ABORTED: frozenset({Report.STAYED, Report.GIVEN}),
}
"""Answers without which a final phase says its commands again, where messages may be lost."""
