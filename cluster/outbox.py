"""What a host has said to the control plane, and nobody has taken yet."""

from __future__ import annotations

from itertools import count

from cluster.entity import CONTROL, Message
from node.clock import Clock

_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add: a fleet makes millions."""


class Outbox(list[Message]):
    """That of a host of this name; ``clock`` is its own."""

    __slots__ = ("_clock", "_name", "_numbers")

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__()
        self._name = name
        self._clock = clock
        self._numbers = count(1)

    def say(self, kind: str, fields: tuple[object, ...]) -> Message:
        """Put in a message of this kind with these fields, sent now."""
        message = _new(Message, (self._clock.now_ns, self._name, next(self._numbers), CONTROL, kind, fields))
        self.append(message)
        return message
