"""What a host has said to the control plane, and nobody has taken yet."""

from __future__ import annotations

from cluster.entity import CONTROL, Message
from node.clock import Clock

_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add: a fleet makes millions."""


class Outbox(list[Message]):
    """That of a host of this name; ``clock`` is its own."""

    __slots__ = ("_clock", "_name", "_said")

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__()
        self._name = name
        self._clock = clock
        self._said = 0

    def say(self, kind: str, fields: tuple[object, ...]) -> Message:
        """Put in a message of this kind with these fields, sent now."""
        self._said += 1
        message = _new(Message, (self._clock.now_ns, self._name, self._said, CONTROL, kind, fields))
        self.append(message)
        return message
