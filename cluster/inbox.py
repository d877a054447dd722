"""A host's inbox: messages take effect at their time, before local events of that nanosecond.

In which windows messages were handed over makes no difference: those of one
nanosecond are taken together, ordered by sender and sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy

from cluster.entity import NEVER, Advance, Message
from cluster.errors import ToolError

_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add: a fleet makes millions."""


class ProtocolViolationError(ToolError):
    """Somebody broke the rules of virtual time: a bug, named after its entity."""


class Inbox:
    """Messages for one SimPy environment, and the way through both in the order of time.

    What is said on the way is put into ``outbox``. ``promise`` says before when nothing will be, if no message comes,
    of an environment with its next event at a time.
    """

    __slots__ = ("_env", "_parts", "_promise", "_queue", "_waiting", "events")

    def __init__(
        self, env: simpy.Environment, receive: Callable[[Message], None],
        outbox: list[Message], promise: Callable[[int], int],
    ) -> None:  # fmt: skip
        self._env = env
        self._promise = promise
        self._waiting: list[Message] = []
        self._queue = env._queue  # noqa: SLF001 - ``peek`` is a call for each look at it
        self._parts = (env, self._queue, self._waiting, receive, outbox)
        """What every advance needs, at hand."""
        self.events = 0
        """How many were done so far."""

    @property
    def next_ns(self) -> int:
        """Time of the first message that has not taken effect yet."""
        return self._waiting[0].time_ns if self._waiting else NEVER

    def next_event_ns(self) -> int:
        """Time of the next message or local event, ``NEVER`` if there is none."""
        return min(self.next_ns, int(self._queue[0][0]) if self._queue else NEVER)

    def earliest_output_ns(self) -> int:
        """The first message that is still to be opened, which may be answered at once, or what is promised."""
        mail_ns: int = self._waiting[0].time_ns if self._waiting else NEVER
        local_ns: Any = self._queue[0][0] if self._queue else NEVER
        promised_ns = self._promise(mail_ns if mail_ns < local_ns else local_ns)
        return mail_ns if mail_ns < promised_ns else promised_ns

    def deliver(self, message: Message) -> None:
        """Take a message for later. Raises ProtocolViolationError for one from the past."""
        now = self._env._now  # noqa: SLF001 - as above
        if message.time_ns < now:
            raise ProtocolViolationError(f"{message.receiver}: got a message for {message.time_ns} ns at {now} ns")
        heappush(self._waiting, message)

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        """Take a message at once, if none waits to go first: when the next event is, events, and what was said.

        No event comes before it. Raises ProtocolViolationError as ``deliver``.
        """
        env, queue, waiting, receive, outbox = self._parts
        time_ns, now_ns = message.time_ns, env._now  # noqa: SLF001 - as above
        if time_ns < now_ns or (waiting and waiting[0].time_ns <= time_ns):
            self.deliver(message)
            return self.next_event_ns(), 0, ()
        done = 0  # As long as one of the same nanosecond was taken just before.
        if time_ns > now_ns:
            env._now = time_ns  # noqa: SLF001 - as above
            self.events += 1
            done = 1
        receive(message)
        next_ns: Any = self.next_event_ns() if waiting or not queue else queue[0][0]
        if not outbox:
            return next_ns, done, ()
        said = tuple(outbox)
        outbox.clear()
        return next_ns, done, said

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        """Do what comes before ``horizon_ns``, letters of one nanosecond as one event."""
        env, queue, waiting, receive, outbox = self._parts
        done = 0
        while True:
            next_ns: Any = queue[0][0] if queue else NEVER  # Whole numbers, which SimPy's types do not know.
            mail_first = waiting and waiting[0].time_ns <= next_ns
            if mail_first:
                next_ns = waiting[0].time_ns
            if next_ns >= horizon_ns or done >= event_budget:
                break
            done += 1
            if mail_first:
                env._now = next_ns  # noqa: SLF001 - nothing is planned before; an event would say the same
                while waiting and waiting[0].time_ns == next_ns:
                    receive(heappop(waiting))
                continue
            # What ``env.step`` does, without a call for each event.
            env._now, _, _, event = heappop(queue)  # noqa: SLF001 - as above
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]  # as it does itself
            for callback in callbacks:
                callback(event)
            if not event._ok:  # noqa: SLF001 - as above
                raise event._value  # noqa: SLF001 - an error where there is no value
        self.events += done
        said: tuple[Message, ...] = ()
        if outbox:
            said = tuple(outbox)
            outbox.clear()
        return _new(Advance, (next_ns if next_ns < horizon_ns else horizon_ns, next_ns, done, said))
