"""The event log of one host or VM of a saved run: from the log beside the results, or by running it again.

Runs are deterministic, so a folder without a log is as good as one with: its
scenario is run again in this process, with the log of that entity alone, as far
as it is asked for. The digest chains of all entities say whether that was the
same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from cluster.event_table import events_of
from cluster.fleet import BUCKET_NS
from cluster.near_names import expected_name
from cluster.progress import OnProgress, ShouldStop
from cluster.result_diff import FirstBucket, first_bucket
from cluster.results import Results
from cluster.session import Session
from cluster.units import DURATION, shown
from cluster.versions import versions
from node.record_buffer import LogWish


class TraceError(UserError):
    """A trace of somebody or of a time that the run does not have."""


@dataclass(frozen=True, slots=True)
class EntityTrace:
    """What happened to ``entity`` from ``from_ns`` until before ``to_ns``, or at it if the run ended then."""

    entity: str
    from_ns: int
    to_ns: int
    history: pa.Table
    """Rows of the table ``events`` from the beginning to ``to_ns``, by time."""
    run_again: bool
    parted: FirstBucket | None = None
    """Where the run made again and the saved one part; None if they are one and the same."""
    other_versions: tuple[str, ...] = ()
    """Which libraries the saved run had in other versions, told where they part."""
    stopped: str | None = None
    """Why the run made again ended early."""

    @property
    def events(self) -> pa.Table:
        """The rows of the history that are asked for."""
        return self.history.filter(pc.field("time_ns") >= self.from_ns)


def entity_trace(
    folder: str | Path,
    entity: str,
    *,
    from_ns: int = 0,
    to_ns: int | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> EntityTrace:
    """The trace of ``entity`` in the run saved in ``folder``. Raises TraceError for what the run does not have."""
    saved = Results.load(folder)
    known = known_entities(saved)
    if entity not in known:
        raise TraceError(f"{folder}: entity: expected {expected_name(entity, known)}, got {shown(entity)}")
    ended_ns = reached_ns(saved)
    until_ns = ended_ns if to_ns is None else min(to_ns, ended_ns)
    begin = DURATION.format(from_ns)
    if from_ns > ended_ns:
        ended = DURATION.format(ended_ns)
        raise TraceError(f"{folder}: from: expected a time up to the end of the run at {ended}, got {begin}")
    if until_ns < from_ns or until_ns == from_ns != ended_ns:
        got = DURATION.format(until_ns)
        raise TraceError(f"{folder}: to: expected a time after the trace's beginning at {begin}, got {got}")
    if saved.events is not None and _is_logged(saved, entity):
        return EntityTrace(entity, from_ns, until_ns, _until(saved.events, entity, until_ns, ended_ns), run_again=False)
    # To the end of a bucket, so that its digest can be held against the saved one.
    bucket = -(-until_ns // BUCKET_NS)
    wish = LogWish(entities=frozenset({entity}))
    with Session("inline", None) as session:
        again = session.run(saved.scenario, None, on_progress, should_stop, wish, bucket * BUCKET_NS)
    assert again.events is not None
    until_ns = min(until_ns, reached_ns(again))
    whole = saved.partial is None and again.partial is None
    closed = min(reached_ns(saved), reached_ns(again)) // BUCKET_NS
    everywhere = whole and reached_ns(again) == reached_ns(saved)
    parted = first_bucket(
        saved.tables["digests"], again.tables["digests"], None if everywhere else closed,
        left_is_whole=_has_all_hosts(saved),
    )  # fmt: skip
    others = tuple(name for name, version in versions().items() if saved.run.get(name) != version)
    return EntityTrace(
        entity, from_ns, until_ns, _until(again.events, entity, until_ns, ended_ns), True, parted,
        others if parted is not None else (), again.partial,
    )  # fmt: skip


def known_entities(results: Results) -> list[str]:
    """Every host and VM of a run, hosts first."""
    hosts = [host.name for host in results.scenario.host_instances]
    return list(dict.fromkeys([*hosts, *map(str, results.vms["vm"].to_pylist())]))


def reached_ns(results: Results) -> int:
    """Up to which virtual time a run went."""
    seconds = results.figures.get("virtual_s")
    return round(seconds * 1e9) if isinstance(seconds, int | float) else results.scenario.duration


def _has_all_hosts(results: Results) -> bool:
    """Whether none was lost with its worker."""
    there = set(results.hosts["host"].to_pylist())
    return all(host.name in there for host in results.scenario.host_instances)


def is_reproducible(results: Results) -> bool:
    """Whether this program has the versions that made the results, so that a run made again is the same."""
    return all(results.run.get(name) == version for name, version in versions().items())


def _is_logged(results: Results, entity: str) -> bool:
    """Whether the log beside the results was asked to hold this entity."""
    logged = results.run.get("log")
    return logged == "everything" or (isinstance(logged, list) and entity in logged)


def _until(events: pa.Table, entity: str, to_ns: int, ended_ns: int) -> pa.Table:
    """The entity's records before ``to_ns``; to the end of the run, also what was cut there."""
    time_ns = pc.field("time_ns")
    return events_of(events.filter(time_ns <= to_ns if to_ns == ended_ns else time_ns < to_ns), entity)
