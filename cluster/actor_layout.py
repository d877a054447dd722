"""Hosts dealt out over actors: layout ``packed`` and its kin differ in how many there are.

A worker that is lost is replaced, here and not by Ray: only the driver knows what
it was told. Meanwhile the others wait at the end of the window, and control goes
back to the coordinator every second, so that progress and Ctrl-C live.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.entity import Message
from cluster.inbox import ProtocolViolationError
from cluster.layout import (
    LayoutError,
    Rows,
    RowsByEntity,
    StoppedError,
    WorkerLostError,
    merged_reports,
    merged_rows,
)
from cluster.life_sign import PATIENCE_S
from cluster.machine import cores, free_bytes, held_bytes
from cluster.progress import ShouldStop
from cluster.ray_cluster import LOOK_S, Call, ClusterLostError, Missing, Raised, RayCluster
from cluster.seat import MOST_LOSSES, Seat, Step
from cluster.shard import EntityFactory, ShardReport
from cluster.units import SIZE
from cluster.worker_advice import WorkerAdvice

ACTOR_BYTES = 90 << 20
"""What an actor's process holds before its hosts do anything: measured 79 to 92 MiB."""
NEWS_S = 3.0
"""How long it is told that a worker was lost: longer than from one progress line to the next."""
_SHOWN = 3
"""How many losses, and how many waits, are named at a time."""
SALVAGE_S = 30.0
"""How long workers may take for their rows after one of them was given up."""
_WORKS = (Step.ADVANCE, Step.REPLAY)
WorkerRule = Callable[[int, int], int]
"""How many workers a number of hosts gets from a number of cores."""


def packed(workers: int | None) -> WorkerRule:
    """The rule of layout ``packed``: so many workers, one a core where nobody says, never more than hosts."""
    if workers is not None and workers < 1:
        raise LayoutError(f"workers: expected at least 1, got {workers}")
    return lambda hosts, cpus: max(1, min(workers or cpus, hosts))


def one_each(workers: int | None) -> WorkerRule:
    """The rule of layout ``host``: a worker for each host, however many there are."""
    if workers is not None:
        raise LayoutError(f"workers: expected none with layout host, which has one for each host, got {workers}")
    return lambda hosts, _: max(1, hosts)


