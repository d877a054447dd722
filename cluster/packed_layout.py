"""Layout ``packed``: the hosts shared out over Ray actors. The only file that imports Ray.

The Ray is our own, always: started for this run, on this machine, with its
files in a folder of its own, and taken down again. Whatever other Ray runs,
or RAY_ADDRESS says, is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from cluster.entity import Message
from cluster.errors import ToolError
from cluster.inbox import ProtocolViolationError
from cluster.layout import LayoutError, Rows, WorkerLostError, merged_reports, merged_rows
from cluster.shard import EntityFactory, Shard, ShardReport

OBJECT_STORE_BYTES = 100 << 20
_HIDDEN = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
}


class ShardWorker:
    """What an actor runs: a shard behind bytes."""

    def __init__(self) -> None:
        self._shard: Shard | None = None

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> bytes:
        """Build the entities."""
        self._shard = Shard(factory, specs)
        return packed_report(self._shard.report())

    def advance(self, call: bytes) -> bytes:
        """One window."""
        assert self._shard is not None
        horizon_ns, budget, mail = msgpack.unpackb(call, use_list=False, strict_map_key=False)
        letters = {name: tuple(Message(*fields) for fields in messages) for name, messages in mail.items()}
        return packed_report(self._shard.advance(horizon_ns, letters, budget))

    def collect(self, end_ns: int) -> dict[str, Rows]:
        """Rows by entity."""
        assert self._shard is not None
        return self._shard.collect(end_ns)

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures by entity."""
        assert self._shard is not None
        return self._shard.gauges()


def packed_report(report: ShardReport) -> bytes:
    """A report as msgpack."""
    outputs = [message_fields(message) for message in report.outputs]
    packed: bytes = msgpack.packb(
        (report.next_event_ns, report.earliest_output_ns, report.events, report.reached, outputs)
    )
    return packed


def parsed_report(data: bytes) -> ShardReport:
    """A report back from msgpack."""
    following, promise, events, reached, outputs = msgpack.unpackb(data, use_list=False)
    return ShardReport(following, promise, events, reached, tuple(Message(*fields) for fields in outputs))


def message_fields(message: Message) -> tuple[int, str, int, str, str, bytes]:
    """A message as msgpack-able values."""
    return (
        message.time_ns, message.sender, message.sequence, message.receiver, message.kind, message.payload,
    )  # fmt: skip


class PackedLayout:
    """One Ray actor per worker, each with its part of the entities."""

    def __init__(self, workers: int | None) -> None:
        if workers is not None and workers < 1:
            raise LayoutError(f"workers: expected at least 1, got {workers}")
        self.startup_s = 0.0
        self.workers = workers or os.cpu_count() or 1
        self._wanted = workers
        self._folder: str | None = None
        self._actors: list[Any] = []
        self._home: dict[str, int] = {}
        self._reports: list[ShardReport] = []
        self._ray: Any = None
        self._print: Any = None

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Start Ray if it is not up, and build the entities, dealt out in turn."""
        self.workers = max(1, min(self._wanted or os.cpu_count() or 1, len(specs)))
        if self._ray is None:
            self._start_ray()
        while len(self._actors) < self.workers:
            self._actors.append(self._ray.remote(num_cpus=0, max_restarts=0)(ShardWorker).remote())
        parts: list[list[tuple[str, bytes]]] = [[] for _ in self._actors]  # one that is not needed now forgets
        self._home = {}
        for index, spec in enumerate(specs):
            parts[index % self.workers].append(spec)
            self._home[spec[0]] = index % self.workers
        calls = [actor.start.remote(factory, part) for actor, part in zip(self._actors, parts, strict=True)]
        answers = self._answers(calls, range(len(calls)))
        self._reports = [parsed_report(data) for data in answers[: self.workers]]

    def _start_ray(self) -> None:
        began = time.monotonic()
        with _clean_environment():
            import ray  # noqa: PLC0415 - a second of import that other layouts do not need

            if ray.is_initialized():
                raise LayoutError("packed: expected a process without Ray; this one is connected to a cluster already")
            self._ray = ray  # from here on there is something to take down
            self._silence()
            self._folder = tempfile.mkdtemp(prefix="sf-")
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            try:
                ray.init(
                    address="local",
                    num_cpus=self.workers,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=self._folder,
                )
            except (OSError, RuntimeError, ValueError) as error:
                raise ToolError(f"Ray could not be started here: {error}; --layout inline needs none") from error
        self.startup_s = time.monotonic() - began

    def _silence(self) -> None:
        """Ray prints what its daemons report, a lost worker for one, even where logs are not to reach the driver."""
        module = self._ray._private.worker  # noqa: SLF001 - there is no setting for it
        self._print = getattr(module, "print_to_stdstream", None)
        module.print_to_stdstream = lambda *_, **__: None

    def _answers(self, calls: list[Any], numbers: Sequence[int]) -> list[Any]:
        """What the workers of these numbers answer. A worker's own error comes out as it was raised there."""
        errors = self._ray.exceptions
        answers = []
        for number, call in zip(numbers, calls, strict=True):
            try:
                answers.append(self._ray.get(call))
            except errors.RayActorError as error:
                raise WorkerLostError(
                    f"worker {number + 1} of {self.workers} was lost: its process ended unexpectedly"
                ) from error
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                raise WorkerLostError(f"worker {number + 1} of {self.workers} was lost with its Ray") from error
        return answers

    def report(self) -> ShardReport:
        """As after the last call."""
        return merged_reports(self._reports)

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """One call to each shard with mail or events before the horizon."""
        parts: dict[int, dict[str, list[tuple[int, str, int, str, str, bytes]]]] = {}
        for name, messages in mail.items():
            if name not in self._home:
                raise ProtocolViolationError(f"{messages[0].sender}: sent a message to {name}, which is not here")
            parts.setdefault(self._home[name], {})[name] = [message_fields(message) for message in messages]
        busy = [
            number
            for number, report in enumerate(self._reports)
            if number in parts or report.next_event_ns < horizon_ns
        ]
        calls = [
            self._actors[number].advance.remote(msgpack.packb((horizon_ns, event_budget, parts.get(number, {}))))
            for number in busy
        ]
        quiet = [
            ShardReport(report.next_event_ns, report.earliest_output_ns, 0, True, ())
            for number, report in enumerate(self._reports)
            if number not in busy
        ]
        fresh = [parsed_report(data) for data in self._answers(calls, busy)] if calls else []
        for number, report in zip(busy, fresh, strict=True):
            self._reports[number] = report
        return merged_reports([*quiet, *fresh])

    def collect(self, end_ns: int) -> Rows:
        """Rows of all shards."""
        every = range(self.workers)
        answers = self._answers([self._actors[number].collect.remote(end_ns) for number in every], every)
        return merged_rows({name: rows for answer in answers for name, rows in answer.items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures of all shards."""
        every = range(self.workers)
        answers = self._answers([self._actors[number].gauges.remote() for number in every], every)
        return {name: figures for answer in answers for name, figures in answer.items()}

    def close(self) -> None:
        """End the actors and our Ray, and take its files away."""
        if self._ray is not None:
            for actor in self._actors:
                with contextlib.suppress(Exception):
                    self._ray.kill(actor)
            self._actors = []
            with contextlib.suppress(Exception):
                self._ray.shutdown()
            self._ray._private.worker.print_to_stdstream = self._print  # noqa: SLF001
            self._ray = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """No other cluster in sight, and not a word from Ray."""
    hidden = {name: os.environ.pop(name) for name in _HIDDEN if name in os.environ}
    # Workers import from where this process does.
    ours = {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            os.environ.update(hidden)
