"""A run whose hosts are all in one process: nobody waits for anybody, and mail goes from hand to hand.

What ``cluster.coordinator`` proves of windows holds for each host by itself: it may go as far as nothing that is yet to
be said can reach it. Nothing is said before the first event of all, nor before what all have promised; an answer takes
the lookahead. So whoever has the first event goes on to the later of both and the lookahead, and the control plane
acts as soon as its time is before it. The same messages meet the same events in the same order as in windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from cluster.broken_rules import spoke_too_soon, wrong_advance
from cluster.entity import NEVER, Entity, Message
from cluster.inbox import ProtocolViolationError
from cluster.slices import CALL_S, Slices

_PART = 8
"""How many promises are looked at, on average, for each time that one goes on."""


class Stretch(NamedTuple):
    """How far hosts came: events that they did, the first that is left, and when the control plane acts next."""

    events: int
    next_ns: int
    acts_ns: int


class Together:
    """Entities by number, in their order, each with its next event; ``clock`` tells wall time."""

    def __init__(
        self, entities: Mapping[str, Entity], lookahead_ns: int, end_ns: int, clock: Callable[[], float]
    ) -> None:
        self._numbers = {name: number for number, name in enumerate(entities)}
        self._entities = list(entities.values())
        self._lookahead_ns = lookahead_ns
        self._end_ns = end_ns
        self._clock = clock
        self._slices = Slices()
        self._next = [entity.next_event_ns() for entity in self._entities]
        self._promises = [max(entity.next_event_ns(), entity.earliest_output_ns()) for entity in self._entities]
        self._promised_ns = min(self._promises, default=NEVER)
        """By all, when somebody last looked, or later."""
        self._first = [(time_ns, number) for number, time_ns in enumerate(self._next) if time_ns != NEVER]
        self._first.append((NEVER, len(self._next)))  # Nobody's, so that there is always a first.
        self._next.append(NEVER)
        heapify(self._first)
        self._acted_ns = -1
        """When the control plane acted last."""
        self._often = self._patience = 1 + len(entities) // _PART
        """How often one may go on before somebody looks again."""
        self._furthest_ns = 0
        """To where any went."""
        self.busy_s = 0.0
        """Wall time of all calls, but for the control plane's."""
        self.windows = 0
        """How many there would have been: each begins with an event that is not before the end of the last."""
        self._window_ns = 0
        """Where the last of them would have ended."""

    def post(self, message: Message) -> None:
        """Hand a message over. Raises ProtocolViolationError for one to nobody, or from the past."""
        number = self._numbers.get(message.receiver)
        if number is None:
            raise ProtocolViolationError(f"{message.sender}: sent a message to {message.receiver}, which is not here")
        self._entities[number].deliver(message)
        time_ns = message.time_ns
        if time_ns < self._next[number]:
            self._next[number] = time_ns
            heappush(self._first, (time_ns, number))
        if time_ns < self._promises[number]:
            self._promises[number] = time_ns
            if time_ns < self._promised_ns:
                self._promised_ns = time_ns

    def go_on(
        self, control_ns: int, heard: list[Message], act: Callable[[int], int], *, until_acted: bool = False
    ) -> Stretch:
        """Have hosts go on, and the control plane act, until all are through or for as long as a call may take.

        ``control_ns`` is when the control plane acts next. ``act`` has it do so and says when it will again. What hosts
        say goes to ``heard``, a heap: it acts on the first of that too. With ``until_acted`` the call ends with an act.
        """
        entities, following, first, promises = self._entities, self._next, self._first, self._promises
        end_ns, lookahead_ns, clock, slices = self._end_ns, self._lookahead_ns, self._clock, self._slices
        acts_ns, since_ns, done = control_ns, self._acted_ns, 0
        promised_ns, patience = self._promised_ns, self._patience
        furthest_ns, windows, window_ns = self._furthest_ns, self.windows, self._window_ns
        began_s = sliced_s = now_s = clock()
        end_s = now_s + CALL_S
        left = slices.events  # Until wall time is looked at.
        while True:
            next_ns, number = first[0]
            if following[number] != next_ns:
                heappop(first)
                continue
            silent_ns = next_ns if next_ns > promised_ns else promised_ns
            if acts_ns < silent_ns and acts_ns < end_ns:
                if now_s >= end_s:
                    break
                since_ns, before_s = acts_ns, clock()
                acts_ns = act(acts_ns)
                promised_ns, now_s = self._promised_ns, clock()
                took_s = now_s - before_s
                began_s, sliced_s = began_s + took_s, sliced_s + took_s
                if until_acted:
                    end_s = now_s
                continue
            if next_ns >= end_ns or now_s >= end_s:
                break
            horizon_ns = silent_ns + lookahead_ns
            if horizon_ns > end_ns:
                horizon_ns = end_ns
            if next_ns >= window_ns:
                windows, window_ns = windows + 1, horizon_ns
            if horizon_ns > furthest_ns:
                furthest_ns = horizon_ns
            entity = entities[number]
            while True:
                # One entity after another, not slice about: what an entity needs is in the processor's caches.
                reached_ns, next_ns, promise_ns, events, said = entity.advance(horizon_ns, left)
                if not events or reached_ns > horizon_ns:
                    raise wrong_advance(entity.name, events, horizon_ns, reached_ns)
                done += events
                for message in said:
                    time_ns = message.time_ns
                    if time_ns < promises[number] or time_ns <= since_ns:
                        raise spoke_too_soon(message, promises[number], since_ns)
                    heappush(heard, message)
                    if time_ns < acts_ns:
                        acts_ns = time_ns
                # Nothing is said without an event.
                promises[number] = next_ns if next_ns > promise_ns else promise_ns
                left -= events
                if left > 0:
                    break
                now_s = clock()
                slices.learn(now_s - sliced_s)
                left, sliced_s = slices.events, now_s
                if next_ns >= horizon_ns or now_s >= end_s:
                    break
            following[number] = next_ns
            if next_ns == NEVER:
                heappop(first)
            else:
                heapreplace(first, (next_ns, number))
            patience -= 1
            if not patience:
                # Quiet fleets go far on what all promise, and looking at that now and then costs others little.
                patience, promised_ns = self._often, min(promises)
                self._promised_ns = promised_ns
        self._acted_ns, self._patience, self._furthest_ns = since_ns, patience, furthest_ns
        self.windows, self._window_ns = windows, window_ns
        self.busy_s += clock() - began_s
        return Stretch(done, next_ns, acts_ns)

    def level(self, reached_ns: int) -> int:
        """Have all go as far as any went, if that does not take longer than a call may; how far all are then.

        What the control plane would do from now on reaches nobody before. Who is behind ``reached_ns``, because a
        message woke it that far on, catches up however long it takes: that is where the run was said to be. What
        hosts say is lost, so afterwards nothing goes on; their rows may be collected.
        """
        target_ns, end_s = max(reached_ns, self._furthest_ns), self._clock() + CALL_S
        for number, entity in enumerate(self._entities):
            next_ns = self._next[number]
            while next_ns < reached_ns or (next_ns < target_ns and self._clock() < end_s):
                came_ns, next_ns, _, events, _ = entity.advance(target_ns, self._slices.events)
                if not events:
                    raise wrong_advance(entity.name, events, target_ns, came_ns)
            self._next[number] = next_ns
        return min(target_ns, *self._next)