class ActorLayout:
    """One Ray actor per worker, each with its part of the entities.

    With ``address`` the actors are spread over the machines of the Ray cluster
    there. A worker that gives no sign of life for ``patience_s`` counts as lost.
    """

    def __init__(self, rule: WorkerRule, address: str | None = None, patience_s: float = PATIENCE_S) -> None:
        self.rule = rule
        self.startup_s = 0.0
        self.workers = 0
        self._patience_s = patience_s
        self._cluster = RayCluster(address)
        self._seats: list[Seat] = []
        self._home: dict[str, Seat] = {}
        self._memory_bytes: dict[str, int] = {}
        self._gauges: dict[str, dict[str, float]] = {}
        self._cluster_losses = 0
        self._should_stop: ShouldStop | None = None
        self._started = False
        """Whether nobody else asks whether to stop, before a worker that is lost is replaced."""
        self._advice: WorkerAdvice | None = None
        self._waits: list[str] = []
        self._news: list[tuple[float, str]] = []
        """What happened, and when: workers lost."""

    def expect(self, vms: int) -> None:
        """VMs need no processes of their own here."""

    def start(
        self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]], should_stop: ShouldStop | None = None
    ) -> None:
        """Start or join Ray if it is not up, and build the entities, dealt out in turn."""
        cluster, self._should_stop, self._started = self._cluster, should_stop, False
        if cluster.address is not None:
            self._start_cluster(0)
        self.workers = self.rule(len(specs), cluster.cpus)
        if cluster.address is None:
            check_room(self.workers - len(self._seats))
            self._start_cluster(min(self.workers, cores()))
        while len(self._seats) < self.workers:
            self._seats.append(Seat(cluster, self._patience_s))
        self._advice = WorkerAdvice(self.workers, len(specs), cluster.cpus, self._loads)
        self._gauges = {}
        names = _names(specs, self.workers)
        self._home = {spec[0]: self._seats[index % self.workers] for index, spec in enumerate(specs)}
        for number, seat in enumerate(self._seats):  # one that is not needed now forgets
            needed = number < self.workers
            seat.assign(names[number] if needed else "", factory, specs[number :: self.workers] if needed else ())
        self._catch_up(self._seats, should_stop)
        self._started = True
        cluster.remember_processes()

    def _stopped(self) -> StoppedError | None:
        """What to raise now that somebody is lost, where an end is asked for."""
        if self._should_stop is None or (reason := self._should_stop()) is None:
            return None
        self._cluster.distrust()
        return StoppedError(reason)

    def _start_cluster(self, cpus: int) -> None:
        if not self._cluster.running:
            try:
                self._cluster.start(cpus)
            except ClusterLostError as error:
                if (stopped := self._stopped()) is None:
                    raise
                raise stopped from error
            self.startup_s += self._cluster.startup_s
            if self._cluster.lost_at_start:
                self._news.append((time.monotonic(), f"{self._cluster.lost_at_start}; another Ray was started"))

    @property
    def _working(self) -> list[Seat]:
        return self._seats[: self.workers]

    def _catch_up(self, seats: Sequence[Seat], should_stop: ShouldStop | None = None) -> None:
        """Go on until these seats have done what they were told. What they say is of no use to anybody any more."""
        while any(seat.step is not Step.READY for seat in seats):
            if should_stop is not None and (reason := should_stop()) is not None:
                raise StoppedError(reason)
            self._work([seat for seat in seats if seat.step is not Step.READY])

    def _work(self, seats: Sequence[Seat]) -> tuple[list[Message], int]:
        """One call of each of these seats, as far as it ends within a second: what they say, and events they did."""
        try:
            outcomes = self._cluster.settled([seat.due() for seat in seats], LOOK_S)
        except ClusterLostError as error:
            self._start_again(error)
            return [], 0
        said: list[Message] = []
        events = 0
        gone: ClusterLostError | None = None
        stopped: StoppedError | None = None
        self._waits = []
        for seat, outcome in zip(seats, outcomes, strict=True):
            works = seat.step in _WORKS
            try:
                if outcome is Missing.WAITING:
                    self._waits += [note] if (note := seat.waits()) else []
                    continue
                said += seat.take(_answer(outcome))
            except WorkerLostError as error:
                if self._started and (stopped := stopped or self._stopped()) is not None:
                    continue
                try:
                    seat.lose(str(error))
                except ClusterLostError as lost:
                    gone = lost
                    continue
                self._news.append((time.monotonic(), f"{seat.name} was lost and is replaced"))
                continue
            except ClusterLostError as error:
                gone = error  # Found out when a worker was asked for a sign of life; what others said counts.
                continue
            events += seat.report.events if works else 0
        if stopped is not None:
            raise stopped
        if gone is not None:
            self._start_again(gone)
        return said, events

    def _start_again(self, error: ClusterLostError) -> None:
        """Ray itself went away: start another, if it is ours and this does not happen again and again."""
        if (stopped := self._stopped()) is not None:
            raise stopped from error
        self._cluster_losses += 1
        untold = next((seat.untold for seat in self._working if seat.untold), "")
        if self._cluster.address is not None or self._cluster_losses > MOST_LOSSES or untold:
            why = f"{error}; {untold}" if untold else str(error)
            raise WorkerLostError(f"all {self.workers} workers were lost: {why}") from error
        self._cluster.close()
        for seat in self._seats:
            seat.vacate()
        try:
            self._start_cluster(min(self.workers, cores()))
        except ClusterLostError as again:
            raise WorkerLostError(f"all {self.workers} workers were lost: {error}; {again}") from again
        self._news.append((time.monotonic(), f"{error}; another Ray was started"))

    def report(self) -> ShardReport:
        """As after the last call."""
        return self._report([], 0)

    def _report(self, said: Sequence[Message], events: int) -> ShardReport:
        merged = merged_reports([seat.report for seat in self._working])
        reached = merged.reached and all(seat.step is Step.READY for seat in self._working)
        return merged._replace(events=events, reached=reached, outputs=tuple(sorted(said)))

    def together(self, lookahead_ns: int, end_ns: int) -> None:
        """Nobody is here."""

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """One call to each worker with mail or events before the horizon, or with something to catch up."""
        parts: dict[Seat, dict[str, tuple[Message, ...]]] = {}
        for name, messages in mail.items():
            if name not in self._home:
                raise ProtocolViolationError(f"{messages[0].sender}: sent a message to {name}, which is not here")
            parts.setdefault(self._home[name], {})[name] = messages
        for seat in self._working:
            if seat in parts or (seat.step is Step.READY and seat.report.next_event_ns < horizon_ns):
                seat.tell(horizon_ns, parts.get(seat, {}), event_budget)
        busy = [seat for seat in self._working if seat.step is not Step.READY]
        if not busy:
            return self._report([], 0)
        began_s = time.perf_counter()
        advancing = all(seat.step is Step.ADVANCE for seat in busy)
        said, events = self._work(busy)
        if self._advice is not None and advancing and all(seat.step is Step.READY for seat in busy):
            self._advice.note(time.perf_counter() - began_s, [seat.report.busy_s for seat in busy])
        return self._report(said, events)

    def collect(self, end_ns: int) -> Rows:
        """Rows of all workers; one that is lost in the middle of that has to come so far again."""
        collected: dict[Seat, RowsByEntity] = {}
        while missing := [seat for seat in self._working if seat not in collected]:
            self._catch_up(missing)
            for seat in missing:
                seat.ask_rows(end_ns)
            self._catch_up(missing)
            collected |= {seat: seat.rows for seat in missing if seat.rows is not None}
        self._memory_bytes = self._held_bytes()
        return merged_rows({name: rows for seat in self._working for name, rows in collected[seat].items()})

    def salvage(self, end_ns: int) -> Rows:
        """Rows of the workers that are still there, or gave them before, after a WorkerLostError or a StoppedError."""
        given = [seat.rows for seat in self._working if seat.rows is not None]
        there = [seat for seat in self._working if seat.step is Step.READY and seat.rows is None]
        given += self._quick([seat.actor.call("collect", end_ns) for seat in there], SALVAGE_S)
        return merged_rows({name: rows for answer in given for name, rows in answer.items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures; of workers that are busy, or being replaced, those that they gave last."""
        idle = [seat for seat in self._working if seat.step is Step.READY]
        for answer in self._quick([seat.actor.call("gauges") for seat in idle], LOOK_S):
            self._gauges |= answer
        return dict(self._gauges)

    def _loads(self) -> list[int]:
        """Events of each host, where one worker has them all; none if it does not say in time."""
        return [load for loads in self._quick([self._seats[0].actor.call("loads")], LOOK_S) for load in loads]

    def _held_bytes(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for seat in self._working:
            for size in self._quick([seat.actor.apply(_held_bytes)], LOOK_S):
                held |= {seat.name: size} if size is not None else {}
        return held

    def _quick(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """Answers that come in time, as long as Ray lives; the next window finds out who is lost."""
        deadline_s, outcomes = time.monotonic() + timeout_s, [Missing.WAITING] * len(calls)
        with contextlib.suppress(ClusterLostError):
            while Missing.WAITING in outcomes and (left_s := deadline_s - time.monotonic()) > 0:
                outcomes = self._cluster.settled(calls, min(LOOK_S, left_s))
        return [outcome for outcome in outcomes if not isinstance(outcome, (Missing, Raised))]

    @property
    def notes(self) -> list[str]:
        """What is out of the ordinary at present, or was a moment ago, for people who watch."""
        since_s = time.monotonic() - NEWS_S
        self._news = [(at_s, text) for at_s, text in self._news if at_s >= since_s]
        return [*_few([text for _, text in self._news]), *_few(self._waits)]

    @property
    def advice(self) -> str:
        """Whether more workers would pay, or fewer."""
        return "" if self._advice is None else self._advice.text

    def facts(self) -> dict[str, object]:
        """Memory of each worker's process when its rows were collected, workers replaced, and the advice."""
        address = self._cluster.address
        lost = sum(seat.losses for seat in self._seats)
        return {
            **({"address": address, "machines": self._cluster.machines} if address is not None else {}),
            **({"worker_memory_bytes": self._memory_bytes} if self._memory_bytes else {}),
            **({"workers_replaced": lost} if lost else {}),
            **({"advice": self.advice} if self.advice else {}),
        }

    def close(self) -> None:
        """End the actors and their Ray."""
        self._cluster.close()
        for seat in self._seats:
            seat.close()
        self._seats = []


def check_room(workers: int) -> None:
    """Raise LayoutError where so many more workers would not fit into memory."""
    free = free_bytes()
    if free is not None and workers * ACTOR_BYTES > free:
        raise LayoutError(
            f"workers: expected at most {free // ACTOR_BYTES:,}, since each needs about {SIZE.about(ACTOR_BYTES)} and "
            f"{SIZE.about(free)} of memory are free, got {workers:,} (layout packed shares hosts out over fewer)"
        )


def _few(texts: list[str]) -> list[str]:
    """What one line has room for."""
    more = len(texts) - _SHOWN
    return texts if more <= 1 else [*texts[:_SHOWN], f"and {more} more such"]


def _names(specs: Sequence[tuple[str, bytes]], workers: int) -> list[str]:
    """A worker with one host is named for it, others by their numbers."""
    if workers == len(specs):
        return [name for name, _ in specs]
    return [f"worker {number}" for number in range(1, workers + 1)]


def _answer(outcome: Any) -> Any:
    """An answer, or what was raised in its place."""
    if outcome is Missing.LOST:
        raise WorkerLostError("its process ended unexpectedly")
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome


def _held_bytes(_: object) -> int | None:
    return held_bytes()
