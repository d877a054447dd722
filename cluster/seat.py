"""One worker's place: the part of the entities that is its, who works on it at present, and what was told and said.

A worker may go away at any time: its process is killed, its machine lost. Then
another takes the seat. It is built from the same specifications and told what was told
before, out of the journal; what it says again is not passed on. Since entities are
deterministic and cuts of windows are no part of a result, the fleet notices nothing.

A seat is worked at in steps, a call at a time, so that whoever drives many seats
keeps control. The steps of a new worker are ``ARRIVE``, ``START``, ``REPLAY``; then it
is ``READY``; a window is an ``ADVANCE``, the end of all a ``COLLECT``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.entity import NEVER, Message
from cluster.journal import Journal, Window
from cluster.layout import RowsByEntity, WorkerLostError
from cluster.life_sign import PATIENCE_S, LifeSign
from cluster.ray_cluster import ARRIVE_S, Actor, Call, RayCluster
from cluster.shard import EntityFactory, ShardReport
from cluster.shard_worker import Mail, ShardWorker, packed_call, parsed_report
from cluster.units import DURATION

MOST_LOSSES = 3
"""Workers that a seat may lose in a row before that is given up."""
CALM_CALLS = 40
"""Answers, each of a call of about a quarter second, after which a loss is not in a row with the one before."""
SLOW_S = 5.0
"""After which a worker that owes an answer is named."""


class Step(StrEnum):
    """What a seat's worker is busy with; values read after "worker 2"."""

    ARRIVE = "starts"
    START = "builds its hosts"
    REPLAY = "is told everything again"
    READY = "waits"
    ADVANCE = "works"
    COLLECT = "closes its books"


@dataclass(slots=True)
class _Wait:
    """A call under way, when it began, and whether its worker lives; None for one that is still to arrive."""

    call: Call
    began_s: float
    life: LifeSign | None


