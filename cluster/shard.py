"""Several entities in one process, advanced together.

Within a window entities cannot meet, so each is taken to the horizon by itself,
and only those are touched that have mail or an event before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.entity import NEVER, Entity, Message
from cluster.inbox import ProtocolViolationError

EntityFactory = Callable[[bytes], Entity]


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a shard says after a window: minima over its entities, and what they sent."""

    next_event_ns: int
    earliest_output_ns: int
    events: int
    reached: bool
    """Whether every event before the horizon is done; if not, the same horizon is to be given again."""
    outputs: tuple[Message, ...]


class Shard:
    """Entities in a heap by next event."""

    def __init__(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> None:
        self._entities: dict[str, Entity] = {name: factory(spec) for name, spec in specs}
        self._next: dict[str, int] = {}
        self._emitters: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._reached_ns = 0
        for name in self._entities:
            self._note(name)

    def _note(self, name: str) -> None:
        entity = self._entities[name]
        following = entity.next_event_ns()
        if self._next.get(name) != following:
            self._next[name] = following
            if following != NEVER:
                heapq.heappush(self._heap, (following, name))
        # Nothing is said without an event; a promise that stands still must not hold the fleet.
        promise = max(entity.earliest_output_ns(), following)
        if promise == NEVER:
            self._emitters.pop(name, None)
        else:
            self._emitters[name] = promise

    def report(self) -> ShardReport:
        """The shard as it stands."""
        return self._report(0, reached=True, outputs=[])

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """Deliver mail and do every event before the horizon, as far as the budget reaches."""
        for name, messages in mail.items():
            entity = self._entities.get(name)
            if entity is None:
                raise ProtocolViolationError(f"{messages[0].sender}: sent a message to {name}, which is not here")
            if (earliest := min(messages).time_ns) < self._reached_ns:
                raise ProtocolViolationError(f"{name}: got a message for {earliest} ns after {self._reached_ns} ns")
            entity.deliver(messages)
            self._note(name)
        outputs: list[Message] = []
        done = 0
        while done < event_budget:
            first = self._first_before(horizon_ns)
            if first is None:
                break
            name = first
            promise = self._emitters.get(name, NEVER)
            advance = self._entities[name].advance(horizon_ns, event_budget - done)
            if advance.events == 0:
                raise ProtocolViolationError(f"{name}: did nothing, with an event at {self._next[name]} ns to do")
            done += advance.events
            for message in advance.outputs:
                if message.time_ns < promise:
                    raise ProtocolViolationError(
                        f"{name}: sent at {message.time_ns} ns, but had promised nothing before {promise} ns"
                    )
            outputs.extend(advance.outputs)
            self._note(name)
        reached = self._first_before(horizon_ns) is None
        if reached:
            self._reached_ns = max(self._reached_ns, horizon_ns)
        return self._report(done, reached=reached, outputs=outputs)

    def _first_before(self, horizon_ns: int) -> str | None:
        heap = self._heap
        while heap:
            time_ns, name = heap[0]
            if self._next[name] != time_ns:
                heapq.heappop(heap)
            elif time_ns < horizon_ns:
                return name
            else:
                return None
        return None

    def _report(self, events: int, *, reached: bool, outputs: list[Message]) -> ShardReport:
        self._first_before(0)
        following = self._heap[0][0] if self._heap else NEVER
        promise = min(self._emitters.values(), default=NEVER)
        return ShardReport(following, promise, events, reached, tuple(sorted(outputs)))

    def collect(self, end_ns: int) -> dict[str, dict[str, list[dict[str, object]]]]:
        """Rows by entity and table."""
        return {name: entity.collect(end_ns) for name, entity in self._entities.items()}

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures by entity."""
        return {name: entity.gauges() for name, entity in self._entities.items()}
