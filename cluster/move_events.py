"""What becomes of migrations, as records of an event log: made when a run is over, from what the moves remember.

They are the control plane's, about the VM that is to move, and no part of a digest. That its vCPUs are slowed down
is in the log of the host that does so (``node/host_events.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.entity import CONTROL
from cluster.migration import Migration, Outcome
from cluster.migration_rows import migration_row
from cluster.tables import EVENTS
from node.host_events import EventKind
from node.record_buffer import LogWish


class MoveEvent(StrEnum):
    """The kinds, by the word that a log has for them."""

    ASKED = "move asked"
    BEGUN = "move begun"
    PHASE = "move phase"
    ROUND = "move round"
    SENT = "move sent"
    DONE = "move done"
    FAILED = "move failed"


MOVE_KINDS: Mapping[MoveEvent, EventKind] = {
    MoveEvent.ASKED: EventKind(MoveEvent.ASKED, "migration", text="to"),
    MoveEvent.BEGUN: EventKind(MoveEvent.BEGUN, "migration", text="hosts"),
    MoveEvent.PHASE: EventKind(MoveEvent.PHASE, "migration", text="phase"),
    MoveEvent.ROUND: EventKind(MoveEvent.ROUND, "bytes", "bytes left", text="round", takes_time=True),
    MoveEvent.SENT: EventKind(MoveEvent.SENT, "migration", "bytes", text="what"),
    MoveEvent.DONE: EventKind(MoveEvent.DONE, "migration", "downtime_ns", text="outcome"),
    MoveEvent.FAILED: EventKind(MoveEvent.FAILED, "migration", text="outcome"),
}


class _Record(NamedTuple):
    time_ns: int
    event: MoveEvent
    text: str
    first: int
    second: int = 0
    took_ns: int | None = None


def move_events(moves: Iterable[Migration], wish: LogWish, end_ns: int) -> pa.Table:
    """The table ``events`` of the moves of all VMs that somebody wished to know of, until ``end_ns``."""
    told = [(one.order.vm, record) for one in moves if wish.wants(one.order.vm) for record in _records(one)]
    told.sort(key=lambda one: one[1].time_ns)
    rows: list[dict[str, Any]] = [
        {
            "entity": vm, "time_ns": record.time_ns, "host": CONTROL, "number": number, "event": record.event.value,
            "vm": None, "vcpu": None, "took_ns": record.took_ns, "first": record.first, "second": record.second,
            "text": record.text,
        }
        for number, (vm, record) in enumerate(told) if record.time_ns <= end_ns
    ]  # fmt: skip
    return EVENTS.build(rows)


def _records(one: Migration) -> Iterator[_Record]:
    """Of one move, in the order in which what happens at the same time happened."""
    number = one.number
    where = one.order.to or "anywhere"
    yield _Record(
        one.ordered_ns, MoveEvent.ASKED, f"{where}, drain of {one.order.drain}" if one.order.drain else where, number
    )
    if one.started_ns >= 0:
        yield _Record(one.started_ns, MoveEvent.BEGUN, f"{one.source} to {one.destination}", number)
    for place, each in enumerate([] if one.precopy is None else one.precopy.rounds):
        took_ns = each.ended_ns - each.began_ns
        yield _Record(each.ended_ns, MoveEvent.ROUND, str(place), each.size_bytes, each.left_bytes, took_ns)
    for phase, at_ns in one.history:
        yield _Record(at_ns, MoveEvent.PHASE, phase.value, number)
    if one.is_over:
        for kind, count in _sent(one):
            yield _Record(one.ended_ns, MoveEvent.SENT, kind, number, count)
        done = one.outcome is Outcome.COMPLETED
        outcome = f"{one.outcome.value}: {one.reason}" if one.reason else one.outcome.value
        downtime_ns = one.resumed_ns - one.stopped_ns if done else 0
        yield _Record(one.ended_ns, MoveEvent.DONE if done else MoveEvent.FAILED, outcome, number, downtime_ns)


def _sent(one: Migration) -> Iterator[tuple[str, int]]:
    """Kinds of what was sent, those of which there is something."""
    row = migration_row(one)
    own = {kind: _count(row[column]) for kind, column in _KINDS.items()}
    rounds = 0 if one.precopy is None else one.precopy.sent_bytes
    yield from ((kind, count) for kind, count in {"in rounds": rounds, **own}.items() if count)


_KINDS = {
    "standing still or in a round broken off": "final_bytes", "after it ran": "post_copy_bytes",
    "frames": "frame_bytes", "on the wire": "wire_bytes",
}  # fmt: skip
"""Columns of the table ``migrations``."""


def _count(value: object) -> int:
    assert isinstance(value, int)
    return value
