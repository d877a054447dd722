"""A Ray that is none: actors live in this process, and a test says what becomes of each call.

In the place of a layout's ``RayCluster`` it shows in milliseconds what recovery does, window for window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster import seat
from cluster.actor_layout import ActorLayout, WorkerRule
from cluster.ray_cluster import ClusterLostError, Missing, Raised

Fate = Callable[["PretendedCall"], object]
"""What becomes of a call: None for its answer, or what stands in its place; asked again while that is to wait."""


@dataclass(eq=False)
class PretendedCall:
    actor: "PretendedActor"
    method: str
    arguments: tuple[Any, ...]
    outcome: object = Missing.WAITING


@dataclass(eq=False)
class PretendedActor:
    held: Any
    calls: list[PretendedCall] = field(default_factory=list)
    dead: bool = False

    def call(self, method: str, *arguments: Any) -> PretendedCall:
        self.calls.append(PretendedCall(self, method, arguments))
        return self.calls[-1]

    def papers(self) -> PretendedCall:
        return self.call("papers")

    def ping(self) -> PretendedCall:
        return self.call("ping")

    def apply(self, function: Callable[..., Any], *arguments: Any) -> PretendedCall:
        return self.call("apply", function, *arguments)


class PretendedCluster:
    """``fate`` decides of every call; ``lost`` makes Ray itself be found gone, once, by whoever asks next."""

    address = None
    cpus = 8
    machines = 1
    startup_s = 0.0
    lost_at_start = ""
    arrived_s = 0.0
    running = False

    def __init__(self, fate: Fate = lambda _: None) -> None:
        self.fate = fate
        self.actors: list[PretendedActor] = []
        self.killed: list[PretendedActor] = []
        self.lost = ""
        self.starts = 0
        self.is_trusted = True

    def start(self, cpus: int) -> None:
        self.running, self.starts = True, self.starts + 1

    def close(self) -> None:
        self.running = False

    def spawn(self, kind: type, *arguments: object) -> PretendedActor:
        self.actors.append(PretendedActor(kind(*arguments)))
        return self.actors[-1]

    def kill(self, actor: PretendedActor) -> None:
        self.killed.append(actor)

    def admit(self, actor: PretendedActor, papers: Any) -> None:
        assert papers is None
        self.arrived_s = seat.time.monotonic()  # by the clock that a test may have put there

    def distrust(self) -> None:
        self.is_trusted = False

    def remember_processes(self) -> None:
        pass

    def settled(self, calls: Sequence[PretendedCall], timeout_s: float) -> list[Any]:
        if self.lost:
            why, self.lost = self.lost, ""
            raise ClusterLostError(why)
        return [self._settled(call) for call in calls]

    def _settled(self, call: PretendedCall) -> object:
        if call.outcome is Missing.WAITING and not call.actor.dead:
            what = self.fate(call)
            call.actor.dead |= what is Missing.LOST
            call.outcome = self._answer(call) if what is None else what
        return Missing.LOST if call.actor.dead else call.outcome

    def _answer(self, call: PretendedCall) -> object:
        if call.method in ("papers", "ping"):
            return None
        if call.method == "apply":
            return call.arguments[0](call.actor.held, *call.arguments[1:])
        try:
            return getattr(call.actor.held, call.method)(*call.arguments)
        except Exception as error:  # noqa: BLE001 - as Ray hands it on
            return Raised(error)


def on_pretended(rule: WorkerRule, cluster: PretendedCluster) -> ActorLayout:
    """A layout over it."""
    layout = ActorLayout(rule)
    layout._cluster = cluster  # type: ignore[assignment]
    return layout
