"""Hosts dealt out over actors: layout ``packed`` and its kin differ in how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.entity import Message
from cluster.inbox import ProtocolViolationError
from cluster.layout import LayoutError, Rows, WorkerLostError, merged_reports, merged_rows
from cluster.process_memory import free_bytes, held_bytes
from cluster.ray_cluster import Actor, ActorLostError, Call, ClusterLostError, RayCluster, cores
from cluster.shard import EntityFactory, ShardReport
from cluster.shard_worker import ShardWorker, packed_call, parsed_report
from cluster.units import SIZE

ACTOR_BYTES = 90 << 20
"""What an actor's process holds before its hosts do anything: measured 79 to 92 MiB."""
WorkerRule = Callable[[int], int]
"""How many workers a number of hosts gets."""


def packed(workers: int | None) -> WorkerRule:
    """The rule of layout ``packed``: so many workers, one a core where nobody says, never more than hosts."""
    if workers is not None and workers < 1:
        raise LayoutError(f"workers: expected at least 1, got {workers}")
    return lambda hosts: max(1, min(workers or cores(), hosts))


def one_each(workers: int | None) -> WorkerRule:
    """The rule of layout ``host``: a worker for each host, however many there are."""
    if workers is not None:
        raise LayoutError(f"workers: expected none with layout host, which has one for each host, got {workers}")
    return lambda hosts: max(1, hosts)


class ActorLayout:
    """One Ray actor per worker, each with its part of the entities."""

    def __init__(self, rule: WorkerRule) -> None:
        self.rule = rule
        self.startup_s = 0.0
        self.workers = 0
        self._cluster = RayCluster()
        self._actors: list[Actor] = []
        self._home: dict[str, int] = {}
        self._names: list[str] = []
        self._memory_bytes: dict[str, int] = {}
        self._reports: list[ShardReport] = []

    def expect(self, vms: int) -> None:
        """VMs need no processes of their own here."""

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Start Ray if it is not up, and build the entities, dealt out in turn."""
        self.workers = self.rule(len(specs))
        check_room(self.workers - len(self._actors))
        if not self._cluster.running:
            self._cluster.start(min(self.workers, cores()))
            self.startup_s = self._cluster.startup_s
        while len(self._actors) < self.workers:
            self._actors.append(self._cluster.spawn(ShardWorker))
        parts: list[list[tuple[str, bytes]]] = [[] for _ in self._actors]  # one that is not needed now forgets
        self._home = {}
        self._names = _names(specs, self.workers)
        for index, spec in enumerate(specs):
            parts[index % self.workers].append(spec)
            self._home[spec[0]] = index % self.workers
        calls = [actor.call("start", factory, part) for actor, part in zip(self._actors, parts, strict=True)]
        answers = self._answers(calls, range(len(calls)))
        self._reports = [parsed_report(data) for data in answers[: self.workers]]
        self._cluster.remember_processes()

    def _answers(self, calls: Sequence[Call], numbers: Sequence[int]) -> list[Any]:
        """What the workers of these numbers answer. A worker's own error comes out as it was raised there."""
        try:
            return self._cluster.answers(calls)
        except ActorLostError as error:
            who = f"worker {numbers[error.index] + 1} of {self.workers}"
            raise WorkerLostError(f"{who} was lost: its process ended unexpectedly") from error
        except ClusterLostError as error:
            raise WorkerLostError(f"all {self.workers} workers were lost: {error}") from error

    def report(self) -> ShardReport:
        """As after the last call."""
        return merged_reports(self._reports)

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """One call to each shard with mail or events before the horizon."""
        parts: dict[int, dict[str, tuple[Message, ...]]] = {}
        for name, messages in mail.items():
            if name not in self._home:
                raise ProtocolViolationError(f"{messages[0].sender}: sent a message to {name}, which is not here")
            parts.setdefault(self._home[name], {})[name] = messages
        busy = [
            number
            for number, report in enumerate(self._reports)
            if number in parts or report.next_event_ns < horizon_ns
        ]
        calls = [
            self._actors[number].call("advance", packed_call(horizon_ns, parts.get(number, {}), event_budget))
            for number in busy
        ]
        # Who is not called stands as it stood, and has nothing new to say.
        self._reports = [
            ShardReport(report.next_event_ns, report.earliest_output_ns, 0, True, ()) for report in self._reports
        ]
        fresh = [parsed_report(data) for data in self._answers(calls, busy)] if calls else []
        for number, report in zip(busy, fresh, strict=True):
            self._reports[number] = report
        return self.report()

    def collect(self, end_ns: int) -> Rows:
        """Rows of all shards."""
        answers = self._answers_of_all("collect", end_ns)
        held = self._answers([actor.apply(_held_bytes) for actor in self._actors[: self.workers]], range(self.workers))
        self._memory_bytes = {name: held for name, held in zip(self._names, held, strict=True) if held is not None}
        return merged_rows({name: rows for answer in answers for name, rows in answer.items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures of all shards."""
        return {name: figures for answer in self._answers_of_all("gauges") for name, figures in answer.items()}

    def _answers_of_all(self, method: str, *arguments: object) -> list[Any]:
        every = range(self.workers)
        return self._answers([self._actors[number].call(method, *arguments) for number in every], every)

    def facts(self) -> dict[str, object]:
        """Memory of each worker's process when its rows were collected."""
        return {"worker_memory_bytes": self._memory_bytes} if self._memory_bytes else {}

    def close(self) -> None:
        """End the actors and their Ray."""
        self._cluster.close()
        self._actors = []


def check_room(workers: int) -> None:
    """Raise LayoutError where so many more workers would not fit into memory."""
    free = free_bytes()
    if free is not None and workers * ACTOR_BYTES > free:
        raise LayoutError(
            f"workers: expected at most {free // ACTOR_BYTES:,}, since each needs about {SIZE.about(ACTOR_BYTES)} and "
            f"{SIZE.about(free)} of memory are free, got {workers:,} (layout packed shares hosts out over fewer)"
        )


def _names(specs: Sequence[tuple[str, bytes]], workers: int) -> list[str]:
    """A worker with one host is named for it, others by their numbers."""
    if workers == len(specs):
        return [name for name, _ in specs]
    return [f"worker {number}" for number in range(1, workers + 1)]


def _held_bytes(_: object) -> int | None:
    return held_bytes()
