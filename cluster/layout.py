"""Where entities run: one model, several layouts, the same results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cluster.entity import Message
from cluster.errors import ToolError, UserError
from cluster.progress import ShouldStop
from cluster.shard import EntityFactory, ShardReport
from cluster.standing_vms import settle
from cluster.together import Together

Row = dict[str, object]
"""Of a table: msgpack-able values by column."""
Rows = dict[str, list[Row]]
RowsByEntity = Mapping[str, Rows]


class LayoutError(UserError):
    """A layout that cannot be set up here."""


class WorkerLostError(ToolError):
    """A worker went away, and could not be replaced or is not to be; the message names it."""


class StoppedError(ToolError):
    """Whoever was asked wanted an end before all entities were built, or as workers were lost; the message says why."""


class Layout(Protocol):
    """Entities spread over shards. ``startup_s`` is what starting the workers took."""

    @property
    def startup_s(self) -> float: ...

    @property
    def workers(self) -> int: ...

    @property
    def notes(self) -> list[str]:
        """What is out of the ordinary at present, for people who watch."""

    @property
    def advice(self) -> str:
        """Whether another number of workers would pay, as far as that is known; "" before."""

    def expect(self, vms: int) -> None:
        """Told before ``start``: so many VMs, at most, will be there at once."""

    def start(
        self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]], should_stop: ShouldStop | None = None
    ) -> None:
        """Build entities from (name, specification); earlier ones are gone.

        Raises StoppedError where ``should_stop``, asked about once a second, has a reason. Later it is asked where a
        worker is lost: who tells this process to end may have told its workers too, who are no loss to be made good.
        """

    def report(self) -> ShardReport:
        """All entities as they stood after ``start`` or the last ``advance``: of a run ``together`` it says nothing."""

    def together(self, lookahead_ns: int, end_ns: int) -> Together | None:
        """All entities, where they are in this process, for whoever has them go on; None where calls go elsewhere."""

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """Take all entities towards the horizon.

        Raises WorkerLostError where workers are lost again and again, StoppedError where one is as an end is asked for.
        """

    def collect(self, end_ns: int) -> Rows:
        """Close the books; rows by table, entities in the order of their names."""

    def salvage(self, end_ns: int) -> Rows:
        """Rows of what is still there after a WorkerLostError or a StoppedError."""

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures by entity."""

    def facts(self) -> dict[str, object]:
        """How the workers fared, for run.json: never part of results."""

    def close(self) -> None:
        """Stop every worker that was started."""


def merged_rows(by_entity: RowsByEntity) -> Rows:
    """Rows of all entities as one set of tables."""
    tables: Rows = {}
    for name in sorted(by_entity):
        for table, rows in by_entity[name].items():
            tables.setdefault(table, []).extend(rows)
    settle(tables)
    return tables


def merged_reports(reports: Sequence[ShardReport]) -> ShardReport:
    """Reports of all shards as one."""
    return ShardReport(
        next_event_ns=min(report.next_event_ns for report in reports),
        earliest_output_ns=min(report.earliest_output_ns for report in reports),
        events=sum(report.events for report in reports),
        reached=all(report.reached for report in reports),
        outputs=tuple(sorted(message for report in reports for message in report.outputs)),
    )
