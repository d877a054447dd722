"""A trace of one host or VM in the Trace Event Format, which Perfetto and chrome://tracing open.

Trace Event Format (Google, the document named "Trace Event Format"): an object
with ``traceEvents``; times in microseconds, here with three decimals; ``X``
slices on one track must nest, ``i`` instants have a scope, ``M`` events name
processes and threads. The entity is a process. Its tracks are threads: each
vCPU with its phases and batches, the security processor with its commands, for
every stay of a VM on a host what became of it there, and how it was moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO

from cluster.entity_trace import EntityTrace
from cluster.event_lines import Event, figures
from cluster.move_events import MoveEvent
from node.host_events import EVENT_KINDS, HostEvent

_PID = 1
_WORD = {kind: one.word for kind, one in EVENT_KINDS.items()}

_BEGINS: Mapping[str, str | None] = {
    _WORD[HostEvent.ORDERED]: "launching",
    _WORD[HostEvent.ENTERED]: "running",
    _WORD[HostEvent.ARRIVED]: "running",
    _WORD[HostEvent.REFUSED]: None,
    _WORD[HostEvent.DESTROYED]: None,
    _WORD[HostEvent.DEPARTED]: None,
}
"""Which part of a VM's stay on a host begins with a record; None ends the stay."""

_PSP = _WORD[HostEvent.PSP_COMMAND]
_PSP_TRACK = "security processor"
_MOVES = frozenset(MoveEvent)
_MOVE_TRACK = "migration"
_ROUND_TRACK = "rounds of migration"


def write_trace_events(stream: TextIO, trace: EntityTrace) -> int:
    """Write the trace as JSON, one event a line; how many it has."""
    stream.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
    count = 0
    for count, event in enumerate(trace_events(trace), start=1):
        stream.write((",\n" if count > 1 else "") + json.dumps(event))
    stream.write("\n]}\n")
    return count


def trace_events(trace: EntityTrace) -> Iterator[dict[str, object]]:
    """The events of the format, names of tracks last."""
    tracks = _Tracks()
    rows = (row for batch in trace.history.to_batches() for row in batch.to_pylist())
    yield from _drawn(rows, trace, tracks)
    yield _metadata("process_name", 0, trace.entity)
    for place, (name, thread) in enumerate(sorted(tracks.threads.items(), key=lambda one: _order(one[0]))):
        yield _metadata("thread_name", thread, name)
        yield {**_metadata("thread_sort_index", thread, ""), "args": {"sort_index": place}}


class _Tracks:
    """Numbers of threads by the names of their tracks."""

    def __init__(self) -> None:
        self.threads: dict[str, int] = {}

    def thread(self, name: str) -> int:
        return self.threads.setdefault(name, len(self.threads) + 1)


def _order(track: str) -> tuple[int, int, str]:
    """Stays on hosts first, then the security processor, then vCPUs by number."""
    if track.startswith("vCPU "):
        return 2, int(track.removeprefix("vCPU ")), ""
    return int(track == _PSP_TRACK), 0, track


def _drawn(rows: Iterable[Event], trace: EntityTrace, tracks: _Tracks) -> Iterator[dict[str, object]]:
    stays: dict[str, tuple[str, int]] = {}
    move = _Move(trace.from_ns)
    for row in rows:
        word, time_ns = str(row["event"]), _int(row["time_ns"])
        if word in _MOVES:
            yield from move.drawn(row, time_ns, tracks)
            continue
        stay = _stay(row, trace.entity)
        if word in _BEGINS:
            thread = tracks.thread(stay)
            if stay in stays:
                yield from _part(*stays.pop(stay), time_ns, thread, trace.from_ns)
            part = _BEGINS[word]
            if part is not None:
                stays[stay] = part, time_ns
        if time_ns < trace.from_ns:
            continue
        if word == _PSP:
            yield from _command(row, trace.entity, tracks.thread(_PSP_TRACK))
        elif row["took_ns"] is not None:
            took_ns = _int(row["took_ns"])
            name = str(row["text"] or word)
            yield _slice(name, word, time_ns - took_ns, took_ns, tracks.thread(f"vCPU {row['vcpu']}"), figures(row))
        else:
            track = stay if row["vcpu"] is None else f"vCPU {row['vcpu']}"
            yield _instant(word, time_ns, tracks.thread(track), figures(row))
    yield from move.left(trace.to_ns, tracks)
    for stay, (part, since_ns) in stays.items():
        yield from _part(part, since_ns, trace.to_ns, tracks.thread(stay), trace.from_ns)


