"""Ray, all of it: the only file that imports it.

``Actors`` is what code needs that has actors: spawn them, call many of them,
wait, know their processes, end them. It works in any process of a Ray, inside
actors too. ``RayCluster`` is the driver's, who starts a Ray and ends it, or joins
one that runs:

    with RayCluster() as cluster:
        cluster.start(cpus=2)
        actor = cluster.spawn(ShardWorker)
        cluster.check([actor])
        answers = cluster.answers([actor.call("start", factory, specs)])

A Ray of our own is started for this run, on this machine and reachable only from
it, with its files in a folder of its own, and taken down again. Whatever other
Ray runs, or the environment says of one, is left alone. One is joined only where its
address is given, and then nothing of it is ended but the actors that we spawned.

Ray is neither started nor ended in halves: Ctrl-C waits meanwhile. When ours
ends, every process that it started is waited for, and killed where it stays.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cluster import actor_shell
from cluster.actor_shell import ActorShell, Offer, Papers
from cluster.cluster_address import ClusterFacts, facts_of, parsed_address, still_answers
from cluster.code_bundle import difference, offer, own_papers
from cluster.daemon_watch import DaemonEnded, DaemonWatch
from cluster.errors import ToolError, UserError
from cluster.held_signals import HeldSignals
from cluster.last_words import LastWords
from cluster.machine import cores
from cluster.process_family import Process, end_of, family, process_of
from cluster.ray_daemons import RayDaemons
from cluster.ray_environment import TO_BE_LET_IN, clean_environment, short_folder
from cluster.ray_folder import new_folder
from cluster.ray_start import bare, our_handlers, watchable
from cluster.ray_tls import TlsError, check_same_as_before
from cluster.time_bound import within

OBJECT_STORE_BYTES = 100 << 20
LOOK_S = 1.0
"""How often Ray's own daemons are looked after: without them Ray would wait a minute, then end this process."""
CONNECT_S = 30.0
"""How long Ray may take to join a cluster that was there a moment ago; by itself it would try for minutes."""
LEAVE_S = 5.0
"""How long processes may take to leave before they are killed."""
ARRIVE_S = 120.0
"""How long workers may take to answer for the first time, after the one before: each starts a Python that loads Ray."""
_NOT_STARTED = "sevfleet: Ray did not start:"
_TOLD = "sevfleet: stopped by SIGTERM (before anything began)"
_ENDED_BY_RAY = "this process was ended; Ray does so where it loses its own processes on this machine"
_TALKATIVE = ("print_to_stdstream", "listen_error_messages")
"""Functions of Ray's client that print: what processes say, and a stack when the head's server is gone."""
_HEALTH = "health"
"""The concurrency group of a thread that answers while an actor works."""


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


@dataclass(frozen=True, slots=True)
class Raised:
    """What stands in the place of an answer where the actor raised an error."""

    error: BaseException


Call = Any
"""A call under way: Ray's reference to its answer."""


