"""Runs of a sweep, made here or side by side on workers: as many under way as there are workers, no more.

A worker that is lost takes nothing with it but its run, which a fresh one gets
in its place; a run that was lost several times is given up, and the others go on.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from cluster.errors import UserError
from cluster.process_memory import free_bytes
from cluster.progress import ShouldStop
from cluster.ray_cluster import Actor, Call, Missing, RayCluster, cores
from cluster.sweep_run import RunOrder, RunOutcome, RunWorker, outcome_of
from cluster.units import SIZE

MOST_LOSSES = 3
"""So often a run may lose its worker before it is given up."""
WORKER_BYTES = 110 << 20
"""What a worker's process holds before it makes a run of any size."""
_SHORTEST_LOOK_S = 0.01
_LONGEST_LOOK_S = 0.25
_LOST = f"its worker's process ended unexpectedly, {MOST_LOSSES} times"
_LOOKS = 50
"""How often in a run's time it is looked whether it is over."""

Tell = Callable[[int], None]
"""Gets to know often how many runs are under way."""
Finished = Generator[tuple[int, RunOutcome], None, None]
"""Outcomes as they come, each with the place of its order."""


class WorkersError(UserError):
    """A number of workers that cannot be had."""


def workers_for(wanted: int | None, runs: int) -> int:
    """How many workers a number of runs gets: 0 is to make them here. Raises WorkersError.

    Where nobody says, one a core; a single run is not worth the time that Ray takes to start.
    """
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


def finished_runs(orders: Sequence[RunOrder], workers: int, tell: Tell, should_stop: ShouldStop) -> Finished:
    """Make all runs; ends early when told to stop, without those under way.

    Raises what ``RayCluster`` does. Whoever leaves early closes the iterator, and with it the workers.
    """
    return _here(orders, tell, should_stop) if workers == 0 else on_workers(orders, workers, tell, should_stop)


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


def on_workers(
    orders: Sequence[RunOrder], workers: int, tell: Tell, should_stop: ShouldStop, kind: type = RunWorker
) -> Finished:
    """As ``finished_runs``, on Ray actors that hold a ``kind``."""
    waiting = deque(range(len(orders)))
    losses: Counter[int] = Counter()
    idle: list[Actor] = []
    busy: list[_UnderWay] = []
    look_s = _SHORTEST_LOOK_S
    tell(0)
    with RayCluster() as cluster:
        cluster.start(min(workers, cores()))
        while (waiting or busy) and not should_stop():
            while waiting and len(busy) < workers:
                actor = idle.pop() if idle else cluster.spawn(kind)
                index = waiting.popleft()
                busy.append(_UnderWay(index, actor, actor.call("run", orders[index]), time.monotonic()))
            tell(len(busy))
            outcomes = cluster.outcomes([one.call for one in busy], look_s)
            if should_stop():
                return  # Ctrl-C reaches workers too: theirs are no losses
            over = [pair for pair in zip(busy, outcomes, strict=True) if pair[1] is not Missing.WAITING]
            busy = [one for one, outcome in zip(busy, outcomes, strict=True) if outcome is Missing.WAITING]
            for one, outcome in over:
                if outcome is not Missing.LOST:
                    idle.append(one.actor)
                    look_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, (time.monotonic() - one.began_s) / _LOOKS))
                    yield one.index, outcome
                    continue
                cluster.kill(one.actor)
                losses[one.index] += 1
                if losses[one.index] < MOST_LOSSES:
                    waiting.appendleft(one.index)
                else:
                    yield one.index, RunOutcome(reason=_LOST)
