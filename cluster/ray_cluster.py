"""Ray, all of it: the only file that imports it.

``Actors`` is what code needs that has actors: spawn them, call many of them,
wait, know their processes, end them. It works in any process of a Ray, inside
actors too. ``RayCluster`` is the driver's, who starts that Ray and ends it:

    with RayCluster() as cluster:
        cluster.start(cpus=2)
        actor = cluster.spawn(ShardWorker)
        answers = cluster.answers([actor.call("start", factory, specs)])

The Ray is our own, always: started for this run, on this machine and reachable
only from it, with its files in a folder of its own, and taken down again.
Whatever other Ray runs, or the environment says of one, is left alone.

Ray is neither started nor ended in halves: Ctrl-C waits meanwhile. When it
ends, every process that it started is waited for, and killed where it stays.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.errors import ToolError, UserError
from cluster.held_signals import HeldSignals
from cluster.process_family import Process, end_of, family, process_of

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


class ClusterError(UserError):
    """A Ray that cannot be had here as it was asked for."""


class ClusterLostError(ToolError):
    """Ray itself went away, and all actors with it; the message names the process that did."""


class ActorLostError(ToolError):
    """An actor's process ended; ``index`` is the place of its call among those waited for."""

    def __init__(self, index: int) -> None:
        super().__init__(f"actor {index + 1}: its process ended unexpectedly")
        self.index = index


class NoAnswerError(ToolError):
    """An actor gave no answer in time; ``index`` is the place of its call among those waited for."""

    def __init__(self, index: int, timeout_s: float) -> None:
        super().__init__(f"actor {index + 1}: no answer for {timeout_s:g} s")
        self.index = index


class Missing(enum.Enum):
    """What stands in the place of an answer that there is not."""

    LOST = enum.auto()
    """The actor's process ended, or Ray lost its answer."""
    WAITING = enum.auto()
    """Not yet there; may be waited for again."""


Call = Any
"""A call under way: Ray's reference to its answer."""


@dataclass(frozen=True, slots=True)
class Actor:
    """An object in a process of its own. It may be handed to other actors."""

    handle: Any

    def call(self, method: str, *arguments: object) -> Call:
        """Begin a call. Calls of one caller are done one after another, in their order."""
        return getattr(self.handle, method).remote(*arguments)

    def apply(self, function: Callable[..., object], *arguments: object) -> Call:
        """Begin a call of a module's ``function`` in the actor's process, with the object as its first argument."""
        return self.handle.__ray_call__.remote(function, *arguments)

    def whereabouts(self) -> Call:
        """Begin to ask for the ``Whereabouts`` of its process."""
        return self.apply(_whereabouts)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """An actor's process, and the node (Ray's identifier) where it runs."""

    process: Process
    node: str

    @property
    def pid(self) -> int:
        """The process's number on its node."""
        return self.process[0]


def _whereabouts(_: object) -> Whereabouts:
    import ray  # noqa: PLC0415 - runs in an actor

    return Whereabouts(process_of(os.getpid()), ray.get_runtime_context().get_node_id())


