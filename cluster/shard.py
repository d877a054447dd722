"""Several entities in one process, advanced together.

Within a window entities cannot meet, so each is taken to the horizon by itself,
and only those are touched that have mail or an event before it.

A call ends after about ``CALL_S`` of wall time, so that progress and Ctrl-C
live. Here is the only clock that may do that: from outside nobody knows how
much the next events cost. An entity is advanced in slices, and the clock is read
between them. Where a call ends is no part of a result, as cuts of windows are
not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cluster.broken_rules import broken_promise, wrong_advance
from cluster.entity import Entity, Message
from cluster.inbox import ProtocolViolationError
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S, Slices
from cluster.soonest import Soonest
from cluster.together import Together

EntityFactory = Callable[[bytes], Entity]


class ShardReport(NamedTuple):
    """What a shard says after a window: minima over its entities, and what they sent."""

    next_event_ns: int
    earliest_output_ns: int
    events: int
    reached: bool
    """Whether every event before the horizon is done; if not, the same horizon is to be given again."""
    outputs: tuple[Message, ...]
    busy_s: float = 0.0
    """Wall time of the call where the shard is."""


class Shard:
    """Entities by next event and by promise. Only tests have a reason to hand in a clock."""

    def __init__(
        self,
        factory: EntityFactory,
        specs: Sequence[tuple[str, bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entities: dict[str, Entity] = {name: factory(spec) for name, spec in specs}
        self._clock = clock
        self._slices = Slices()
        self._next = Soonest()
        self._promises = Soonest()
        self._reached_ns = 0
        for name, entity in self._entities.items():
            self._note(name, entity.next_event_ns(), entity.earliest_output_ns())

    def _note(self, name: str, following_ns: int, promise_ns: int) -> None:
        self._next.put(name, following_ns)
        # Nothing is said without an event; a promise that stands still must not hold the fleet.
        self._promises.put(name, max(following_ns, promise_ns))

    def report(self) -> ShardReport:
        """The shard as it stands."""
        return self._report(self._next.first()[0], 0, reached=True, outputs=[])

    def advance(self, horizon_ns: int, mail: Mapping[str, tuple[Message, ...]], event_budget: int) -> ShardReport:
        """Deliver mail and do every event before the horizon, as far as budget and wall time of a call reach."""
        called = self._deliver(mail, horizon_ns) if mail else []
        outputs: list[Message] = []
        clock, following, promises, slices = self._clock, self._next, self._promises, self._slices
        done = 0
        now_s = clock()
        end_s = now_s + CALL_S
        while done < event_budget and now_s < end_s:
            first_ns, name = called.pop() if called else following.first()
            if first_ns >= horizon_ns:
                break  # Who was called comes before it, so nobody is left.
            entity, promise_ns = self._entities[name], promises[name]
            promise_ns = min(promise_ns, first_ns)
            # One entity after another, not slice about: what an entity needs is in the processor's caches.
            while True:
                left = event_budget - done
                reached_ns, first_ns, events, said = entity.advance(horizon_ns, min(left, slices.events))
                if events == 0 or reached_ns > horizon_ns:
                    raise wrong_advance(name, events, horizon_ns, reached_ns)
                done += events
                if said:
                    for message in said:
                        if message[0] < promise_ns:
                            raise broken_promise(name, message, promise_ns)
                    outputs += said
                promise_ns = entity.earliest_output_ns()
                following.put(name, first_ns)
                promises.put(name, max(first_ns, promise_ns))  # As ``_note`` does.
                before_s, now_s = now_s, clock()
                if now_s - before_s > SLICE_S or slices.events < SLICE_EVENTS:
                    slices.learn(now_s - before_s)
                if first_ns >= horizon_ns or done >= event_budget or now_s >= end_s:
                    break
        else:
            for first_ns, name in called:
                self._call(name, first_ns)
            first_ns = following.first()[0]
        reached = first_ns >= horizon_ns
        if reached:
            self._reached_ns = max(self._reached_ns, horizon_ns)
        return self._report(first_ns, done, reached=reached, outputs=outputs)

    def together(self, lookahead_ns: int, end_ns: int) -> Together:
        """The entities, for whoever has them go on without windows; from then on they may not be advanced here."""
        return Together(self._entities, lookahead_ns, end_ns, self._clock)

    def _deliver(self, mail: Mapping[str, tuple[Message, ...]], horizon_ns: int) -> list[tuple[int, str]]:
        """Hand mail over; who has some before the horizon, and from when on."""
        called = []
        for name, messages in mail.items():
            entity = self._entities.get(name)
            if entity is None:
                raise ProtocolViolationError(f"{messages[0].sender}: sent a message to {name}, which is not here")
            if (earliest := (min(messages) if len(messages) > 1 else messages[0]).time_ns) < self._reached_ns:
                raise ProtocolViolationError(f"{name}: got a message for {earliest} ns after {self._reached_ns} ns")
            for message in messages:
                entity.deliver(message)
            if earliest < horizon_ns:
                called.append((earliest, name))
            else:
                self._call(name, earliest)
        return called

    def _call(self, name: str, time_ns: int) -> None:
        """From ``time_ns`` on an entity may do and say what it likes; it is asked once it was advanced."""
        self._next.put(name, min(self._next[name], time_ns))
        self._promises.put(name, min(self._promises[name], time_ns))

    def _report(self, first_ns: int, events: int, *, reached: bool, outputs: list[Message]) -> ShardReport:
        if len(outputs) > 1:
            outputs.sort()
        return ShardReport(first_ns, self._promises.first()[0], events, reached, tuple(outputs))

    def collect(self, end_ns: int) -> dict[str, dict[str, list[dict[str, object]]]]:
        """Rows by entity and table."""
        return {name: entity.collect(end_ns) for name, entity in self._entities.items()}

    def loads(self) -> list[int]:
        """Events that each entity has done so far, in their order."""
        return [entity.events for entity in self._entities.values()]

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures by entity."""
        return {name: entity.gauges() for name, entity in self._entities.items()}