@dataclass(frozen=True, slots=True)
class Actor:
    """An object in a process of its own. It may be handed to other actors."""

    handle: Any

    def call(self, method: str, *arguments: object) -> Call:
        """Begin a call. Calls of one caller are done one after another, in their order."""
        return self.handle.call.remote(method, *arguments)

    def apply(self, function: Callable[..., object], *arguments: object) -> Call:
        """Begin a call of a module's ``function`` in the actor's process, with the object as its first argument."""
        return self.handle.apply.remote(function, *arguments)

    def ping(self) -> Call:
        """Begin to ask for a sign of life, which also an actor gives that is in the middle of a long call."""
        return self.handle.ping.options(concurrency_group=_HEALTH).remote()

    def papers(self) -> Call:
        """Begin to ask what it runs."""
        return self.handle.papers.remote()

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
        self._kinds: dict[type, Any] = {}

    @property
    def ray(self) -> Any:
        """Ray; never touched before an actor or a ``RayCluster`` is there."""
        if self._ray is None:
            import ray  # noqa: PLC0415 - a second of import that layouts without it do not need

            self._ray = ray
        return self._ray

    def spawn(self, kind: type, *arguments: object) -> Actor:
        """A new actor that holds ``kind(*arguments)``. It ends when the process that spawned it does.

        One that an actor spawns lives on its machine.
        """
        return self._spawn(self._here(), kind, arguments)

    def _here(self) -> Any:
        return _on_node(self.ray.get_runtime_context().get_node_id())

    def _offer(self) -> Offer:
        """The code that new actors are to run."""
        return offer(archive=False)

    def _spawn(self, where: Any, kind: type, arguments: tuple[object, ...]) -> Actor:
        pickler = self.ray.cloudpickle
        if kind not in self._kinds:
            # A class of its own, so that process lists name what an actor is. It goes to workers that have no code yet,
            # and takes it along: Ray keeps classes with the cluster's head. What lay in this machine's store and is
            # lost with it, Ray puts there again, fails, and ends this process.
            pickler.register_pickle_by_value(actor_shell)
            own = {"__module__": ActorShell.__module__, "offer": self._offer()}
            shell = type(kind.__name__, (ActorShell,), own)
            self._kinds[kind] = self.ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={_HEALTH: 1})(shell)
        made = self._kinds[kind].options(scheduling_strategy=where)
        return Actor(made.remote(pickler.dumps((kind, arguments))))

    def kill(self, actor: Actor) -> None:
        """End an actor, whatever it does; what it was asked stays without an answer."""
        with contextlib.suppress(Exception):
            self.ray.kill(actor.handle)

    def settled(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """Each call's answer, or how it is ``Missing``, or what the actor ``Raised``, after at most ``timeout_s``."""
        deadline_s = time.monotonic() + timeout_s
        try:
            answers: list[Any] = self.ray.get(list(calls), timeout=timeout_s)
        except self.ray.exceptions.RayError:
            # Asked one by one they say whose error it is, or who is late.
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _ = self.ray.wait(list(calls), num_returns=len(calls), timeout=left_s)
            there = set(ready)
            return [self._settled(call) if call in there else Missing.WAITING for call in calls]
        return answers

    def _settled(self, call: Call) -> Any:
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            return Raised(error.cause)
        except self.ray.exceptions.RayError:
            return Missing.LOST

    def outcomes(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """Each call's answer, or which way it is ``Missing``, after at most ``timeout_s``.

        An error that an actor raised is raised as it was there: the first in the order of ``calls``.
        """
        outcomes = self.settled(calls, timeout_s)
        for outcome in outcomes:
            if isinstance(outcome, Raised):
                raise outcome.error from None
        return outcomes

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
    """A Ray from ``start`` to ``close``: our own, or the one at ``address``, which goes on without us.

    Raises AddressError for an address that is none.
    """

    def __init__(self, address: str | None = None) -> None:
        super().__init__()
        if address is not None:
            parsed_address(address)  # Before anybody builds a fleet for it.
        self.startup_s = 0.0
        self.lost_at_start = ""
        """Which process of our Ray ended while it started, so that another was started."""
        self.arrived_s = 0.0
        """When an actor showed its papers last, of ``time.monotonic``."""
        self.cpus = cores()
        """Cores that it offers, once it is started."""
        self.address = address
        self._folders: list[str] = []
        """Where files of our Ray are, and of one lost while it started: some of its processes may still write them."""
        self._actors: dict[Actor, str | None] = {}
        """Who lives, and the node that each was sent to."""
        self._losses: Counter[str | None] = Counter()
        """How many actors had to be killed on each node, or were lost there."""
        self._places: dict[Actor, Call] = {}
        self._lasting = contextlib.ExitStack()
        """What ends with the cluster."""
        self._theirs: dict[str, Any] = {}
        """Functions of Ray's that are silent meanwhile."""
        self._processes: frozenset[Process] = frozenset()
        self._looked_s = 0.0
        self._unsure = False
        """Whether Ray may be going: the head of the cluster that we joined is out of reach, or it was told to end."""
        self._daemons = RayDaemons()

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

    @property
    def machines(self) -> int:
        """On how many machines our actors are."""
        return max(1, len(set(self._actors.values())))

    def start(self, cpus: int) -> None:
        """Start Ray with ``cpus`` processes that wait for their actors, or join the Ray at the address.

        Of ours one more is started where a process of the first ends meanwhile and is waited for in Python. Raises
        ClusterError in a process that is connected to a Ray already and for a cluster that cannot be joined, ToolError
        where Ray fails: ClusterLostError where none is started any more, for this process too was told to end.
        """
        facts = None if self.address is None else self._facts()
        began_s, self.lost_at_start = time.monotonic(), ""
        with HeldSignals() as held:
            try:
                self._start(cpus, facts)
            except DaemonEnded as ended:
                self._take_down_half()
                if held.arrived:
                    raise ClusterLostError(f"Ray did not start: its process {ended}") from None
                self.lost_at_start = f"Ray's process {ended}"
                try:
                    self._start(cpus, facts)
                except DaemonEnded as again:
                    raise ToolError(f"Ray did not start: its process {again}, for the second time") from None
        self.startup_s = self._looked_s - began_s

    def _facts(self) -> ClusterFacts:
        """What the cluster is, found out before Ray itself connects: where it cannot, it hangs or ends this process."""
        assert self.address is not None
        with clean_environment(keep=TO_BE_LET_IN):
            return facts_of(self.address)

    def _start(self, cpus: int, facts: ClusterFacts | None) -> None:
        with clean_environment(keep=TO_BE_LET_IN if facts else (), alone=not facts):
            import ray  # noqa: PLC0415 - a second of import that other layouts do not need

            if ray.is_initialized():
                raise ClusterError("Ray: expected a process without it; this one is connected to a cluster already")
            try:
                check_same_as_before()
            except TlsError as error:
                raise ClusterError(f"{self.address or 'Ray'}: {error}") from None
            if facts is None:
                self._folders.append(new_folder(short_folder()))
                which: dict[str, Any] = {
                    "address": "local", "num_cpus": cpus, "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": self._folders[-1],
                }  # fmt: skip
            else:
                which = {"address": self.address}
                self._lasting.enter_context(LastWords(f"sevfleet: {self.address}: {_ENDED_BY_RAY}"))
            # As Ray's own client has it: workers then do not look for modules in this process's working folder first,
            # where anything may lie under the name of a library.
            which["job_config"] = ray.job_config.JobConfig(_client_job=True)
            self._ray, self._daemons = ray, RayDaemons(ray)  # from here on there is something to take down
            self._silence()
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            late = TimeoutError(f"no connection within {CONNECT_S:g} s")
            try:
                bound = within(CONNECT_S, late) if facts else self._watched()
                with our_handlers(ray), bound:
                    ray.init(**which, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False)
            except Exception as error:
                if facts:
                    raise ClusterError(f"{self.address}: {facts.why_not_joined(error)}") from error
                raise ToolError(f"Ray did not start: {error}") from error
        if facts:
            self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        self._looked_s = time.monotonic()

    def _take_down_half(self) -> None:
        """What there is of a Ray of ours that did not come up."""
        end_of(self._processes | family(pid for pid, _ in self._processes), 0)
        self._end()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Watch each process that Ray starts in the block, and know it when there is something to take down.

        Where this process has to be ended, or Ray ends it, one line still says so.
        """
        words = LastWords(f"{_NOT_STARTED} one of its processes ended, and Ray this one")

        def note(name: str, pid: int) -> None:
            started = process_of(pid)
            self._processes |= {started}
            watch.note(name, started)

        def give_up(ended: str) -> None:
            # As Ray would within a minute: this process waits below Python for one that is gone.
            end_of(self._processes | family(pid for pid, _ in self._processes), 0)
            self._remove_folders()
            # Whoever told Ray's process to end may have told this one, too, which does not hear it there.
            told = signal.SIGTERM in signal.sigpending()
            words.change(_TOLD if told else f"{_NOT_STARTED} its process {ended}")
            os._exit(128 + signal.SIGTERM if told else 1)

        watch = DaemonWatch(give_up)
        with words, bare(self._ray), watchable(self._ray, note), watch:
            yield

    def _silence(self) -> None:
        """Ray prints what its daemons report, a lost worker for one, even where logs are not to reach the driver."""
        module = self._ray._private.worker  # noqa: SLF001 - there is no setting for it
        self._theirs = {name: getattr(module, name, None) for name in _TALKATIVE}
        for name in _TALKATIVE:
            setattr(module, name, lambda *_, **__: None)

    def _offer(self) -> Offer:
        """With an archive where workers may be on other machines."""
        return offer(archive=self.address is not None)

    def spawn(self, kind: type, *arguments: object) -> Actor:
        """As in ``Actors``, not to be interrupted. In a cluster that we joined, actors spread over its machines."""
        with HeldSignals():
            node = None if self.address is None else self._emptiest_node()
            actor = self._spawn("DEFAULT" if node is None else _on_node(node), kind, arguments)
            self._actors[actor] = node
            return actor

    def _emptiest_node(self) -> str:
        """The machine with the fewest losses, then with the fewest of our actors a core.

        Ray spreads only actors that ask for cores, and a machine that is gone is on its list for a while. Raises
        ClusterLostError where new actors would be waited for in vain: no machine is left, or the cluster has given up
        this one, and with it ends all that runs for this process and whatever it asks for later.
        """
        taken, nodes = Counter(self._actors.values()), self.ray.nodes()
        here = self.ray.get_runtime_context().get_node_id()
        if any(node["NodeID"] == here and not node["Alive"] for node in nodes):
            raise ClusterLostError(f"{self.address}: the cluster's Ray on this machine is gone, and the run with it")
        offered = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]}
        choice = sorted((self._losses[node], taken[node] / cpus, node) for node, cpus in offered.items() if cpus)
        if not choice:
            raise ClusterLostError(f"{self.address}: no machine of the cluster with cores is there")
        *_, node = choice[0]
        return str(node)

    def check(self, actors: Sequence[Actor]) -> None:
        """Let actors that are new show their papers. Raises ClusterError if one is not what runs here.

        Raises ActorLostError, or NoAnswerError for one that does not arrive.
        """
        for actor, papers in zip(actors, self.answers([one.papers() for one in actors], ARRIVE_S), strict=True):
            self.admit(actor, papers)

    def admit(self, actor: Actor, papers: Papers) -> None:
        """Look at an actor's papers. Raises ClusterError if it does not run what runs here."""
        if (wrong := difference(own_papers(), papers)) is not None:
            raise ClusterError(f"{self.address or 'Ray'}: {wrong}")
        self._places[actor] = actor.whereabouts()
        self.arrived_s = time.monotonic()

    def kill(self, actor: Actor) -> None:
        """As in ``Actors``; also one that is stopped (SIGSTOP), which Ray would leave there.

        Raises ClusterLostError without the head of a joined cluster: Ray would wait a minute, then end this process.
        """
        self._check_head()
        self._losses[self._actors.pop(actor, None)] += 1
        asked = self._places.pop(actor, None)
        (place,) = [None] if asked is None else Actors.settled(self, [asked], 0)
        if self._is_well():
            super().kill(actor)
        if not isinstance(place, Whereabouts):
            return
        if place.node == self.ray.get_runtime_context().get_node_id():
            _end_process(place.process)
        else:
            self._end_elsewhere(place)

    def _check_head(self) -> None:
        if self.address is not None and not still_answers(self.address):
            self._unsure = True
            raise ClusterLostError(f"{self.address}: the cluster's head gives no answer any more")

    def _end_elsewhere(self, place: Whereabouts) -> None:
        # The machine may be gone, and with it the process: Ray says so in errors of its own.
        with contextlib.suppress(self.ray.exceptions.RayError):
            there = _on_node(place.node)
            # A lambda, since it goes to a process without our code.
            end = self.ray.remote(num_cpus=0, max_retries=0)(lambda pid: os.kill(pid, signal.SIGKILL))
            self.ray.get(end.options(scheduling_strategy=there).remote(place.pid), timeout=LEAVE_S)

    def settled(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """As in ``Actors``. Raises ClusterLostError if one of Ray's daemons is gone."""
        self._look_after_daemons()
        return super().settled(calls, timeout_s)

    def remember_processes(self) -> None:
        """Note which processes there are now, so that they are found again even if one between them and us is gone."""
        self._processes |= self._daemons.family()

    def _look_after_daemons(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        self.remember_processes()
        if (trouble := self._daemons.trouble()) is not None:
            raise ClusterLostError(f"Ray's process {trouble}")
        if self.address is not None and not self._ray.is_initialized():
            raise ClusterLostError(f"{self.address}: the cluster closed the connection")

    def distrust(self) -> None:
        """Ask Ray for nothing any more that it waits for: who told this process to end may have told Ray's as well."""
        self._unsure = True

    def _is_well(self) -> bool:
        """Whether our Ray may be asked to end something: without a daemon it waits, and ends us after a minute."""
        return self._daemons.are_well() and not self._unsure

    def close(self) -> None:
        """End our actors, and our Ray if it is ours; wait for every process of it, and take its files away."""
        with HeldSignals():
            if self._ray is not None:
                self._end()
            self._remove_folders()
            self._lasting.close()

    def _remove_folders(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders = []

    def _end(self) -> None:
        processes = self._processes | self._daemons.family()
        if self._is_well():
            for actor in self._actors:
                super().kill(actor)
        else:
            end_of(processes, 0)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        end_of(processes, LEAVE_S)
        for name, function in self._theirs.items():
            setattr(self._ray._private.worker, name, function)  # noqa: SLF001
        self._actors, self._places, self._kinds = {}, {}, {}
        self._losses.clear()
        self._unsure = False
        self._processes, self._ray, self._daemons = frozenset(), None, RayDaemons()


def _on_node(node: str) -> Any:
    """To live on a node; an actor for one that is gone is lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _end_process(process: Process) -> None:
    if process_of(process[0]) == process:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process[0], signal.SIGKILL)


def tell(address: str) -> None:
    """Print what a cluster says of itself as JSON, or what is ``wrong`` with joining it; for ``facts_of``."""
    import ray  # noqa: PLC0415 - this is a process of its own
    from ray import _raylet  # noqa: PLC0415
    from ray._common.usage.usage_lib import get_cluster_metadata  # noqa: PLC0415 - nobody else tells versions

    try:
        gcs = getattr(_raylet, "GcsClient")(address=address)  # noqa: B009 - from a compiled module without types
        facts = get_cluster_metadata(gcs)
        nodes = [info.node_manager_address for info in gcs.get_all_node_info(timeout=LOOK_S).values() if not info.state]
    except ray.exceptions.AuthenticationError:
        said: dict[str, object] = {"wrong": "expected a token that it accepts, got one that it does not"}
    else:
        versions = (
            ("Ray", ray.__version__, facts["ray_version"]),
            ("Python", platform.python_version(), facts["python_version"]),
        )
        wrong = [f"{name} {here} as here, got {there}" for name, here, there in versions if here != there]
        said = {"wrong": "expected " + " and ".join(wrong)} if wrong else {"nodes": sorted(nodes)}
    sys.stdout.write(json.dumps(said))