class _Move:
    """The present move of a VM as parts of its track, one for each phase, and its rounds."""

    def __init__(self, from_ns: int) -> None:
        self._from_ns = from_ns
        self._number: int | None = None
        self._part = ("", 0)

    def drawn(self, row: Event, time_ns: int, tracks: _Tracks) -> Iterator[dict[str, object]]:
        word, first = str(row["event"]), _int(row["first"])
        if word == MoveEvent.ROUND:
            if time_ns >= self._from_ns:
                took_ns, name = _int(row["took_ns"]), f"round {row['text']}"
                thread = tracks.thread(_ROUND_TRACK)
                yield _slice(name, "move", time_ns - took_ns, took_ns, thread, figures(row))
            return
        thread = tracks.thread(_MOVE_TRACK)
        if word == MoveEvent.ASKED and self._number is None:
            self._number, self._part = first, ("in line", time_ns)
        elif word in _NEXT_PART and self._number == first:
            yield from _part(*self._part, time_ns, thread, self._from_ns)
            self._part = str(row["text"]), time_ns
            if word != MoveEvent.PHASE:
                self._number = None
        if time_ns >= self._from_ns:
            yield _instant(word, time_ns, thread, figures(row))

    def left(self, end_ns: int, tracks: _Tracks) -> Iterator[dict[str, object]]:
        """What the end of the trace finds under way."""
        if self._number is not None:
            yield from _part(*self._part, end_ns, tracks.thread(_MOVE_TRACK), self._from_ns)


_NEXT_PART = frozenset({MoveEvent.PHASE, MoveEvent.DONE, MoveEvent.FAILED})


def _stay(row: Event, entity: str) -> str:
    """The track of a VM's stay: seen from the VM it is the host, seen from the host the VM."""
    return f"VM {row['vm']}" if row["entity"] == entity and row["vm"] is not None else f"on {row['host']}"


def _part(part: str, since_ns: int, end_ns: int, thread: int, from_ns: int) -> Iterator[dict[str, object]]:
    begin_ns = max(since_ns, from_ns)
    if end_ns > begin_ns:
        yield _slice(part, "stay", begin_ns, end_ns - begin_ns, thread, {})


def _command(row: Event, entity: str, thread: int) -> Iterator[dict[str, object]]:
    """A command of the security processor; on a VM's own track also what it waited before."""
    took_ns, waited_ns = _int(row["took_ns"]), _int(row["second"])
    begin_ns = _int(row["time_ns"]) - took_ns
    if waited_ns and row["entity"] != entity:
        yield _slice("waiting", "psp", begin_ns - waited_ns, waited_ns, thread, {})
    args = {**figures(row), **({"vm": row["vm"]} if row["entity"] == entity else {})}
    yield _slice(str(row["text"]), "psp", begin_ns, took_ns, thread, args)


def _slice(
    name: str, category: str, begin_ns: int, took_ns: int, thread: int, args: Mapping[str, object]
) -> dict[str, object]:
    return {
        "ph": "X", "name": name, "cat": category, "ts": begin_ns / 1000, "dur": took_ns / 1000,
        "pid": _PID, "tid": thread, "args": dict(args),
    }  # fmt: skip


def _instant(name: str, time_ns: int, thread: int, args: Mapping[str, object]) -> dict[str, object]:
    return {
        "ph": "i", "s": "t", "name": name, "cat": "record", "ts": time_ns / 1000,
        "pid": _PID, "tid": thread, "args": dict(args),
    }  # fmt: skip


def _metadata(name: str, thread: int, said: str) -> dict[str, object]:
    return {"ph": "M", "name": name, "pid": _PID, "tid": thread, "args": {"name": said}}


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
