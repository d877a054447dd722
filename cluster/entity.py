"""What the coordinator and a simulated host say to each other.

The coordinator knows hosts only as entities: things with a name that take
messages, advance to a horizon, and say when they could next speak. Toy
entities in tests and real hosts are the same to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

NEVER = (1 << 63) - 1
"""A virtual time later than every other."""
CONTROL = "control"
"""The control plane's name, where hosts have theirs; no host is called so."""


class Message(NamedTuple):
    """One message across the star, ordered by (time, sender, sequence); a tuple, because it stands in heaps.

    ``time_ns`` is the virtual time at which it takes effect at the receiver.
    ``sequence`` counts the sender's messages, whoever gets them: each has a higher
    one than all before it.
    """

    time_ns: int
    sender: str
    sequence: int
    receiver: str
    kind: str
    payload: Any = ()
    """msgpack-able values, which nobody changes: a message is packed as a whole where it leaves the process."""


class Advance(NamedTuple):
    """What an entity says after it was advanced.

    ``reached_ns`` is the horizon when all its events before it are done, else
    the time it got to when its budget of events ran out.
    ``next_event_ns`` is the time of its next local event (``NEVER`` if none).
    """

    reached_ns: int
    next_event_ns: int
    events: int
    outputs: tuple[Message, ...] = ()


class Entity(Protocol):
    """A simulated thing that the coordinator advances: a host, or a toy in a test."""

    @property
    def name(self) -> str: ...

    @property
    def events(self) -> int:
        """Events that it has done so far."""

    def deliver(self, message: Message) -> None:
        """Take a message for later; it takes effect at its time, before local events of that nanosecond."""

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        """Do every event before ``horizon_ns`` (half-open), at most ``event_budget`` of them."""

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        """Take a message that comes no later than its next event, at once or, as ``deliver``, for later.

        Its next event then, how many were done, none or one, and what was said. Letters of one nanosecond are one
        event, and come in their order.

        Of an event that nobody has heard of yet it says no earlier time than the message's: a host that rested has
        more to do by then, but that is for nobody to see.
        """

    def next_event_ns(self) -> int:
        """Time of the next local event or delivery, ``NEVER`` if none."""

    def earliest_output_ns(self) -> int:
        """A promise: no message of it will carry an earlier sending time, unless a message is delivered to it first."""

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """Close the books at ``end_ns`` and return rows by table name (msgpack-able values)."""

    def gauges(self) -> dict[str, float]:
        """A few live figures for the metrics page, by metric name; never part of results."""


class ControlPlane(Protocol):
    """The coordinator's own program: a timeline, and answers to hosts."""

    def next_event_ns(self) -> int:
        """Time of the next entry of the timeline, ``NEVER`` if there is none."""

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """Act at ``now_ns`` on the messages of that time, then on the timeline.

        Messages to hosts come back in their order, and ``next_event_ns`` as it is then: only a step changes it.
        """
