"""A host on which nothing happens: its order is all there is of it, until somebody looks.

Where every machine of a host was up at time zero and is idle, or there is none, nothing
that happens on it can be seen from outside before a message comes. So its launches are
only recorded. The first message, the first look and the end of the run make it real: the
whole host is built and does what it would have done, as any other, and what is found
there is what had been there all along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.entity import NEVER, Advance, Message
from node.guest import GuestState
from workloads.idle import NAME as IDLE

if TYPE_CHECKING:
    from cluster.host_entity import HostEntity, HostOrder
    from node.host import Host

_MANY_EVENTS = 1 << 16


def rests(order: HostOrder) -> bool:
    """Whether nobody outside can tell what happens on a host before a message comes."""
    return order.keys is None and all(guest.program.name == IDLE for guest in order.guests)


class RestingHost:
    """An entity that is an order, and from the first need on the host that was ordered."""

    __slots__ = ("_order", "_parse", "_real", "_woken", "name")

    def __init__(self, name: str, order: bytes, parse: Callable[[bytes], HostOrder]) -> None:
        self.name = name
        self._order = order
        self._parse = parse
        self._real: HostEntity | None = None
        self._woken: HostEntity | None = None
        """The same, as soon as it has gone on; before, it is still to do what it would have done all along."""

    @property
    def is_real(self) -> bool:
        """Whether it was built."""
        return self._real is not None

    @property
    def host(self) -> Host:
        """The host, which is built if it is not there yet; what it did so far it does when it is advanced."""
        return self._made().host

    def _made(self) -> HostEntity:
        if self._real is None:
            self._real = self._built()
        return self._real

    def _built(self) -> HostEntity:
        from cluster.host_entity import HostEntity  # noqa: PLC0415 - which has to know of this file

        return HostEntity(self._parse(self._order))

    def deliver(self, message: Message) -> None:
        """A message makes it real."""
        self._made().deliver(message)

    @property
    def events(self) -> int:
        """None, while it rests."""
        return 0 if self._real is None else self._real.events

    def next_event_ns(self) -> int:
        """Never, while it rests."""
        return NEVER if self._real is None else self._real.next_event_ns()

    def earliest_output_ns(self) -> int:
        """Never, while it rests."""
        return NEVER if self._real is None else self._real.earliest_output_ns()

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        """Do the events before ``horizon_ns``, of which there are none while it rests."""
        woken = self._woken
        if woken is None:
            if self._real is None:
                return Advance(horizon_ns, NEVER, 0)
            woken = self._woken = self._real
        return woken.advance(horizon_ns, event_budget)

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        """A message makes it real, and waits until it has done what it would have done by then.

        That is for nobody to see, so its next event is the message still.
        """
        if self._woken is not None:
            return self._woken.answer(message)
        self.deliver(message)
        return message.time_ns, 0, ()

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """The rows of the host at ``end_ns``; one that rested goes back to rest, so that few are real at a time.

        One that a message woke and that nobody has let go on since is still to come to ``end_ns``.
        """
        return caught_up(self._built() if self._real is None else self._real, end_ns).collect(end_ns)

    def gauges(self) -> dict[str, float]:
        """Live figures; of a host that rests, those that its order tells."""
        if self._real is not None:
            return self._real.gauges()
        from cluster.host_entity import MACHINES  # noqa: PLC0415 - as above

        guests = self._parse(self._order).guests
        counts = Counter(f"{MACHINES}{GuestState.RUNNING}/{one.generation.name}" for one in guests)
        return {
            "memory_assigned_bytes": float(sum(one.memory_bytes for one in guests)), "psp_busy_ratio": 0.0,
            "memory_bandwidth_ratio": 0.0, **{name: float(count) for name, count in sorted(counts.items())},
        }  # fmt: skip


def caught_up(entity: HostEntity, end_ns: int) -> HostEntity:
    """An entity that has done every event before ``end_ns``."""
    while entity.advance(end_ns, _MANY_EVENTS).reached_ns < end_ns:
        pass
    return entity

