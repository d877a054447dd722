"""Layout ``packed``: the hosts shared out over Ray actors. The only file that imports Ray.

The Ray is our own, always: started for this run, on this machine and reachable
only from it, with its files in a folder of its own, and taken down again.
Whatever other Ray runs, or the environment says of one, is left alone.

Ray is neither started nor ended in halves: Ctrl-C waits meanwhile. When it
ends, every process that it started is waited for, and killed where it stays.
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

from cluster.entity import Message
from cluster.errors import ToolError
from cluster.held_signals import HeldSignals
from cluster.inbox import ProtocolViolationError
from cluster.layout import LayoutError, Rows, WorkerLostError, merged_reports, merged_rows
from cluster.process_family import Process, end_of, family
from cluster.shard import EntityFactory, ShardReport
from cluster.shard_worker import ShardWorker, packed_call, parsed_report

OBJECT_STORE_BYTES = 100 << 20
LOOK_S = 1.0
"""How often Ray's own daemons are looked after: without them Ray would wait a minute, then end this process."""
LEAVE_S = 5.0
"""How long processes may take to leave before they are killed."""
LONGEST_FOLDER = 28
"""Most bytes of the folder for temporary files: Ray adds up to 76 for its sockets, whose paths hold 107 (unix(7))."""
_THEIRS = "RAY_"
_OURS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
    # Under its name of Windows and macOS, where it is the default: listen on the loopback address alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class PackedLayout:
    """One Ray actor per worker, each with its part of the entities."""

    def __init__(self, workers: int | None) -> None:
        if workers is not None and workers < 1:
            raise LayoutError(f"workers: expected at least 1, got {workers}")
        self.startup_s = 0.0
        self.workers = workers or _cores()
        self._wanted = workers
        self._folder: str | None = None
        self._actors: list[Any] = []
        self._home: dict[str, int] = {}
        self._reports: list[ShardReport] = []
        self._ray: Any = None
        self._print: Any = None
        self._processes: frozenset[Process] = frozenset()
        self._looked_s = 0.0

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Start Ray if it is not up, and build the entities, dealt out in turn."""
        self.workers = max(1, min(self._wanted or _cores(), len(specs)))
        with HeldSignals():
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
        self._processes |= self._family()

    def _start_ray(self) -> None:
        began = time.monotonic()
        with _clean_environment():
            import ray  # noqa: PLC0415 - a second of import that other layouts do not need

            if ray.is_initialized():
                raise LayoutError("packed: expected a process without Ray; this one is connected to a cluster already")
            parent = short_folder()
            self._ray = ray  # from here on there is something to take down
            self._silence()
            self._folder = tempfile.mkdtemp(prefix="sf-", dir=parent)
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
            except Exception as error:
                raise ToolError(f"packed: Ray did not start: {error}") from error
        self._looked_s = time.monotonic()
        self.startup_s = self._looked_s - began

    def _silence(self) -> None:
        """Ray prints what its daemons report, a lost worker for one, even where logs are not to reach the driver."""
        module = self._ray._private.worker  # noqa: SLF001 - there is no setting for it
        self._print = getattr(module, "print_to_stdstream", None)
        module.print_to_stdstream = lambda *_, **__: None

    def _family(self) -> frozenset[Process]:
        """All processes of our Ray, as far as they hang together now."""
        node = getattr(self._ray._private.worker, "_global_node", None)  # noqa: SLF001 - Ray tells nobody else
        daemons = {} if node is None else node.all_processes
        return family(one.process.pid for kind in daemons.values() for one in kind)

    def _answers(self, calls: list[Any], numbers: Sequence[int]) -> list[Any]:
        """What the workers of these numbers answer. A worker's own error comes out as it was raised there."""
        errors = self._ray.exceptions
        try:
            answers: list[Any] = self._got(calls)
        except errors.RayError:
            # Asked one by one they say whose error it is.
            answers = [self._answer(call, number) for number, call in zip(numbers, calls, strict=True)]
        return answers

    def _answer(self, call: Any, number: int) -> Any:
        errors = self._ray.exceptions
        try:
            return self._got(call)
        except errors.RayActorError as error:
            raise WorkerLostError(
                f"worker {number + 1} of {self.workers} was lost: its process ended unexpectedly"
            ) from error
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            raise WorkerLostError(f"worker {number + 1} of {self.workers} was lost with its Ray") from error

    def _got(self, calls: Any) -> Any:
        while True:
            self._look_after_daemons()
            with contextlib.suppress(self._ray.exceptions.GetTimeoutError):
                return self._ray.get(calls, timeout=LOOK_S)

    def _look_after_daemons(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        node = getattr(self._ray._private.worker, "_global_node", None)  # noqa: SLF001 - Ray tells nobody else
        for kind, _ in [] if node is None else node.dead_processes():
            raise WorkerLostError(f"all {self.workers} workers were lost: Ray's process {kind} ended unexpectedly")

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
            self._actors[number].advance.remote(packed_call(horizon_ns, parts.get(number, {}), event_budget))
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
        every = range(self.workers)
        answers = self._answers([self._actors[number].collect.remote(end_ns) for number in every], every)
        return merged_rows({name: rows for answer in answers for name, rows in answer.items()})

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures of all shards."""
        every = range(self.workers)
        answers = self._answers([self._actors[number].gauges.remote() for number in every], every)
        return {name: figures for answer in answers for name, figures in answer.items()}

    def close(self) -> None:
        """End the actors and our Ray, wait for every process of it, and take its files away."""
        with HeldSignals():
            if self._ray is not None:
                self._end_ray()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _end_ray(self) -> None:
        processes = self._processes | self._family()
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        end_of(processes, LEAVE_S)
        self._ray._private.worker.print_to_stdstream = self._print  # noqa: SLF001
        self._actors, self._processes, self._ray = [], frozenset(), None


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short_folder() -> str:
    """Where temporary files go, or /tmp where that path is too long for sockets in it."""
    for folder in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a folder of our own is made in it
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise LayoutError(f"TMPDIR: expected a folder of at most {LONGEST_FOLDER} bytes, got {tempfile.gettempdir()}")


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Nothing that was set for another Ray, no other cluster in sight, and not a word from ours.

    Afterwards all is as it was: Ray leaves things there that are not its own, such as who answers ``breakpoint()``.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_THEIRS):
            del os.environ[name]
    # Workers import from where this process does.
    os.environ.update(_OURS, PYTHONPATH=os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)
