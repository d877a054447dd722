"""The fleet's control plane: it places VMs when they arrive and takes them down when their time is over.

It runs in the coordinator, at virtual times of its own, and reaches hosts only
by messages that take the control plane's latency.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import msgpack

from cluster.entity import NEVER, Message
from cluster.guest_body import guest_body
from cluster.placement import FirstFit
from node.guest import GuestSpec

NAME = "control"


@dataclass(frozen=True, slots=True)
class Order:
    """A VM that is wanted: when, for how long, and where if it is pinned."""

    guest: GuestSpec
    arrival_ns: int
    lifetime_ns: int | None = None
    pin: str | None = None


@dataclass(slots=True)
class ControlPlane:
    """Arrivals and departures in time order, and the answers of hosts."""

    orders: tuple[Order, ...]
    placement: FirstFit
    latency_ns: int
    unplaced: dict[str, str] = field(default_factory=dict)
    """VMs that no host took, with the reason."""
    assigned: dict[str, str] = field(default_factory=dict)
    """The host of each VM that was sent somewhere."""
    _by_name: dict[str, Order] = field(default_factory=dict)
    _timeline: list[tuple[int, int, str, str]] = field(default_factory=list)
    _tried: dict[str, frozenset[str]] = field(default_factory=dict)
    _entries: int = 0
    _sequence: int = 0

    def __post_init__(self) -> None:
        for order in self.orders:
            self._by_name[order.guest.name] = order
            self._enter(order.arrival_ns, "arrive", order.guest.name)

    def adopt(self, order: Order, host: str) -> None:
        """A VM that runs since before time zero: its departure is ours to see to."""
        self._by_name[order.guest.name] = order
        self.assigned[order.guest.name] = host
        if order.lifetime_ns is not None:
            self._enter(order.arrival_ns + order.lifetime_ns, "depart", order.guest.name)

    def next_event_ns(self) -> int:
        """Time of the next arrival or departure."""
        return self._timeline[0][0] if self._timeline else NEVER

    def step(self, now_ns: int, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Answer the messages that arrived by ``now_ns``, then do what the timeline has for it."""
        out: list[Message] = []
        for message in messages:
            name, reason = msgpack.unpackb(message.payload)
            if message.kind == "refused":
                self.placement.release(name)
                tried = self._tried.get(name, frozenset()) | {message.sender}
                self._tried[name] = tried
                self._send_to_a_host(now_ns, name, reason, out)
        while self._timeline and self._timeline[0][0] <= now_ns:
            _, _, what, name = heapq.heappop(self._timeline)
            if what == "arrive":
                self._send_to_a_host(now_ns, name, "no host has room", out)
            else:
                host = self.placement.release(name)
                if host is not None:
                    out.append(self._message(now_ns, host, "destroy", msgpack.packb(name)))
        return tuple(out)

    def _send_to_a_host(self, now_ns: int, name: str, reason: str, out: list[Message]) -> None:
        order = self._by_name[name]
        host = self.placement.place(order.guest, order.pin, self._tried.get(name, frozenset()))
        if host is None:
            self.unplaced[name] = reason
            return
        first = name not in self.assigned
        self.assigned[name] = host
        out.append(self._message(now_ns, host, "launch", msgpack.packb(guest_body(order.guest))))
        if first and order.lifetime_ns is not None:
            self._enter(order.arrival_ns + order.lifetime_ns, "depart", name)

    def _enter(self, time_ns: int, what: str, name: str) -> None:
        heapq.heappush(self._timeline, (time_ns, self._entries, what, name))
        self._entries += 1

    def _message(self, now_ns: int, host: str, kind: str, payload: bytes) -> Message:
        self._sequence += 1
        return Message(now_ns + self.latency_ns, NAME, self._sequence, host, kind, payload)
