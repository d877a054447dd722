"""Runs of a sweep, made here or side by side on workers: as many under way as there are workers, no more.

A worker that is lost takes nothing with it but its run, which a fresh one gets
in its place; a run that was lost several times is given up, and the others go on.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from cluster.errors import ToolError, UserError
from cluster.life_sign import PATIENCE_S, LifeSign
from cluster.machine import cores, free_bytes
from cluster.progress import ShouldStop
from cluster.ray_cluster import Actor, ActorLostError, Call, ClusterLostError, Missing, RayCluster
from cluster.sweeps.run import RunOrder, RunOutcome, RunWorker, outcome_of
from cluster.units import SIZE

MOST_LOSSES = 3
"""So often a run may lose its worker before it is given up."""
WORKER_BYTES = 110 << 20
"""What a worker's process holds before it makes a run of any size."""
_SHORTEST_LOOK_S = 0.01
_LONGEST_LOOK_S = 0.25
_LOST = f"its worker's process ended or stood still, {MOST_LOSSES} times"
_LOOKS = 50
"""How often in a run's time it is looked whether it is over."""

Tell = Callable[[int], None]
"""Gets to know often how many runs are under way."""
Happened = Callable[[str], None]
"""Gets to know what is out of the ordinary."""
Finished = Generator[tuple[int, RunOutcome], None, None]
"""Outcomes as they come, each with the place of its order."""


class WorkersError(UserError):
    """A number of workers that cannot be had."""


def workers_for(wanted: int | None, runs: int, address: str | None = None) -> int | None:
    """How many workers a number of runs gets: 0 is to make them here. Raises WorkersError.

    Where nobody says, one a core; a single run is not worth the time that Ray takes to start. How
    many cores a cluster at an ``address`` has is known only when it is joined: None.
    """
    if address is not None:
        if wanted == 0:
            raise WorkersError(f"workers: expected at least 1 with an address, {address}, got 0")
        return None if wanted is None else min(wanted, runs)
    if wanted is None:
        return 0 if runs <= 1 else min(cores(), runs)
    if wanted < 0:
        raise WorkersError(f"workers: expected 0 or more, got {wanted}")
    workers = min(wanted, runs)
    free = free_bytes()
    if free is not None and workers * WORKER_BYTES > free:
        raise WorkersError(
            f"workers: expected at most {free // WORKER_BYTES:,}, since each needs {SIZE.about(WORKER_BYTES)} and "
            f"more, and {SIZE.about(free)} of memory are free, got {workers:,}"
        )
    return workers


def finished_runs(
    orders: Sequence[RunOrder], workers: int | None, tell: Tell, should_stop: ShouldStop, address: str | None = None,
    happened: Happened = lambda _: None,
) -> Finished:  # fmt: skip
    """Make all runs; ends early when told to stop, without those under way.

    Raises what ``RayCluster`` does. Whoever leaves early closes the iterator, and with it the workers.
    """
    if workers == 0 or not orders:
        return _here(orders, tell, should_stop)
    return on_workers(orders, workers, tell, should_stop, address=address, happened=happened)


def _here(orders: Sequence[RunOrder], tell: Tell, should_stop: ShouldStop) -> Finished:
    for index, order in enumerate(orders):
        tell(1)
        outcome = None if should_stop() else outcome_of(order, lambda _: tell(1), should_stop)
        if outcome is None:
            return
        yield index, outcome


@dataclass(frozen=True, slots=True)
class _UnderWay:
    index: int
    actor: Actor
    call: Call
    began_s: float
    life: LifeSign


def on_workers(
    orders: Sequence[RunOrder], workers: int | None, tell: Tell, should_stop: ShouldStop, kind: type = RunWorker,
    address: str | None = None, patience_s: float = PATIENCE_S, happened: Happened = lambda _: None,
) -> Finished:  # fmt: skip
    """As ``finished_runs``, on Ray actors that hold a ``kind``: so many workers, or one for each of Ray's cores."""
    waiting = deque(range(len(orders)))
    losses: Counter[int] = Counter()
    idle: list[Actor] = []
    busy: list[_UnderWay] = []
    look_s = _SHORTEST_LOOK_S
    tell(0)
    with RayCluster(address) as cluster:
        try:
            cluster.start(min(workers or cores(), cores()))
        except ClusterLostError:
            if should_stop():
                return
            raise
        if cluster.lost_at_start:
            happened(f"{cluster.lost_at_start}; another Ray was started")
        most = workers or min(cluster.cpus, len(orders))
        while (waiting or busy) and not should_stop():
            wanted = min(len(waiting), most - len(busy))
            try:
                idle += _new_workers(cluster, wanted - len(idle), kind)
            except ToolError:
                yield from _over_by_now(cluster, busy)
                raise
            for _ in range(min(wanted, len(idle))):
                actor, index = idle.pop(), waiting.popleft()
                call, life = actor.call("run", orders[index]), LifeSign(cluster, actor)
                busy.append(_UnderWay(index, actor, call, time.monotonic(), life))
            tell(len(busy))
            outcomes = cluster.outcomes([one.call for one in busy], look_s)
            if should_stop():
                return  # Ctrl-C reaches workers too: theirs are no losses
            looked = list(zip(busy, outcomes, strict=True))
            for one, outcome in looked:
                if not isinstance(outcome, Missing):
                    idle.append(one.actor)
                    look_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, (time.monotonic() - one.began_s) / _LOOKS))
                    yield one.index, outcome
            # Only then: who looks after the others may find that the cluster is gone, and what is over is to be kept.
            busy = [one for one, outcome in looked if outcome is Missing.WAITING]
            silent = [one for one in busy if one.life.silent_s() > patience_s]
            busy = [one for one in busy if one not in silent]
            lost = [one for one, outcome in looked if outcome is Missing.LOST] + silent
            for one in lost:
                cluster.kill(one.actor)
                losses[one.index] += 1
                if losses[one.index] < MOST_LOSSES:
                    waiting.appendleft(one.index)
                else:
                    yield one.index, RunOutcome(reason=_LOST)


def _over_by_now(cluster: RayCluster, busy: Sequence[_UnderWay]) -> Finished:
    """Runs that ended while nobody looked, as far as a cluster that may be lost still hands them over."""
    try:
        outcomes = cluster.outcomes([one.call for one in busy], 0)
    except ClusterLostError:
        return
    yield from ((one.index, outcome) for one, outcome in zip(busy, outcomes, strict=True)
                if not isinstance(outcome, Missing))  # fmt: skip


def _new_workers(cluster: RayCluster, count: int, kind: type) -> list[Actor]:
    """So many more workers, their papers seen. Raises ActorLostError where their processes cannot even start."""
    for attempt in range(1, MOST_LOSSES + 1):
        fresh = [cluster.spawn(kind) for _ in range(count)]
        try:
            cluster.check(fresh)
        except ActorLostError:
            for actor in fresh:
                cluster.kill(actor)
            if attempt == MOST_LOSSES:
                raise
        else:
            break
    return fresh
