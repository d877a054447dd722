"""Hosts dealt out over actors: layout ``packed`` and its kin differ in how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.entity import Message
from cluster.inbox import ProtocolViolationError
from cluster.layout import LayoutError, Rows, WorkerLostError, merged_reports, merged_rows
from cluster.ray_cluster import Actor, ActorLostError, Call, ClusterLostError, RayCluster, cores
from cluster.shard import EntityFactory, ShardReport
from cluster.shard_worker import ShardWorker, packed_call, parsed_report

WorkerRule = Callable[[int], int]
"""How many workers a number of hosts gets."""


def packed(workers: int | None) -> WorkerRule:
    """The rule of layout ``packed``: so many workers, one a core where nobody says, never more than hosts."""
    if workers is not None and workers < 1:
        raise LayoutError(f"workers: expected at least 1, got {workers}")
    return lambda hosts: max(1, min(workers or cores(), hosts))


class ActorLayout:
    """One Ray actor per worker, each with its part of the entities."""

    def __init__(self, rule: WorkerRule) -> None:
        self.rule = rule
        self.startup_s = 0.0
        self.workers = 0
        self._cluster = RayCluster()
        self._actors: list[Actor] = []
        self._home: dict[str, int] = {}
        self._reports: list[ShardReport] = []

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Start Ray if it is not up, and build the entities, dealt out in turn."""
        self.workers = self.rule(len(specs))
        if not self._cluster.running:
            self._cluster.start(min(self.workers, cores()))
            self.startup_s = self._cluster.startup_s
        while len(self._actors) < self.workers:
            self._actors.append(self._cluster.spawn(ShardWorker))
        parts: list[list[tuple[str, bytes]]] = [[] for _ in self._actors]  # one that is not needed now forgets
        self._home = {}
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
        return merged_rows({name: rows for answer in answers for name, rows in answer.items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures of all shards."""
        return {name: figures for answer in self._answers_of_all("gauges") for name, figures in answer.items()}

    def _answers_of_all(self, method: str, *arguments: object) -> list[Any]:
        every = range(self.workers)
        return self._answers([self._actors[number].call(method, *arguments) for number in every], every)

    def close(self) -> None:
        """End the actors and their Ray."""
        self._cluster.close()
        self._actors = []
