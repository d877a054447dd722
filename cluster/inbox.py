"""A host's inbox: messages take effect at their time, before local events of that nanosecond.

In which windows messages were handed over makes no difference: those of one
nanosecond are taken together, ordered by sender and sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

import simpy

from cluster.entity import NEVER, Message
from cluster.errors import ToolError


class ProtocolViolationError(ToolError):
    """Somebody broke the rules of virtual time: a bug, named after its entity."""


class Inbox:
    """Messages for one SimPy environment, and the way through both in the order of time."""

    def __init__(self, env: simpy.Environment, receive: Callable[[Message], None]) -> None:
        self._env = env
        self._receive = receive
        self._waiting: list[Message] = []
        self._queue = env._queue  # noqa: SLF001 - ``peek`` is a call for each look at it

    @property
    def next_ns(self) -> int:
        """Time of the first message that has not taken effect yet."""
        return self._waiting[0].time_ns if self._waiting else NEVER

    @property
    def next_event_ns(self) -> int:
        """Time of the next message or local event, ``NEVER`` if there is none."""
        queue, waiting = self._queue, self._waiting
        event_ns = int(queue[0][0]) if queue else NEVER
        return waiting[0].time_ns if waiting and waiting[0].time_ns < event_ns else event_ns

    def deliver(self, messages: tuple[Message, ...]) -> None:
        """Take messages for later. Raises ProtocolViolationError for one from the past."""
        now = self._env._now  # noqa: SLF001 - as above
        for message in messages:
            if message[0] < now:
                raise ProtocolViolationError(f"{message.receiver}: got a message for {message.time_ns} ns at {now} ns")
            heappush(self._waiting, message)

    def advance(self, horizon_ns: int, event_budget: int) -> tuple[int, int, int]:
        """Do what comes before ``horizon_ns``, letters of one nanosecond as one event.

        How many were done, then ``next_event_ns`` and ``next_ns`` as they are after that.
        """
        env, waiting, queue = self._env, self._waiting, self._queue
        done = 0
        while done < event_budget:
            if waiting and (not queue or waiting[0][0] <= queue[0][0]):
                now = waiting[0][0]
                if now >= horizon_ns:
                    break
                env._now = now  # noqa: SLF001 - nothing is planned before; an event for each letter would say the same
                self._receive(heappop(waiting))
                while waiting and waiting[0][0] == now:
                    self._receive(heappop(waiting))
            elif queue and queue[0][0] < horizon_ns:
                # What ``env.step`` does, without a call for each event.
                env._now, _, _, event = heappop(queue)  # noqa: SLF001 - as above
                callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]  # as it does itself
                for callback in callbacks:
                    callback(event)
                if not event._ok:  # noqa: SLF001 - as above
                    raise event._value  # noqa: SLF001 - an error where there is no value
            else:
                break
            done += 1
        mail_ns = waiting[0][0] if waiting else NEVER
        return done, (min(mail_ns, int(queue[0][0])) if queue else mail_ns), mail_ns
