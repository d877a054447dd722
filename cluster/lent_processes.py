"""Processes that a process starts for itself, lends to one user after another, and loses by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.actor_layout import ACTOR_BYTES
from cluster.guest_processes import ProcessFacts
from cluster.layout import LayoutError, WorkerLostError
from cluster.process_memory import free_bytes
from cluster.ray_cluster import Actor, ActorLostError, Actors
from cluster.units import SIZE


@dataclass(slots=True)
class LentProcess:
    """A process while it works for ``user``; ``calls`` counts the exchanges with it."""

    user: str
    kind: type
    actor: Actor
    pool: LentProcesses = field(repr=False)
    calls: int = 0

    def exchange(self, request: bytes) -> bytes:
        """Hand over a request and wait for the reply. Raises WorkerLostError, which names the user."""
        self.calls += 1
        reply: bytes = self.pool.answer(self, "exchange", request)
        return reply

    def facts(self) -> ProcessFacts:
        """How the process fared for this user."""
        found: ProcessFacts = self.pool.answer(self, "facts")
        return found


class LentProcesses:
    """The processes that this process has started. They end when it does.

    A process that is given back waits for its next user, since one that is new takes a second to start.
    """

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._idle: dict[type, list[Actor]] = {}
        self.lent: list[LentProcess] = []

    def lend(self, kind: type, user: str) -> LentProcess:
        """A process that holds a ``kind()``, new or used before. Raises LayoutError where memory is short."""
        idle = self._idle.setdefault(kind, [])
        if not idle:
            _check_room(user)
        lent = LentProcess(user, kind, idle.pop() if idle else self._actors.spawn(kind), self)
        self.lent.append(lent)
        return lent

    def take_back(self, lent: LentProcess) -> None:
        """Whoever had it needs it no more."""
        self.lent.remove(lent)
        self._idle[lent.kind].append(lent.actor)

    def take_all_back(self) -> None:
        """Nobody needs any."""
        for lent in tuple(self.lent):
            self.take_back(lent)

    def answer(self, lent: LentProcess, method: str, *arguments: object) -> Any:
        """What a process answers. Raises WorkerLostError if it ended; it is never lent again."""
        try:
            (answer,) = self._actors.answers([lent.actor.call(method, *arguments)])
        except ActorLostError as error:
            if lent in self.lent:
                self.lent.remove(lent)
            raise WorkerLostError(f"{lent.user}: its process ended unexpectedly") from error
        return answer


def _check_room(user: str) -> None:
    free = free_bytes()
    if free is not None and free < ACTOR_BYTES:
        raise LayoutError(
            f"{user}: expected about {SIZE.about(ACTOR_BYTES)} of free memory for its process, "
            f"got {SIZE.about(free)} (layout packed needs no process for each VM)"
        )