class Actors:
    """The actors of the Ray that this process is in."""

    def __init__(self) -> None:
        self._ray: Any = None

    @property
    def ray(self) -> Any:
        """Ray; never touched before an actor or a ``RayCluster`` is there."""
        if self._ray is None:
            import ray  # noqa: PLC0415 - a second of import that layouts without it do not need

            self._ray = ray
        return self._ray

    def spawn(self, kind: type, *arguments: object) -> Actor:
        """A new actor that holds ``kind(*arguments)``. It ends when the process that spawned it does."""
        return Actor(self.ray.remote(num_cpus=0, max_restarts=0)(kind).remote(*arguments))

    def kill(self, actor: Actor) -> None:
        """End an actor, whatever it does; what it was asked stays without an answer."""
        with contextlib.suppress(Exception):
            self.ray.kill(actor.handle)

    def outcomes(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """Each call's answer, or which way it is ``Missing``, after at most ``timeout_s``.

        An error that an actor raised is raised as it was there: the first in the order of ``calls``.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            answers: list[Any] = self.ray.get(list(calls), timeout=timeout_s)
        except self.ray.exceptions.RayError:
            # Asked one by one they say whose error it is, or who is late.
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _ = self.ray.wait(list(calls), num_returns=len(calls), timeout=left_s)
            there = set(ready)
            return [self._outcome(call) if call in there else Missing.WAITING for call in calls]
        return answers

    def _outcome(self, call: Call) -> Any:
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError:
            return Missing.LOST

    def answers(self, calls: Sequence[Call], timeout_s: float | None = None) -> list[Any]:
        """Every call's answer. Raises ActorLostError, NoAnswerError, or what an actor raised."""
        deadline_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            outcomes = self.outcomes(calls, max(0.0, min(LOOK_S, deadline_s - time.monotonic())))
            for index, outcome in enumerate(outcomes):
                if outcome is Missing.LOST:
                    raise ActorLostError(index)
            waiting = [index for index, outcome in enumerate(outcomes) if outcome is Missing.WAITING]
            if not waiting:
                return outcomes
            if time.monotonic() >= deadline_s:
                raise NoAnswerError(waiting[0], timeout_s or 0.0)


class RayCluster(Actors):
    """A Ray of our own, from ``start`` to ``close``."""

    def __init__(self) -> None:
        super().__init__()
        self.startup_s = 0.0
        self._folder: str | None = None
        self._actors: list[Actor] = []
        self._print: Any = None
        self._processes: frozenset[Process] = frozenset()
        self._looked_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether it was started and not closed."""
        return self._ray is not None

    def start(self, cpus: int) -> None:
        """Start Ray with ``cpus`` processes that wait for their actors.

        Raises ClusterError in a process that is connected to a Ray already, ToolError where Ray fails.
        """
        with HeldSignals():
            self._start(cpus)

    def _start(self, cpus: int) -> None:
        began = time.monotonic()
        with _clean_environment():
            import ray  # noqa: PLC0415 - a second of import that other layouts do not need

            if ray.is_initialized():
                raise ClusterError("Ray: expected a process without it; this one is connected to a cluster already")
            parent = short_folder()
            self._ray = ray  # from here on there is something to take down
            self._silence()
            self._folder = tempfile.mkdtemp(prefix="sf-", dir=parent)
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=self._folder,
                )
            except Exception as error:
                raise ToolError(f"Ray did not start: {error}") from error
        self._looked_s = time.monotonic()
        self.startup_s = self._looked_s - began

    def _silence(self) -> None:
        """Ray prints what its daemons report, a lost worker for one, even where logs are not to reach the driver."""
        module = self._ray._private.worker  # noqa: SLF001 - there is no setting for it
        self._print = getattr(module, "print_to_stdstream", None)
        module.print_to_stdstream = lambda *_, **__: None

    def spawn(self, kind: type, *arguments: object) -> Actor:
        """As in ``Actors``, not to be interrupted."""
        with HeldSignals():
            self._actors.append(super().spawn(kind, *arguments))
            return self._actors[-1]

    def kill(self, actor: Actor) -> None:
        """As in ``Actors``."""
        if actor in self._actors:
            self._actors.remove(actor)
        super().kill(actor)

    def outcomes(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """As in ``Actors``. Raises ClusterLostError if one of Ray's daemons is gone."""
        self._look_after_daemons()
        return super().outcomes(calls, timeout_s)

    def remember_processes(self) -> None:
        """Note which processes there are now, so that they are found again even if one between them and us is gone."""
        self._processes |= self._family()

    def _family(self) -> frozenset[Process]:
        """All processes of our Ray, as far as they hang together now."""
        node = getattr(self._ray._private.worker, "_global_node", None)  # noqa: SLF001 - Ray tells nobody else
        daemons = {} if node is None else node.all_processes
        return family(one.process.pid for kind in daemons.values() for one in kind)

    def _look_after_daemons(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        self.remember_processes()
        node = getattr(self._ray._private.worker, "_global_node", None)  # noqa: SLF001 - Ray tells nobody else
        for kind, _ in [] if node is None else node.dead_processes():
            raise ClusterLostError(f"Ray's process {kind} ended unexpectedly")

    def close(self) -> None:
        """End the actors and our Ray, wait for every process of it, and take its files away."""
        with HeldSignals():
            if self._ray is not None:
                self._end()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _end(self) -> None:
        processes = self._processes | self._family()
        for actor in tuple(self._actors):
            self.kill(actor)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        end_of(processes, LEAVE_S)
        self._ray._private.worker.print_to_stdstream = self._print  # noqa: SLF001
        self._actors, self._processes, self._ray = [], frozenset(), None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short_folder() -> str:
    """Where temporary files go, or /tmp where that path is too long for sockets in it."""
    for folder in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a folder of our own is made in it
        if len(os.fsencode(folder)) <= LONGEST_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ClusterError(f"TMPDIR: expected a folder of at most {LONGEST_FOLDER} bytes, got {tempfile.gettempdir()}")


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
