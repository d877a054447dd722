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

from collections.abc import Iterable
from heapq import heappop, heappush

from cluster.entity import NEVER
from cluster.topology import Topology

_NS = 1e9
_NO_CAP = float("inf")


Name = int | str
"""Of a flow: whatever tells it from others."""


class _Link:
    """One link of the topology, and what is on it."""

    __slots__ = ("capacity", "flows", "occupant", "used_rate")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.occupant: _Flow | None = None
        """A flow that is on it, None for none."""
        self.flows: dict[Name, _Flow] = {}
        """All that are; none while the occupant has all of its links to itself."""
        self.used_rate = 0.0
        """Of these."""


_Path = tuple[_Link, ...]
"""The links from one host to another."""


class _Flow:
    __slots__ = ("cap", "end_ns", "links", "name", "number", "rate", "remaining", "size", "updated_ns")

    def __init__(
        self, name: Name, number: int, links: _Path, size: float, cap: float, rate: float, now_ns: int, end_ns: int
    ) -> None:
        self.name = name
        self.number = number
        self.links = links
        self.size = self.remaining = size
        self.cap = cap
        self.rate = rate
        self.updated_ns = now_ns
        self.end_ns = end_ns
        """When it ends at this rate; -1 when it is over."""


class Fabric:
    """Flows over a topology. Times are virtual nanoseconds, rates bytes per second.

    The caller goes from event to event: ``next_event_ns``, then ``advance`` to
    that time. Calling in between changes nothing.
    """

    def __init__(self, topology: Topology, reshare_grid_ns: int) -> None:
        self._topology = topology
        self._grid_ns = reshare_grid_ns
        self._links = [_Link(link.bytes_per_s) for link in topology.links]
        self._paths: dict[tuple[str, str], _Path] = {}
        """Of pairs of hosts that somebody has sent between."""
        self._flows: dict[Name, _Flow] = {}
        nobody = _Flow("", 0, (), 0.0, 0.0, 0.0, 0, NEVER)
        self._ends: list[tuple[int, int, _Flow]] = [(NEVER, 0, nobody)]
        """(time, flow's number, flow): when each ends, if it still does; nobody's is always there, to be the first."""
        self._changed: dict[_Link, None] = {}
        """Links whose flows are not the ones that were shared out last, in the order of the changes."""
        self._grid_point_ns = NEVER
        self.next_event_ns = NEVER
        """When a flow ends or shares change next, ``NEVER`` if nothing will."""
        self._started = 0

    def __len__(self) -> int:
        return len(self._flows)

    def _path(self, source: str, destination: str) -> _Path:
        path = self._paths[source, destination] = tuple(
            map(self._links.__getitem__, self._topology.path(source, destination))
        )
        return path

    def start(
        self, name: Name, source: str, destination: str, size_bytes: float, now_ns: int, cap_bytes_per_s: float = 0.0
    ) -> None:
        """Send bytes from now on; ``cap_bytes_per_s`` bounds the rate, 0 for none."""
        path = self._paths.get((source, destination)) or self._path(source, destination)
        self._started = number = self._started + 1
        rate = cap = cap_bytes_per_s or _NO_CAP
        alone = True
        for link in path:
            if link.occupant is not None:
                alone, rate = False, self._make_room(cap, path, now_ns)
                break
            if link.capacity < rate:
                rate = link.capacity
        end_ns = _end_ns(size_bytes, rate, now_ns)
        flow = self._flows[name] = _Flow(name, number, path, size_bytes, cap, rate, now_ns, end_ns)
        for link in path:
            link.occupant = flow
        if not alone:
            self._join(flow)
        if end_ns != NEVER:
            heappush(self._ends, (end_ns, number, flow))
            if end_ns < self.next_event_ns:
                self.next_event_ns = end_ns

    def _make_room(self, cap: float, path: _Path, now_ns: int) -> float:
        """Others share their links with a flow from the next grid point on: the rate that they leave it until then."""
        self._mark(path, now_ns)
        self.next_event_ns = min(self.next_event_ns, self._grid_point_ns)
        return max(0.0, min(cap, *[link.capacity - link.used_rate for link in path]))

    def _join(self, flow: _Flow) -> None:
        """Put a flow beside others."""
        for link in flow.links:
            link.flows[flow.name] = flow
            link.used_rate += flow.rate

    def cancel(self, name: Name, now_ns: int) -> float:
        """Break a flow off; the bytes that it moved."""
        flow = self._flows[name]
        self._bring_up(flow, now_ns)
        self._take_out(flow, now_ns)
        self._look_ahead()
        return flow.size - flow.remaining

    def rate(self, name: Name) -> float:
        """A flow's present rate."""
        return self._flows[name].rate

    def moved(self, name: Name, now_ns: int) -> float:
        """Bytes that a flow has moved by a time, as it stands; changes nothing."""
        flow = self._flows[name]
        left = flow.remaining - flow.rate * max(0, now_ns - flow.updated_ns) / _NS
        return flow.size - max(0.0, left)

    def advance(self, now_ns: int) -> list[Name]:
        """Go to a time: the flows that ended by then, in the order of their ends."""
        ended: list[Name] = []
        ends = self._ends
        while True:
            end_ns, _, flow = ends[0]
            if flow.end_ns != end_ns:
                heappop(ends)
            elif end_ns <= now_ns and end_ns <= self._grid_point_ns:
                # What ends at a grid point frees its share before that is given away.
                heappop(ends)
                flow.remaining = 0.0
                self._take_out(flow, end_ns)
                ended.append(flow.name)
            elif self._grid_point_ns <= now_ns:
                self._reshare(self._grid_point_ns)
            else:
                self.next_event_ns = min(end_ns, self._grid_point_ns)
                return ended

    def _look_ahead(self) -> None:
        ends, next_ns = self._ends, self._grid_point_ns
        while (first := ends[0])[0] != first[2].end_ns:
            heappop(ends)
        self.next_event_ns = first[0] if first[0] < next_ns else next_ns

    def _take_out(self, flow: _Flow, now_ns: int) -> None:
        del self._flows[flow.name]
        flow.end_ns = -1
        for link in flow.links:
            if link.flows:
                self._leave(flow, now_ns)
                break
            link.occupant = None

    def _leave(self, flow: _Flow, now_ns: int) -> None:
        """Take a flow out from among others."""
        links = flow.links
        for link in links:
            del link.flows[flow.name]
            link.occupant = next(iter(link.flows.values()), None)
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
                    one.flows[alone.name] = alone
                    one.used_rate = alone.rate
        self._grid_point_ns = min(self._grid_point_ns, -(-now_ns // self._grid_ns) * self._grid_ns)

    def _bring_up(self, flow: _Flow, now_ns: int) -> None:
        flow.remaining = max(0.0, flow.remaining - flow.rate * (now_ns - flow.updated_ns) / _NS)
        flow.updated_ns = now_ns

    def _reshare(self, now_ns: int) -> None:
        self._grid_point_ns = NEVER
        changed, self._changed = self._changed, {}
        flows = self._connected(changed)
        for flow in flows.values():
            self._bring_up(flow, now_ns)
        rates = self._max_min(flows)
        for name, flow in flows.items():
            if rates[name] != flow.rate:
                for link in flow.links:
                    link.used_rate += rates[name] - flow.rate
                flow.rate = rates[name]
                flow.end_ns = _end_ns(flow.remaining, flow.rate, now_ns)
                if flow.end_ns != NEVER:
                    heappush(self._ends, (flow.end_ns, flow.number, flow))

    def _connected(self, links: Iterable[_Link]) -> dict[Name, _Flow]:
        """Flows that share links with the given ones, directly or through others, oldest first."""
        seen = dict.fromkeys(links)
        todo = list(seen)
        found: dict[Name, _Flow] = {}
        while todo:
            for name, flow in todo.pop().flows.items():
                if name not in found:
                    found[name] = flow
                    for link in flow.links:
                        if link not in seen:
                            seen[link] = None
                            todo.append(link)
        return dict(sorted(found.items(), key=lambda item: item[1].number))

    def _max_min(self, flows: dict[Name, _Flow]) -> dict[Name, float]:
        """Fill all flows evenly until a link is full or a cap is met; freeze those, and go on with the rest."""
        rates: dict[Name, float] = {}
        members: dict[_Link, int] = {}
        for flow in flows.values():
            for link in flow.links:
                members[link] = members.get(link, 0) + 1
        left = {link: link.capacity for link in members}
        rest = dict(flows)
        while rest:
            share = min((left[link] / count for link, count in members.items() if count), default=float("inf"))
            lowest = min(flow.cap for flow in rest.values())
            level = min(share, lowest)
            # Links that are full at this level; a little above it too, since sums round.
            full = {link for link, count in members.items() if count and left[link] / count <= level * (1 + 1e-12)}
            frozen = [
                name for name, flow in rest.items() if flow.cap <= level or not full.isdisjoint(flow.links)
            ] or list(rest)
            for name in frozen:
                flow = rest.pop(name)
                rates[name] = min(level, flow.cap)
                for link in flow.links:
                    left[link] = max(0.0, left[link] - rates[name])
                    members[link] -= 1
        return rates


def _end_ns(size_bytes: float, rate: float, now_ns: int) -> int:
    """When so much has been sent at this rate."""
    if size_bytes <= 0.0 or rate == _NO_CAP:
        return now_ns
    return now_ns - int(-size_bytes * _NS / rate // 1) if rate > 0.0 else NEVER
