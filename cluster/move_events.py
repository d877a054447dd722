"""What became of VMs' moves, as records of an event log: each one's order, its phases, its rounds and its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from cluster.migration import Migration, Outcome
from cluster.tables import EVENTS
from node.host_events import EVENT_KINDS, HostEvent
from node.record_buffer import LogWish

CONTROL_PLANE = "control plane"
"""Where they are recorded."""
_Fields = tuple[int, HostEvent, int | None, int, int, str | None]
"""When, what, how long it took, its two figures, and what is said of it."""


def move_events(moves: Iterable[Migration], wish: LogWish, end_ns: int) -> pa.Table:
    """The records of moves of those VMs that a log is asked for of, until a time."""
    found: list[tuple[int, str, _Fields]] = []
    for one in moves:
        if wish.wants(one.order.vm):
            found += [(fields[0], one.order.vm, fields) for fields in _of(one) if fields[0] <= end_ns]
    found.sort(key=lambda one: one[0])
    rows = [
        {
            "entity": vm, "time_ns": time_ns, "host": CONTROL_PLANE, "number": number,
            "event": EVENT_KINDS[kind].word, "took_ns": took_ns, "first": first, "second": second, "text": text,
        }
        for number, (_, vm, (time_ns, kind, took_ns, first, second, text)) in enumerate(found)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EVENTS.arrow)


def _of(one: Migration) -> Iterator[_Fields]:
    yield one.ordered_ns, HostEvent.MOVE, None, one.number, 0, "asked for"
    for each in () if one.precopy is None else one.precopy.rounds:
        took_ns = each.ended_ns - each.began_ns
        yield each.ended_ns, HostEvent.MOVE_ROUND, took_ns, each.size_bytes, each.left_bytes, None
    for phase, at_ns in one.history:
        yield at_ns, HostEvent.MOVE, None, one.number, 0, phase.value
    if one.is_over:
        still_ns = one.resumed_ns - one.stopped_ns if one.outcome is Outcome.COMPLETED else 0
        said = f"{one.outcome.value}: {one.reason}" if one.reason else one.outcome.value
        yield one.ended_ns, HostEvent.MOVE_OVER, None, one.number, still_ns, said
