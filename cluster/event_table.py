"""Event logs as a table: one row per record of a host or VM, in virtual time.

A log is no result: it is no part of the digest or the summary, and results with
and without one are the same. It stands beside them as ``events.parquet``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.tables import EVENTS
from node.host import Host
from node.host_events import EVENT_KINDS, HostEvent, Octets
from node.record_buffer import NO_VCPU, RecordBuffer
from node.vcpu import names_of
from psp.commands import command_name

PACKED = "packed"
"""The only column of a log's row as a host hands it over."""

_Rows = np.ndarray[Any, np.dtype[Any]]


def packed_events(host: Host, end_ns: int) -> bytes:
    """What a host's log holds until ``end_ns``, as an Arrow stream; no bytes where there is no log."""
    if host.log.records is None:
        return b""
    table = _table(host, host.log.records)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, EVENTS.arrow) as writer:
        # Commands that the security processor has still to serve are in the log with their ends.
        writer.write_table(table.filter(pc.field("time_ns") <= end_ns))
    return stream.getvalue()


def event_table(logs: Iterable[Mapping[str, object]], moves: pa.Table) -> pa.Table:
    """The logs of several hosts, each in its row, and the control plane's as one table by entity and time."""
    tables = [moves]
    for row in logs:
        packed = row[PACKED]
        assert isinstance(packed, bytes)
        tables.append(pa.ipc.open_stream(packed).read_all())
    whole = pa.concat_tables(tables)
    return whole.sort_by([(key, "ascending") for key in EVENTS.keys])


def events_of(table: pa.Table, entity: str) -> pa.Table:
    """The records of an entity and those that hosts made about it, in order of time."""
    whose = (pc.field("entity") == entity) | (pc.field("vm") == entity)
    return table.filter(whose).sort_by([(key, "ascending") for key in ("time_ns", "host", "number")])


def _table(host: Host, records: RecordBuffer) -> pa.Table:
    rows = records.rows()
    names = pa.array(records.names, pa.string())
    timed = [kind for kind, one in EVENT_KINDS.items() if one.takes_time]
    kinds, places = np.unique(rows["kind"], return_inverse=True)
    arrays = {
        "entity": names.take(rows["entity"]),
        "time_ns": pa.array(rows["time_ns"]),
        "host": pa.array([host.spec.name]).take(np.zeros(len(rows), np.int64)),
        "number": pa.array(np.arange(len(rows))),
        "event": pa.array([EVENT_KINDS[HostEvent(kind)].word for kind in kinds], pa.string()).take(places),
        "vm": names.take(_some(rows["about"], rows["about"] != 0)),
        "vcpu": _some(rows["vcpu"].astype(np.int64), rows["vcpu"] != NO_VCPU),
        "took_ns": _some(rows["took_ns"], np.isin(rows["kind"], timed)),
        "first": pa.array(rows["first"]),
        "second": pa.array(rows["second"]),
        "text": _texts(host, records, rows),
    }
    return pa.table(arrays, schema=EVENTS.arrow)


def _some(values: _Rows, there: _Rows) -> Any:
    """An array with nothing in the places that are not ``there``."""
    return pa.array(values, mask=~there)


def _demand(host: Host, entity: str, vcpu: int, number: int) -> str:
    guest = host.guests.get(entity)
    names = names_of(guest.demands[vcpu]) if guest is not None and vcpu < len(guest.demands) else ()
    return names[number] if number < len(names) else f"demand {number}"


_FROM_FIGURES: Mapping[HostEvent, Callable[[Host, str, int, int], str]] = {
    HostEvent.PHASE: _demand,
    HostEvent.PHASE_CUT: _demand,
    HostEvent.PSP_COMMAND: lambda _, __, ___, command: command_name(command),
}
"""Texts that follow from entity, vCPU and first figure."""

_FROM_OCTETS: Mapping[Octets, Callable[[bytes], str]] = {
    Octets.TEXT: lambda octets: octets.decode("utf-8", "replace"),
    Octets.DIGEST: bytes.hex,
}


def _texts(host: Host, records: RecordBuffer, rows: _Rows) -> pa.Array[Any]:
    texts: list[str] = []
    places = np.full(len(rows), -1, np.int64)
    for kind, of_octets in ((kind, one.octets) for kind, one in EVENT_KINDS.items()):
        chosen = np.flatnonzero(rows["kind"] == kind)
        if kind in _FROM_FIGURES:
            alike, which = np.unique(rows[chosen][["entity", "vcpu", "first"]], return_inverse=True)
            places[chosen] = len(texts) + which
            texts += [
                _FROM_FIGURES[kind](host, records.names[entity], vcpu, first) for entity, vcpu, first in alike.tolist()
            ]
        elif of_octets in _FROM_OCTETS:
            places[chosen] = len(texts) + np.arange(len(chosen))
            texts += [_FROM_OCTETS[of_octets](records.octets[place]) for place in rows["octets"][chosen].tolist()]
    return pa.array(texts, pa.string()).take(_some(places, places >= 0))
