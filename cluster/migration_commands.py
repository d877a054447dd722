"""What each command of the hand-over tells a host, and what a host is waited for when a move is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cluster.guest_body import GuestBody
from cluster.hand_over import AUTHORITY, Command, Event, Phase, Record, Report, Step
from cluster.migration import Migration
from node.migration_frames import Stream

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations

_BEGIN, _KEEP, _STOP, _COME, _GO, _LEAVE = (
    Command.BEGIN, Command.KEEP, Command.STOP, Command.COME, Command.GO, Command.LEAVE
)  # fmt: skip
"""At hand: every move tells them."""


def _begin(live: LiveMigrations, one: Migration) -> None:
    settings = live.settings
    said = one.number, one.order.vm, one.destination, settings.let_go_within_ns, settings.zero_share is not None
    live.send(one.source, _BEGIN, said)


def _keep(live: LiveMigrations, one: Migration) -> None:
    assert one.guest is not None
    live.send(one.destination, _KEEP, (one.number, one.order.vm, one.source, GuestBody(one.guest)))


def _stop(live: LiveMigrations, one: Migration) -> None:
    assert one.precopy is not None
    live.send(one.source, _STOP, (one.number, one.order.vm, one.precopy.began_ns, one.ahead))


def _come(live: LiveMigrations, one: Migration) -> None:
    frames, digests, books = one.luggage
    if not live.patience.again_after_ns:
        one.luggage = ()
    if live.wire is not None:
        frames = live.wire(one.order.vm, frames.made() if isinstance(frames, Stream) else frames)
    live.send(one.destination, _COME, (one.number, one.order.vm, frames, digests, books))


def _go(live: LiveMigrations, one: Migration) -> None:
    live.send(one.destination, _GO, (one.number, one.order.vm))


def _destroy(live: LiveMigrations, one: Migration) -> None:
    live.send(one.destination, Command.DESTROY, (one.number, one.order.vm))


def _stay(live: LiveMigrations, one: Migration) -> None:
    live.send(one.source, Command.STAY, (one.number, one.order.vm, live.wants_answer(one)))


def _leave(live: LiveMigrations, one: Migration) -> None:
    live.send(one.source, _LEAVE, (one.number, one.order.vm, live.wants_answer(one)))


def _give_back(live: LiveMigrations, one: Migration) -> None:
    live.send(one.destination, Command.GIVE_BACK, (one.number, one.order.vm, live.wants_answer(one)))


TELL: Mapping[Command, Callable[[LiveMigrations, Migration], None]] = {
    Command.BEGIN: _begin,
    Command.KEEP: _keep,
    Command.STOP: _stop,
    Command.COME: _come,
    Command.GO: _go,
    Command.DESTROY: _destroy,
    Command.STAY: _stay,
    Command.LEAVE: _leave,
    Command.GIVE_BACK: _give_back,
}
"""Tells a host a command: the move's number, the VM, and what else there is to say."""

Row = tuple[Phase, Record | None, tuple[Callable[["LiveMigrations", Migration], None], ...]]
"""As a step of the hand-over, with what tells each command in its place."""


def rows_of(table: Mapping[tuple[Phase, Event], Step]) -> Mapping[tuple[Phase, Event], Row]:
    """A table of the hand-over, ready to be carried out."""
    return {
        place: (to, record, tuple([TELL[command] for command in told]))
        for place, (to, record, told) in table.items()
    }  # fmt: skip


ROWS = rows_of(AUTHORITY)
"""The authority's."""

AWAITED: Mapping[Phase, frozenset[Report]] = {
    Phase.DESTINATION: frozenset({Report.LEFT}),
    Phase.ABORTED: frozenset({Report.STAYED, Report.GIVEN}),
}
"""Answers without which a final phase says its commands again, where messages may be lost."""