class Seat:
    """A part of the entities, ``specs`` by name, and its workers, one after another."""

    def __init__(self, cluster: RayCluster, patience_s: float = PATIENCE_S) -> None:
        self.name = ""
        self.step = Step.ARRIVE
        self.report = ShardReport(NEVER, NEVER, 0, True, ())
        self.rows: RowsByEntity | None = None
        self.losses = 0
        """Workers lost here."""
        self._cluster = cluster
        self._patience_s = patience_s
        self._actor: Actor | None = None
        self._factory: EntityFactory | None = None
        self._specs: Sequence[tuple[str, bytes]] = ()
        self._journal = Journal()
        self._replay: Iterator[Window] = iter(())
        self._window: Window = (0, {})
        self._budget = 0
        self._end_ns = 0
        self._events = 0
        """What the worker has done since it was built."""
        self._counted = 0
        """Of that and of what those before it did, what was told: each event once."""
        self._said: dict[str, int] = {}
        """Sequence of the last message of each sender that was passed on."""
        self._losses_in_a_row = 0
        self._lost_in_ns = -1
        """The horizon of the window in which a worker was lost last."""
        self._lost_at_ns = -1
        """How far that worker had come."""
        self._calm = 0
        self._wait: _Wait | None = None

    # What whoever drives it asks for.

    def assign(self, name: str, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        """Give the seat its part; what it did before is forgotten."""
        self.name, self._factory, self._specs = name, factory, specs
        self._journal.close()
        self._journal = Journal()
        self._replay, self._window, self._said = iter(()), (0, {}), {}
        self._events = self._counted = 0
        self._losses_in_a_row, self._lost_in_ns, self._lost_at_ns, self._calm = 0, -1, -1, 0
        self._wait, self.rows = None, None
        self.step = Step.ARRIVE if self._actor is None else Step.START

    def tell(self, horizon_ns: int, mail: Mail, event_budget: int) -> None:
        """Take the seat to a horizon, as soon as its worker is ready for it."""
        self._journal.append(horizon_ns, mail)
        self._budget = event_budget
        if self.step is Step.READY:
            self._window = horizon_ns, mail
            self.step = Step.ADVANCE

    def ask_rows(self, end_ns: int) -> None:
        """Have the books closed at ``end_ns``; ``rows`` holds them, None if the worker was lost meanwhile."""
        assert self.step is Step.READY
        self.rows, self._end_ns, self.step = None, end_ns, Step.COLLECT

    @property
    def actor(self) -> Actor:
        """Who sits there."""
        assert self._actor is not None
        return self._actor

    def due(self) -> Call:
        """The call that is to be waited for; begun now where none is under way."""
        if self._wait is None:
            life = None if self.step is Step.ARRIVE else LifeSign(self._cluster, self.actor)
            self._wait = _Wait(_BEGIN[self.step](self), time.monotonic(), life)
        return self._wait.call

    def take(self, answer: Any) -> tuple[Message, ...]:
        """The answer to the call; messages that nobody has seen yet."""
        self._wait = None
        return _END[self.step](self, answer)

    def waits(self) -> str:
        """No answer yet: how that looks, in words, "" while it is nothing. Raises WorkerLostError without any life."""
        wait, now_s = self._wait, time.monotonic()
        assert wait is not None
        # Ray starts a few processes at a time: as long as some arrive, the others are in line.
        silent_s, patience_s = now_s - max(wait.began_s, self._cluster.arrived_s), ARRIVE_S
        if wait.life is not None:
            silent_s, patience_s = wait.life.silent_s(), self._patience_s
        if silent_s > patience_s:
            raise WorkerLostError(f"it gave no sign of life for {silent_s:.0f} s")
        if silent_s >= SLOW_S:
            return f"{self.name} gives no sign of life, for {silent_s:.0f} s now"
        if now_s - wait.began_s >= SLOW_S:
            return f"{self.name} {self.step}, for {now_s - wait.began_s:.0f} s now"
        return ""

    def lose(self, why: str) -> None:
        """Its worker is gone. Raises WorkerLostError if that happens here again and again, or nobody can follow it."""
        if self._actor is not None:
            self._cluster.kill(self._actor)
        self.vacate()
        self.losses += 1
        self._losses_in_a_row += 1
        self._lost_in_ns = max(self._lost_in_ns, self._window[0])
        self._lost_at_ns = max(self._lost_at_ns, min(self.report.next_event_ns, self._window[0]))
        self._calm = 0
        if self._losses_in_a_row > MOST_LOSSES:
            times = f"{self._losses_in_a_row} times in a row, about {DURATION.about(self._lost_at_ns)}"
            raise WorkerLostError(f"{self.name} was lost {times} of virtual time: {why}")
        if self.untold:
            raise WorkerLostError(f"{self.name} was lost: {why}; {self.untold}")

    @property
    def untold(self) -> str:
        """Why another worker could not be told what was told, "" where it can."""
        return self._journal.wrong and f"what it was told could not be kept for another: {self._journal.wrong}"

    def vacate(self) -> None:
        """Nobody sits there any more."""
        self._actor, self._wait = None, None
        self.step = Step.ARRIVE

    def close(self) -> None:
        """Give the journal back."""
        self._journal.close()

    # The steps: how each begins, and what comes of its answer.

    def begin_arrival(self) -> Call:
        """A new worker, asked for its papers."""
        self._actor = self._cluster.spawn(ShardWorker)
        return self._actor.papers()

    def arrived(self, papers: Any) -> tuple[Message, ...]:
        """It shows them. Raises ClusterError if it does not run what runs here."""
        self._cluster.admit(self.actor, papers)
        self.step = Step.START
        return ()

    def begin_start(self) -> Call:
        """Its part of the entities."""
        return self.actor.call("start", self._factory, self._specs)

    def started(self, answer: bytes) -> tuple[Message, ...]:
        """It has built them, and is where the first worker was at the start."""
        self.report = parsed_report(answer)
        self._events = 0
        self._replay = self._journal.windows()
        self._next_of_replay()
        return ()

    def _next_of_replay(self) -> None:
        following = next(self._replay, None)
        self.step = Step.READY if following is None else Step.REPLAY
        if following is not None:
            self._window = following

    def begin_window(self) -> Call:
        """A window, or what is left of one."""
        horizon_ns, mail = self._window
        self._window = horizon_ns, {}  # a call that goes on with a window brings no mail
        return self.actor.call("advance", packed_call(horizon_ns, mail, self._budget))

    def replayed(self, answer: bytes) -> tuple[Message, ...]:
        """A step of the way that was gone before."""
        new = self._note(answer)
        if self.report.reached:
            self._next_of_replay()
        return new

    def advanced(self, answer: bytes) -> tuple[Message, ...]:
        """As far as the call went."""
        new = self._note(answer)
        self.step = Step.READY
        return new

    def begin_collection(self) -> Call:
        """The end of the books."""
        return self.actor.call("collect", self._end_ns)

    def collected(self, rows: RowsByEntity) -> tuple[Message, ...]:
        """Its rows."""
        self.rows, self.step = rows, Step.READY
        return ()

    def _note(self, answer: bytes) -> tuple[Message, ...]:
        """Keep what a worker says of itself; those of its messages that are not said again."""
        report = parsed_report(answer)
        new = tuple(message for message in report.outputs if message.sequence > self._said.get(message.sender, -1))
        for message in new:
            self._said[message.sender] = max(message.sequence, self._said.get(message.sender, -1))
        self._events += report.events
        self.report = report._replace(events=max(0, self._events - self._counted), outputs=())
        self._counted += self.report.events
        self._calm += report.next_event_ns > self._lost_at_ns
        if self._calm >= CALM_CALLS or (report.reached and self._window[0] > self._lost_in_ns):
            self._losses_in_a_row = 0
        return new


_BEGIN: Mapping[Step, Callable[[Seat], Call]] = {
    Step.ARRIVE: Seat.begin_arrival,
    Step.START: Seat.begin_start,
    Step.REPLAY: Seat.begin_window,
    Step.ADVANCE: Seat.begin_window,
    Step.COLLECT: Seat.begin_collection,
}
_END: Mapping[Step, Callable[[Seat, Any], tuple[Message, ...]]] = {
    Step.ARRIVE: Seat.arrived,
    Step.START: Seat.started,
    Step.REPLAY: Seat.replayed,
    Step.ADVANCE: Seat.advanced,
    Step.COLLECT: Seat.collected,
}
"""How each step begins, and what comes of its answer."""
