"""Whether an actor that owes an answer is alive.

Its process answers a ping also while it works, but not while it stands still.
"""

from __future__ import annotations

import time

from cluster.ray_cluster import Actor, Actors, Call, Missing

PATIENCE_S = 20.0
"""How long a worker may give no sign of life before another takes its place."""


class LifeSign:
    """Pings an actor, one ping at a time, whenever somebody asks."""

    def __init__(self, actors: Actors, actor: Actor) -> None:
        self._actors = actors
        self._actor = actor
        self._ping: Call | None = None
        self._asked_s = 0.0

    def silent_s(self) -> float:
        """For how long it has owed an answer to a ping; 0 while it owes none."""
        now_s = time.monotonic()
        if self._ping is not None and self._actors.settled([self._ping], 0)[0] is not Missing.WAITING:
            self._ping = None
        if self._ping is None:
            self._ping, self._asked_s = self._actor.ping(), now_s
        return now_s - self._asked_s
