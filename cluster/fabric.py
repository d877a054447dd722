"""The network as a fluid: flows share links max-min, and shares change on a grid of virtual time.

Shares belong to the coordinator alone, so all sums are made in one place in one
order. Where several flows meet, rates change only at multiples of the grid, a
property of the model (TCP needs many round trips to find a share); a flow that
starts in between takes what its links have left until then, and what an ending
flow leaves is given away at the next grid point. Starts and ends are exact. A
flow alone on its links has its final rate at once, so it needs no grid point,
and nobody keeps books of it until another comes.

Max-min by progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2),
only for flows that are connected with a change through common links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import ceil
from typing import Any

from cluster.entity import NEVER
from cluster.topology import Topology

_NS = 1e9
_NO_CAP = float("inf")
Arrival = Callable[[Any, int], None]
"""What is done when the last byte of a flow is there: takes what it is about, and the time."""


class _Link:
    """One link of the topology, and what is on it."""

    __slots__ = ("capacity", "flows", "occupant", "used_rate")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.occupant: Flow | None = None
        """A flow that is on it, None for none."""
        self.flows: dict[Flow, None] = {}
        """All that are; none while the occupant has all of its links to itself."""
        self.used_rate = 0.0
        """Of these."""


Path = tuple[_Link, ...]
"""The links from one host to another."""


class Flow:
    """Bytes on their way. Whoever sent them may look at it, and break it off."""

    __slots__ = (
        "about", "arrived", "cap", "end_ns", "links", "number", "rate", "remaining", "size", "updated_ns"
    )  # fmt: skip

    def __init__(
        self, number: int, links: Path, cap: float, rate: float, size: float, now_ns: int,
        arrived: Arrival, about: Any,
    ) -> None:  # fmt: skip
        self.number = number
        self.links = links
        self.cap = cap
        self.rate = rate
        """At present."""
        self.size = self.remaining = size
        self.updated_ns = now_ns
        self.arrived = arrived
        self.about = about
        self.end_ns = NEVER
        """When its last byte is there at this rate; -1 when it is over."""

    def moved(self, now_ns: int) -> float:
        """Bytes that it has moved by a time, as it stands; changes nothing."""
        return self.size - max(0.0, self.remaining - self.rate * max(0, now_ns - self.updated_ns) / _NS)


def _ignored(_: Any, __: int) -> None:
    """Nobody waits for it."""


class Fabric:
    """Flows over a topology. Times are virtual nanoseconds, rates bytes per second.

    The caller goes from event to event: ``next_event_ns``, then ``advance`` to
    that time. Calling in between changes nothing.
    """

    def __init__(self, topology: Topology, reshare_grid_ns: int) -> None:
        self.topology = topology
        self._grid_ns = reshare_grid_ns
        self._links = [_Link(link.bytes_per_s) for link in topology.links]
        nobody = Flow(0, (), 0.0, 0.0, 0.0, NEVER, _ignored, None)
        self._ends: list[tuple[int, int, Flow]] = [(NEVER, 0, nobody)]
        """(time, flow's number, flow): when each ends, if it still does; nobody's is always there, to be the first."""
        self._changed: dict[_Link, None] = {}
        """Links whose flows are not the ones that were shared out last, in the order of the changes."""
        self._grid_point_ns = NEVER
        self.next_event_ns = NEVER
        """When a flow ends or shares change next, ``NEVER`` if nothing will."""
        self._started = 0

    def __len__(self) -> int:
        """How many flows there are."""
        return len({flow for link in self._links for flow in (link.occupant, *link.flows)} - {None})

    def path(self, source: str, destination: str) -> Path:
        """The links that bytes take from one host to another."""
        return tuple(map(self._links.__getitem__, self.topology.path(source, destination)))

    def start(
        self, path: Path, size_bytes: float, now_ns: int, cap_bytes_per_s: float = 0.0,
        arrived: Arrival = _ignored, about: Any = None,
    ) -> Flow:  # fmt: skip
        """Send bytes from now on; ``cap_bytes_per_s`` bounds the rate, 0 for none.

        ``advance`` tells when the last is there; what is ``arrived`` then, and about what, is the caller's.
        """
        self._started = number = self._started + 1
        rate = cap = cap_bytes_per_s or _NO_CAP
        alone = True
        for link in path:
            if link.occupant is not None:
                alone = False
            if link.capacity < rate:
                rate = link.capacity
        flow = Flow(number, path, cap, rate, size_bytes, now_ns, arrived, about)
        if not alone:
            self._join(flow, now_ns)
            return flow
        for link in path:
            link.occupant = flow
        if rate:
            flow.end_ns = end_ns = now_ns + ceil(size_bytes * _NS / rate)
            heappush(self._ends, (end_ns, number, flow))
            if end_ns < self.next_event_ns:
                self.next_event_ns = end_ns
        elif not size_bytes:  # Nothing takes no time, even where nothing is carried.
            self._plan_end(flow, now_ns)
            self._look_ahead()
        return flow

    def change(self, link: int, bytes_per_s: float, now_ns: int) -> None:
        """A link of the topology carries so much from the next grid point on, be it nothing."""
        changed = self._links[link]
        changed.capacity = bytes_per_s
        self._mark([changed], now_ns)
        self._look_ahead()

    def _join(self, flow: Flow, now_ns: int) -> None:
        """Put a flow beside others: until the next grid point, from which on they share, it has what they leave it."""
        links = flow.links
        self._mark(links, now_ns)
        flow.rate = max(0.0, min(flow.cap, *[link.capacity - link.used_rate for link in links]))
        for link in links:
            link.occupant = flow
            link.flows[flow] = None
            link.used_rate += flow.rate
        self._plan_end(flow, now_ns)
        self._look_ahead()

    def _plan_end(self, flow: Flow, now_ns: int) -> None:
        """When the rest of it has been sent at its rate."""
        if flow.remaining <= 0.0:
            flow.end_ns = now_ns
        elif flow.rate > 0.0:
            flow.end_ns = now_ns + ceil(flow.remaining * _NS / flow.rate)
        else:
            flow.end_ns = NEVER
            return
        heappush(self._ends, (flow.end_ns, flow.number, flow))

    def cancel(self, flow: Flow, now_ns: int) -> float:
        """Break a flow off; the bytes that it moved. ValueError for one that is over: its links may be others'."""
        if flow.end_ns < 0:
            raise ValueError(f"flow {flow.number}: is over, so it cannot be broken off")
        self._bring_up(flow, now_ns)
        self._take_out(flow, now_ns)
        self._look_ahead()
        return flow.size - flow.remaining

    def advance(self, now_ns: int) -> list[Flow]:
        """Go to a time: the flows that ended by then, in the order of their ends."""
        ended: list[Flow] = []
        ends = self._ends
        while self.next_event_ns <= now_ns:
            # What ends at a grid point frees its share before that is given away.
            if ends[0][0] <= self._grid_point_ns:
                end_ns, _, flow = heappop(ends)
                self._take_out(flow, end_ns)
                ended.append(flow)
            else:
                self._reshare(self._grid_point_ns)
            self._look_ahead()
        return ended

    def _look_ahead(self) -> None:
        """What comes next, past ends of flows that end at other times by now."""
        ends, grid_ns = self._ends, self._grid_point_ns
        end_ns, _, flow = ends[0]
        while flow.end_ns != end_ns:
            heappop(ends)
            end_ns, _, flow = ends[0]
        self.next_event_ns = end_ns if end_ns < grid_ns else grid_ns

    def _take_out(self, flow: Flow, now_ns: int) -> None:
        flow.end_ns = -1
        for link in flow.links:
            if link.flows:
                self._leave(flow, now_ns)
                return
            link.occupant = None

    def _leave(self, flow: Flow, now_ns: int) -> None:
        """Take a flow out from among others."""
        links = flow.links
        for link in links:
            del link.flows[flow]
            link.occupant = next(iter(link.flows), None)
            # An empty link carries exactly nothing, whatever rounding left.
            link.used_rate = link.used_rate - flow.rate if link.flows else 0.0
        if any(link.flows for link in links):
            self._mark(links, now_ns)

    def _mark(self, links: Iterable[_Link], now_ns: int) -> None:
        """The flows of these links change: shares are given out anew at the next grid point."""
        for link in links:
            self._changed[link] = None
            alone = link.occupant
            if alone is not None and not link.flows:
                for one in alone.links:
                    one.flows[alone] = None
                    one.used_rate = alone.rate
        self._grid_point_ns = min(self._grid_point_ns, -(-now_ns // self._grid_ns) * self._grid_ns)

    def _bring_up(self, flow: Flow, now_ns: int) -> None:
        flow.remaining = max(0.0, flow.remaining - flow.rate * (now_ns - flow.updated_ns) / _NS)
        flow.updated_ns = now_ns

    def _reshare(self, now_ns: int) -> None:
        self._grid_point_ns = NEVER
        changed, self._changed = self._changed, {}
        flows = self._connected(changed)
        for flow in flows:
            self._bring_up(flow, now_ns)
        for flow, rate in self._max_min(flows).items():
            if rate != flow.rate:
                for link in flow.links:
                    link.used_rate += rate - flow.rate
                flow.rate = rate
                self._plan_end(flow, now_ns)

    def _connected(self, links: Iterable[_Link]) -> list[Flow]:
        """Flows that share links with the given ones, directly or through others, oldest first."""
        seen = dict.fromkeys(links)
        todo = list(seen)
        found: dict[Flow, None] = {}
        while todo:
            for flow in todo.pop().flows:
                if flow not in found:
                    found[flow] = None
                    for link in flow.links:
                        if link not in seen:
                            seen[link] = None
                            todo.append(link)
        return sorted(found, key=lambda flow: flow.number)

    def _max_min(self, flows: list[Flow]) -> dict[Flow, float]:
        """Fill all flows evenly until a link is full or a cap is met; freeze those, and go on with the rest."""
        rates = dict.fromkeys(flows, 0.0)
        members: dict[_Link, int] = {}
        for flow in flows:
            for link in flow.links:
                members[link] = members.get(link, 0) + 1
        left = {link: link.capacity for link in members}
        rest = dict.fromkeys(flows)
        while rest:
            share = min((left[link] / count for link, count in members.items() if count), default=float("inf"))
            lowest = min(flow.cap for flow in rest)
            level = min(share, lowest)
            # Links that are full at this level; a little above it too, since sums round.
            full = {link for link, count in members.items() if count and left[link] / count <= level * (1 + 1e-12)}
            frozen = [flow for flow in rest if flow.cap <= level or not full.isdisjoint(flow.links)] or list(rest)
            for flow in frozen:
                del rest[flow]
                rates[flow] = min(level, flow.cap)
                for link in flow.links:
                    left[link] = max(0.0, left[link] - rates[flow])
                    members[link] -= 1
        return rates
