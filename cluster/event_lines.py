"""Records of an event log as lines for a person, after the table of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from cluster.move_events import MOVE_KINDS
from cluster.units import DURATION
from node.host_events import EVENT_KINDS

KINDS = {kind.word: kind for kind in (*EVENT_KINDS.values(), *MOVE_KINDS.values())}

Event = Mapping[str, object]


def event_lines(events: pa.Table, entity: str) -> Iterator[str]:
    """One line a record: time, where, what, how long, and its figures by name."""
    for batch in events.to_batches():
        for row in batch.to_pylist():
            place = f"vCPU {row['vcpu']}" if row["vcpu"] is not None else _other(row, entity)
            took = f"took {DURATION.about(row['took_ns'])}" if row["took_ns"] is not None else ""
            said = ", ".join(f"{name} {value}" for name, value in _shown(row))
            yield f"{seconds(row['time_ns']):>16}  {place:<16} {row['event']:<12} {took:<14} {said}".rstrip()


def seconds(time_ns: int) -> str:
    """A virtual time to the nanosecond."""
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d} s"


def figures(row: Event) -> dict[str, object]:
    """The figures of a record by the names that its kind gives them; those without a name are left out."""
    kind = KINDS[str(row["event"])]
    named = {kind.text: row["text"], kind.first: row["first"], kind.second: row["second"]}
    return {name: value for name, value in named.items() if name and value not in (None, "")}


def _shown(row: Event) -> Iterator[tuple[str, str]]:
    for name, value in figures(row).items():
        if not isinstance(value, int):
            yield name, str(value)
        elif name.endswith("_ns"):
            yield name.removesuffix("_ns"), DURATION.about(value)
        else:
            yield name, f"{value:,}"


def _other(row: Event, entity: str) -> str:
    """The VM that a host's record is about, or the host where a VM's record was made."""
    return str(row["vm"] or "") if row["entity"] == entity and row["vm"] is not None else str(row["host"])
