"""Processes that a process starts for itself on its machine, lends to one user after another, and loses by name."""

from __future__ import annotations

import time
from typing import Protocol

from cluster.actor_layout import ACTOR_BYTES
from cluster.layout import LayoutError, WorkerLostError
from cluster.machine import free_bytes
from cluster.process_channel import Channel, ChannelEndedError, Door, DoorKey
from cluster.process_facts import ProcessFacts
from cluster.ray_cluster import ARRIVE_S, LOOK_S, Actor, Actors, Missing
from cluster.units import SIZE

PATIENCE_S = 30.0
"""How long one reply may take of a process that does nothing meanwhile: replies are a matter of milliseconds."""
_ENDED_S = 5.0
"""How long Ray may take to say why a process ended."""


class Servant(Protocol):
    """What runs in such a process."""

    def serve(self, door: DoorKey) -> None:
        """Reply to requests, and to an empty one with ``ProcessFacts``, until the other side is gone."""


class ServingProcess:
    """A process of ``kind``, from its start on; ``user`` names whom it works for, for errors."""

    def __init__(self, kind: type[Servant], actors: Actors) -> None:
        self.kind = kind
        self.user = kind.__name__
        self.calls = 0
        """Exchanges with it for this user."""
        self.lost = False
        self._actors = actors
        self._actor: Actor = actors.spawn(kind)
        self._door = Door()
        self._serving = self._actor.call("serve", self._door.key)
        self._channel: Channel | None = None

    def exchange(self, request: bytes) -> bytes:
        """Hand over a request and wait for the reply.

        Raises WorkerLostError or, where the code changed meanwhile, LayoutError, which name the user, or what the
        process raised; it is of no use any more then.
        """
        if self.lost:
            raise WorkerLostError(f"{self.user}: its process is not there")
        self.calls += 1
        channel = self._channel or self._arrived()
        try:
            channel.send(request)
            return channel.receive()
        except ChannelEndedError as error:
            raise self._end() from error

    def facts(self) -> ProcessFacts:
        """How it fared for this user."""
        return ProcessFacts.parse(self.exchange(b""))

    def _arrived(self) -> Channel:
        """The channel to it, once it is up."""
        deadline_s = time.monotonic() + ARRIVE_S
        while self._channel is None:
            self._channel = self._door.wait(LOOK_S, PATIENCE_S)
            over = time.monotonic() > deadline_s or self._actors.settled([self._serving], 0.0)[0] is not Missing.WAITING
            if self._channel is None and over:
                raise self._end()
        self._door.close()
        return self._channel

    def _end(self) -> WorkerLostError:
        """Why it serves no more, if not for an error of its own, or for want of the code, which are raised."""
        self.lost = True
        try:
            (outcome,) = self._actors.outcomes([self._serving], _ENDED_S)
        except ImportError as error:
            raise LayoutError(f"{self.user}: {error}") from error
        finally:
            self._actors.kill(self._actor)
        why = f"no answer for {PATIENCE_S:g} s" if outcome is Missing.WAITING else "its process ended unexpectedly"
        return WorkerLostError(f"{self.user}: {why}")


class LentProcesses:
    """The processes that this process has started. They end when it does.

    One that is given back waits for its next user, since a new one takes a second to start.
    """

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._idle: dict[type[Servant], list[ServingProcess]] = {}
        self._lent: list[ServingProcess] = []

    def prepare(self, kind: type[Servant], count: int) -> None:
        """Have so many ready or starting, side by side. Raises LayoutError where memory is short."""
        idle = self._idle.setdefault(kind, [])
        _check_room(kind.__name__, count - len(idle))
        idle += [ServingProcess(kind, self._actors) for _ in range(count - len(idle))]

    def lend(self, kind: type[Servant], user: str) -> ServingProcess:
        """One process, new or used before. Raises LayoutError where memory is short."""
        idle = self._idle.setdefault(kind, [])
        if not idle:
            _check_room(user, 1)
            idle.append(ServingProcess(kind, self._actors))
        process = idle.pop(0)
        process.user, process.calls = user, 0
        self._lent.append(process)
        return process

    def take_back(self, process: ServingProcess) -> None:
        """Whoever had it needs it no more."""
        self._lent.remove(process)
        if not process.lost:
            self._idle[process.kind].append(process)

    def take_all_back(self) -> None:
        """Nobody needs any."""
        for process in tuple(self._lent):
            self.take_back(process)


def _check_room(who: str, count: int) -> None:
    free = free_bytes()
    if free is not None and count * ACTOR_BYTES > free:
        raise LayoutError(
            f"{who}: expected about {SIZE.about(count * ACTOR_BYTES)} of free memory for processes, "
            f"got {SIZE.about(free)} (layout packed needs none for each VM)"
        )
