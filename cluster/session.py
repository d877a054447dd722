"""A layout that is started once and runs one scenario after another."""

from __future__ import annotations

import platform
import time
from collections import Counter
from dataclasses import replace
from types import TracebackType
from typing import Self

from cluster.control_plane import ControlPlane
from cluster.coordinator import Coordinator, CoordinatorResult, ProgressFacts
from cluster.errors import RunFailedError
from cluster.event_table import event_table
from cluster.firmware_key import firmware_image
from cluster.fleet import Changes, Fleet, build_fleet
from cluster.host_entity import ENDED, MACHINES, build_host
from cluster.layout import Layout, Row, Rows, StoppedError, WorkerLostError
from cluster.layouts import LAYOUTS
from cluster.migration import Outcome
from cluster.migration_figures import MoveBooks
from cluster.migration_rows import drain_row, migration_row, phase_rows, round_rows
from cluster.move_events import move_events
from cluster.progress import OnProgress, Progress, ShouldStop
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.tables import EVENTS
from cluster.traffic_rows import traffic_rows
from cluster.versions import versions
from cluster.vmi_phases import VmiPhase, vmi_phases
from node.record_buffer import NO_LOG, LogWish
from workloads.attested_start import proper_name


class Session:
    """Runs scenarios in one layout; its workers live as long as the session."""

    def __init__(self, layout: str, workers: int | None, address: str | None = None) -> None:
        self._name = layout
        self._layout: Layout = LAYOUTS[layout](workers, address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layout.close()

    def run(
        self,
        scenario: Scenario,
        changes: Changes | None,
        on_progress: OnProgress | None,
        should_stop: ShouldStop | None,
        log: LogWish = NO_LOG,
        end_ns: int | None = None,
    ) -> Results:
        """Run ``scenario`` with ``changes``, whole or to ``end_ns``, and collect its tables and the log asked for."""
        started = time.monotonic()
        fleet = build_fleet(scenario, changes, log)
        starts = Progress(0, scenario.duration, note=f"starting {self._name}")
        if on_progress is not None:
            on_progress(starts)
        self._layout.expect(fleet.vms_at_once)
        asked = _Asked(self._layout, starts, on_progress, should_stop)
        try:
            self._layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders], asked)
        except StoppedError as stopped:
            nothing = CoordinatorResult(0, 0, 0, 0, 0, str(stopped))
            return self._results(scenario, fleet, nothing, {}, started, NO_LOG)
        asked.starts = None
        show = None if on_progress is None else _Shown(self._layout, scenario.duration, on_progress, fleet.control)
        coordinator = Coordinator(
            self._layout, fleet.control, scenario.lookahead,
            scenario.duration if end_ns is None else min(end_ns, scenario.duration),
            on_progress=show, should_stop=should_stop,
        )  # fmt: skip
        try:
            outcome = coordinator.run()
            tables = self._layout.collect(outcome.reached_ns)
        except WorkerLostError as error:
            outcome = coordinator.result(str(error))
            left = self._layout.salvage(outcome.reached_ns)
            raise RunFailedError(str(error), self._results(scenario, fleet, outcome, left, started, NO_LOG)) from error
        except StoppedError as stopped:
            outcome = coordinator.result(str(stopped))
            tables, log = self._layout.salvage(outcome.reached_ns), NO_LOG
        return self._results(scenario, fleet, outcome, tables, started, log)

    def _results(
        self, scenario: Scenario, fleet: Fleet, outcome: CoordinatorResult, tables: Rows, started: float, log: LogWish
    ) -> Results:
        logs = tables.pop(EVENTS.name, [])
        hosts = frozenset(row["host"] for row in tables.get("hosts", []))
        tables.setdefault("vms", []).extend(_rows_of_unplaced(fleet, tables.get("vms", []), hosts))
        fleet.control.migrations.close(outcome.reached_ns)
        moves = fleet.control.migrations.all
        events = event_table(logs, move_events(moves, log, outcome.reached_ns)) if log else None
        tables["migrations"] = [migration_row(one, fleet.wanted[one.order.vm].guest) for one in moves]
        tables["migration_phases"] = [row for one in moves for row in phase_rows(one)]
        tables["migration_rounds"] = [row for one in moves for row in round_rows(one)]
        tables["traffic"] = traffic_rows(fleet.control.traffic)
        tables["drains"] = [drain_row(one) for one in fleet.control.plans.drains]
        figures = {
            "virtual_s": outcome.reached_ns / 1e9,
            "fleet_limit": _fleet_limit(tables.get("hosts", [])),
            "firmware_images": _firmware(fleet),
        }
        return Results.of_rows(
            scenario, tables, figures=figures, run=self._went(started, outcome, log), partial=outcome.stopped,
            events=events,
        )  # fmt: skip

    def _went(self, started: float, outcome: CoordinatorResult, log: LogWish) -> dict[str, object]:
        return {
            "layout": self._name,
            "workers": self._layout.workers,
            "wall_s": time.monotonic() - started,
            **({"ray_start_s": self._layout.startup_s} if self._layout.startup_s else {}),
            "round_trips": outcome.round_trips,
            "control_plane_acts": outcome.control_plane_acts,
            "calls": outcome.calls,
            "events": outcome.events,
            **self._layout.facts(),
            **({"log": "everything" if log.everything else sorted(log.entities)} if log else {}),
            "python": platform.python_version(),
            **versions(),
        }


