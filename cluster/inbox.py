"""A host's inbox: messages take effect at their time, before local events of that nanosecond.

In which windows messages were handed over makes no difference: those of one
nanosecond are taken together, ordered by sender and sequence.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import simpy
from simpy.events import NORMAL, URGENT, EventPriority

from cluster.entity import NEVER, Message
from cluster.errors import ToolError

BEFORE_ALL = EventPriority(URGENT - 1)
"""Ahead of everything that SimPy itself calls urgent."""
assert BEFORE_ALL < NORMAL


class ProtocolViolationError(ToolError):
    """Somebody broke the rules of virtual time: a bug, named after its entity."""


class Inbox:
    """Messages for one SimPy environment."""

    def __init__(self, env: simpy.Environment, receive: Callable[[Message], None]) -> None:
        self._env = env
        self._receive = receive
        self._waiting: list[Message] = []
        self._rung: set[int] = set()

    @property
    def next_ns(self) -> int:
        """Time of the first message that has not taken effect yet."""
        return self._waiting[0].time_ns if self._waiting else NEVER

    def deliver(self, messages: tuple[Message, ...]) -> None:
        """Take messages for later. Raises ProtocolViolationError for one from the past."""
        env, rung = self._env, self._rung
        now = int(env.now)
        for message in messages:
            time_ns = message.time_ns
            if time_ns < now:
                raise ProtocolViolationError(f"{message.receiver}: got a message for {time_ns} ns at {now} ns")
            heapq.heappush(self._waiting, message)
            if time_ns not in rung:
                rung.add(time_ns)
                bell = simpy.Event(env)
                bell._ok, bell._value = True, None  # noqa: SLF001 - SimPy has no public event with a delay and a priority
                bell.callbacks.append(self._ring)
                env.schedule(bell, BEFORE_ALL, time_ns - now)

    def _ring(self, _: simpy.Event) -> None:
        now = int(self._env.now)
        self._rung.discard(now)
        while self._waiting and self._waiting[0].time_ns <= now:
            self._receive(heapq.heappop(self._waiting))
