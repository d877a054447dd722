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

from cluster.broken_rules import broken_promise, wrong_advance
from cluster.entity import NEVER, Entity, Message
from cluster.inbox import ProtocolViolationError
from cluster.slices import CALL_S, SLICE_EVENTS, SLICE_S, Slices

_NOBODY = ""
_PART = 8
"""How many promises are looked at, on average, for each time that one goes on."""


class Stretch(NamedTuple):
    """How far hosts came: events that they did, the first that is left, and when the control plane acts next."""

    events: int
    next_ns: int
    acts_ns: int


class Together:
    """Entities by name, each with its next event; ``clock`` tells wall time."""

    def __init__(
        self, entities: Mapping[str, Entity], lookahead_ns: int, end_ns: int, clock: Callable[[], float]
    ) -> None:
        self._entities = entities
        self._lookahead_ns = lookahead_ns
        self._end_ns = end_ns
        self._clock = clock
        self._slices = Slices()
        self._next = {name: entity.next_event_ns() for name, entity in entities.items()}
        self._first = [(time_ns, name) for name, time_ns in self._next.items() if time_ns != NEVER]
        self._first.append((NEVER, _NOBODY))  # So that there is always a first.
        self._next[_NOBODY] = NEVER
        heapify(self._first)
        self._promises = {name: max(self._next[name], one.earliest_output_ns()) for name, one in entities.items()}
        self._promised_ns = min(self._promises.values(), default=NEVER)
        """By all, when somebody last looked, or later."""
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
        time_ns, name = message[0], message[3]
        entity = self._entities.get(name)
        if entity is None:
            raise ProtocolViolationError(f"{message.sender}: sent a message to {name}, which is not here")
        entity.deliver((message,))
        if time_ns < self._next[name]:
            self._next[name] = time_ns
            heappush(self._first, (time_ns, name))
        if time_ns < self._promises[name]:
            self._promises[name] = time_ns
            self._promised_ns = min(self._promised_ns, time_ns)

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
        began_s = now_s = clock()
        end_s = now_s + CALL_S
        while True:
            next_ns, name = first[0]
            if following[name] != next_ns:
                heappop(first)
                continue
            silent_ns = next_ns if next_ns > promised_ns else promised_ns  # noqa: FURB136 - half as dear as a call
            if acts_ns < silent_ns and acts_ns < end_ns:
                if now_s >= end_s:
                    break
                since_ns = acts_ns
                acts_ns = act(acts_ns)
                promised_ns = self._promised_ns
                before_s, now_s = now_s, clock()
                began_s += now_s - before_s
                if until_acted:
                    end_s = now_s
                continue
            if next_ns >= end_ns or now_s >= end_s:
                break
            horizon_ns = min(end_ns, silent_ns + lookahead_ns)
            if next_ns >= window_ns:
                windows, window_ns = windows + 1, horizon_ns
            if horizon_ns > furthest_ns:  # noqa: PLR1730 - as above
                furthest_ns = horizon_ns
            entity, promise_ns = entities[name], promises[name]
            while True:
                # One entity after another, not slice about: what an entity needs is in the processor's caches.
                reached_ns, next_ns, next_promise_ns, events, said = entity.advance(horizon_ns, slices.events)
                if not events or reached_ns > horizon_ns:
                    raise wrong_advance(name, events, horizon_ns, reached_ns)
                done += events
                if said:
                    for message in said:
                        if message[0] < promise_ns:
                            raise broken_promise(name, message, promise_ns)
                        if message[0] <= since_ns:
                            raise ProtocolViolationError(
                                f"{name}: sent at {message[0]} ns, but the control plane has acted at {since_ns} ns"
                            )
                        heappush(heard, message)
                    acts_ns = min(acts_ns, heard[0][0])
                promise_ns = next_promise_ns
                before_s, now_s = now_s, clock()
                if now_s - before_s > SLICE_S or slices.events < SLICE_EVENTS:
                    slices.learn(now_s - before_s)
                if next_ns >= horizon_ns or now_s >= end_s:
                    break
            following[name] = next_ns
            if next_ns == NEVER:
                heappop(first)
            else:
                heapreplace(first, (next_ns, name))
            # Nothing is said without an event.
            promises[name] = next_ns if next_ns > promise_ns else promise_ns  # noqa: FURB136 - as above
            patience -= 1
            if not patience:
                # Quiet fleets go far on what all promise, and looking at that now and then costs others little.
                patience, promised_ns = self._often, min(promises.values())
                self._promised_ns = promised_ns
        self._acted_ns, self._patience, self._furthest_ns = since_ns, patience, furthest_ns
        self.windows, self._window_ns = windows, window_ns
        self.busy_s += now_s - began_s
        return Stretch(done, next_ns, acts_ns)

    def level(self, reached_ns: int) -> int:
        """Have all go as far as any went, if that does not take longer than a call may; how far all are then.

        What the control plane would do from now on reaches nobody before. Who is behind ``reached_ns``, because a
        message woke it that far on, catches up however long it takes: that is where the run was said to be. What
        hosts say is lost, so afterwards nothing goes on; their rows may be collected.
        """
        target_ns, end_s = max(reached_ns, self._furthest_ns), self._clock() + CALL_S
        for name, entity in self._entities.items():
            next_ns = self._next[name]
            while next_ns < reached_ns or (next_ns < target_ns and self._clock() < end_s):
                came_ns, next_ns, _, events, _ = entity.advance(target_ns, self._slices.events)
                if not events:
                    raise wrong_advance(name, events, target_ns, came_ns)
            self._next[name] = next_ns
        return min(target_ns, *self._next.values())