class _Asked:
    """Asked whether to stop, about once a second while a layout starts, it lets it be known what is wrong by then."""

    def __init__(
        self, layout: Layout, starts: Progress, tell: OnProgress | None, should_stop: ShouldStop | None
    ) -> None:
        self.starts: Progress | None = starts
        """What is told while it starts; None afterwards."""
        self._layout = layout
        self._told = starts.troubles
        self._tell = tell
        self._should_stop = should_stop

    def __call__(self) -> str | None:
        if self.starts is not None:
            troubles = tuple(self._layout.notes)
            if self._tell is not None and (troubles or self._told):
                self._tell(replace(self.starts, troubles=troubles))
            self._told = troubles
        return None if self._should_stop is None else self._should_stop()


class _Shown:
    """Turns the coordinator's facts into what users see."""

    def __init__(self, layout: Layout, duration_ns: int, tell: OnProgress, control: ControlPlane) -> None:
        self._layout = layout
        self._control = control
        self._moves = MoveBooks(control.migrations)
        self._duration_ns = duration_ns
        self._tell = tell
        self._advised = False

    def __call__(self, facts: ProgressFacts) -> None:
        machines: Counter[tuple[str, str]] = Counter()
        gauges: dict[str, dict[str, float]] = {}
        ended: dict[tuple[str, str], VmiPhase] = {}
        for host, figures in self._layout.gauges().items():
            gauges[host] = {}
            for name, value in figures.items():
                if name.startswith(MACHINES):
                    _, state, generation = name.split("/")
                    machines[state, generation] += int(value)
                elif name.startswith(ENDED):
                    _, phase, vm = name.split("/", 2)
                    ended[host, vm] = VmiPhase(phase)
                else:
                    gauges[host][name] = value
        troubles = list(self._layout.notes)
        if self._layout.advice and not self._advised:
            self._advised = True
            troubles.append(self._layout.advice)
        counts = facts.round_trips, facts.control_plane_acts, facts.events
        of = facts.virtual_ns, self._duration_ns
        moves = self._moves.at(facts.virtual_ns)
        phases = vmi_phases(self._control, ended, facts.virtual_ns)
        self._tell(Progress(*of, *counts, dict(machines), gauges, moves, phases, troubles=tuple(troubles)))


def _rows_of_unplaced(fleet: Fleet, rows: list[Row], hosts: frozenset[object]) -> list[Row]:
    """Rows of VMs that no host took, that had not arrived when the run ended, or whose host is not among ``hosts``.

    A VM that one host refused and another took has a row of each; only the
    last counts.
    """
    control = fleet.control
    rows[:] = [row for row in rows if row["state"] != "refused" or control.assigned.get(str(row["vm"])) == row["host"]]
    there = {row["vm"] for row in rows}
    missing: list[Row] = []
    for name, order in fleet.wanted.items():
        if name in there:
            continue
        guest = order.guest
        lost = any(one.order.vm == name and one.outcome is Outcome.LOST for one in control.migrations.all)
        absent = "lost" if lost else "waiting" if not hosts or control.assigned.get(name) in {None, *hosts} else "lost"
        missing.append({
            "vm": name, "generation": guest.generation.name, "workload": proper_name(guest.program),
            "vcpus": guest.vcpus,
            "memory_bytes": guest.memory_bytes, "arrival_ns": order.arrival_ns,
            "state": "refused" if name in control.unplaced else absent, "reason": control.unplaced.get(name),
            **dict.fromkeys(_COUNTS, 0),
        })  # fmt: skip
    return missing


_COUNTS = (
    "psp_wait_ns", "psp_service_ns", "units_of_work", "instructions", "active_ns", "operations", "faults",
    "bytes_read", "bytes_written", "bytes_bounced", "copies",
)  # fmt: skip


def _fleet_limit(hosts: list[Row]) -> str:
    """What the fleet runs out of first: the fullest resource of the fullest host."""
    fullest = max(hosts, key=lambda row: float(str(row["limit_ratio"])), default=None)
    if fullest is None:
        return "nothing"
    return f"{fullest['limit']} of {fullest['host']}, {float(str(fullest['limit_ratio'])):.0%} in use"


def _firmware(fleet: Fleet) -> str:
    """The guests' firmware images with the start of their digests, because launch digests follow from them."""
    keys = sorted({key for order in fleet.orders for key in order.firmware})
    images = [firmware_image(key) for key in keys]
    return ", ".join(f"{image.origin} {image.sha256[:16]}" for image in images)
