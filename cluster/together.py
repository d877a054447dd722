"""A run whose hosts are all in one process: nobody waits for anybody, and mail goes from hand to hand.

What ``cluster.coordinator`` proves of windows holds for each host by itself: it may go as far as nothing that is yet to
be said can reach it. Nothing is said before the first event of all, nor before what all have promised; an answer takes
the lookahead. So whoever has the first event goes on to the later of both and the lookahead, and the control plane
acts as soon as its time is before it. Nothing that it does later reaches anybody as soon as what it does now, so who
has nothing to do before such mail answers it at once. The same messages meet the same events in the same order as in
windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from cluster.broken_rules import acted_already, broken_promise, wrong_advance, wrong_mail
from cluster.entity import NEVER, ControlPlane, Entity, Message
from cluster.slices import CALL_S, Slices

_OFTEN, _SELDOM = 8, 32
"""How many promises are looked at, on average, for each time that one goes on, and the other way round in a busy fleet.

There nobody's helps; where it falls silent, that many times are soon over.
"""
_ACTS = 15
"""How many acts of the control plane go untimed for each that is timed."""


class Stretch(NamedTuple):
    """How far hosts came: events that they did, the control plane's acts, the first event left, and its next act."""

    events: int
    acts: int
    next_ns: int
    acts_ns: int


class Together:
    """Entities by number, in their order, each with its next event; ``clock`` tells wall time."""

    def __init__(
        self, entities: Mapping[str, Entity], lookahead_ns: int, end_ns: int, clock: Callable[[], float]
    ) -> None:
        self._numbers = {name: number for number, name in enumerate(entities)}
        self._entities = list(entities.values())
        self._answers = [entity.answer for entity in self._entities]
        self._advances = [entity.advance for entity in self._entities]
        self._lookahead_ns = lookahead_ns
        self._end_ns = end_ns
        self._clock = clock
        self._slices = Slices()
        self._next = [entity.next_event_ns() for entity in self._entities]
        self._promises = [entity.earliest_output_ns() for entity in self._entities]
        """Of each, as it was when somebody last looked: it binds until mail comes."""
        self._promised_ns = min(map(max, self._promises, self._next), default=NEVER)
        """By all."""
        self._acted_ns = -1
        """When the control plane acted last."""
        self._first = [(time_ns, number) for number, time_ns in enumerate(self._next) if time_ns != NEVER]
        self._first.append((NEVER, len(self._next)))  # Nobody's, so that there is always a first.
        self._next.append(NEVER)
        heapify(self._first)
        self._beneath = [NEVER] * len(self._next)
        """What each had for its next event before mail came: that stands in the heap still, but for ``NEVER``.

        Mail for before the next event overwrites it; coming to that event clears it, and then nothing stands beneath.
        """
        self._heard: list[Message] = []
        """What hosts have said and the control plane has not acted on: a heap."""
        self._moved: list[int] = []
        """Who has gone on since then."""
        self._soon, self._seldom = 1 + len(entities) // _OFTEN, 1 + len(entities) * _SELDOM
        self._often = self._soon
        """How often one may go on before somebody looks again."""
        self._acts_ns = NEVER
        """When it acts next."""
        self.busy_s = 0.0
        """Wall time of all calls, but for the control plane's."""
        self.windows = 0
        """About how many there would have been: each begins with an event that is not before the end of the last.

        It is an estimate, which advice about workers is made of: promises are as old as the last look, so that
        there may be more than shards would have had, and who goes far in one go may pass some by.
        """
        self._window_ns = 0
        """Where the last of them would have ended."""

    def go_on(self, control: ControlPlane, acts_ns: int, *, until_acted: bool = False) -> Stretch:
        """Have hosts go on, and the control plane act, until all are through or for as long as a call may take.

        ``acts_ns`` is when it acts next, at first of its own accord. With ``until_acted`` the call ends with an act.
        Raises ProtocolViolationError for mail to nobody, or from the past, and where anybody breaks a promise.
        """
        numbers, following, first = self._numbers, self._next, self._first
        answers, advances = self._answers, self._advances
        beneath, heard, moved = self._beneath, self._heard, self._moved
        promises, promised_ns, acted_ns = self._promises, self._promised_ns, self._acted_ns
        end_ns, lookahead_ns, clock, slices = self._end_ns, self._lookahead_ns, self._clock, self._slices
        windows, window_ns = self.windows, self._window_ns
        events = acts = 0
        began_s = sliced_s = now_s = clock()
        end_s = now_s + CALL_S
        until_ns = end_ns  # Nowhere, once this call has taken long enough.
        # Wall time is looked at after so many events, and around one in so many acts, which stands for the others.
        left = given = slices.events
        untimed = every = 0 if until_acted else _ACTS
        while True:
            next_ns, number = first[0]
            # What comes first may be what somebody had planned and has no more: that is no later than what does.
            if (acts_ns < next_ns or acts_ns < promised_ns) and acts_ns < until_ns:
                if acts_ns <= acted_ns:
                    raise acted_already(heard, acted_ns)
                acted_ns, acts = acts_ns, acts + 1
                messages = []
                while heard and heard[0].time_ns == acted_ns:
                    messages.append(heappop(heard))
                if untimed:
                    untimed -= 1
                    mail, acts_ns = control.step(acted_ns, messages)
                else:
                    before_s, untimed = clock(), every
                    mail, acts_ns = control.step(acted_ns, messages)
                    now_s = clock()
                    took_s = (1 + every) * (now_s - before_s)
                    began_s, sliced_s = began_s + took_s, sliced_s + took_s
                    if until_acted or now_s >= end_s:
                        until_ns = -1
                if mail:
                    soonest_ns = acted_ns + lookahead_ns
                    if soonest_ns >= window_ns:
                        windows, window_ns = windows + 1, soonest_ns + lookahead_ns
                    # No other mail comes sooner: who has nothing to do before it answers in the same breath.
                    at_once_ns = soonest_ns if soonest_ns < end_ns and left > len(mail) else -1
                    for message in mail:
                        to = numbers.get(message.receiver)
                        if to is None:
                            raise wrong_mail(message, acted_ns, here=False)
                        time_ns = message.time_ns
                        if time_ns == at_once_ns and time_ns <= following[to]:
                            next_ns, done, said = answers[to](message)
                            for answer in said:
                                heappush(heard, answer)
                            if next_ns != following[to]:
                                beneath[to], following[to] = following[to], next_ns
                                heappush(first, (next_ns, to))
                            promises[to] = next_ns  # Nothing is said without an event.
                            if next_ns < promised_ns:
                                promised_ns = next_ns
                            moved.append(to)
                            left -= done
                            continue
                        if time_ns < soonest_ns:
                            raise wrong_mail(message, acted_ns, here=True)
                        self._entities[to].deliver(message)
                        if time_ns < following[to]:
                            beneath[to], following[to] = following[to], time_ns
                            heappush(first, (time_ns, to))
                        promises[to] = min(time_ns, promises[to])
                        promised_ns = min(time_ns, promised_ns)
                if heard and heard[0].time_ns < acts_ns:
                    acts_ns = heard[0].time_ns
                continue
            if following[number] != next_ns:
                heappop(first)
                continue
            if next_ns >= until_ns:
                break
            horizon_ns = (next_ns if next_ns > promised_ns else promised_ns) + lookahead_ns
            if horizon_ns > end_ns:
                horizon_ns = end_ns
            if next_ns >= window_ns:
                windows, window_ns = windows + 1, horizon_ns
            while True:
                # One entity after another, not slice about: what an entity needs is in the processor's caches.
                reached_ns, next_ns, done, said = advances[number](horizon_ns, left)
                if not done or reached_ns > horizon_ns:
                    raise wrong_advance(self._entities[number].name, done, horizon_ns, reached_ns)
                for message in said:
                    time_ns = message.time_ns
                    if time_ns < promises[number]:  # As it was when somebody looked last.
                        raise broken_promise(message.sender, message, promises[number])
                    heappush(heard, message)
                    if time_ns < acts_ns:
                        acts_ns = time_ns
                following[number] = next_ns
                left -= done
                if left > 0:
                    break
                now_s = clock()
                slices.learn(now_s - sliced_s)
                events, given, sliced_s = events + given - left, slices.events, now_s
                left = given
                if len(moved) >= self._often:
                    promised_ns = self._look(next_ns)
                if now_s >= end_s:
                    until_ns = -1
                    break
                if next_ns >= horizon_ns:
                    break
            moved.append(number)
            if next_ns == beneath[number]:
                heappop(first)
                beneath[number] = NEVER  # Else a nanosecond that is not done with would be popped in its turn.
            else:
                heapreplace(first, (next_ns, number))
        self._promised_ns, self._acted_ns, self._acts_ns = promised_ns, acted_ns, acts_ns
        self.windows, self._window_ns = windows, window_ns
        self.busy_s += max(0.0, clock() - began_s)
        return Stretch(events + given - left, acts, next_ns, acts_ns)

    def _look(self, first_ns: int) -> int:
        """What all promise; each who has moved since the last look is asked.

        Quiet fleets go far on that. Where it is no later than what comes first it helps nobody, and is looked at half
        as often from then on.
        """
        promises = self._promises
        for number in set(self._moved):
            promises[number] = max(promises[number], self._entities[number].earliest_output_ns())
        self._moved.clear()
        promised_ns = min(map(max, promises, self._next))  # Nothing is said without an event.
        self._often = min(2 * self._often, self._seldom) if promised_ns <= first_ns else self._soon
        return promised_ns

    def level(self, reached_ns: int) -> int:
        """Have all go as far as any may, if that does not take longer than a call may; how far all are then.

        What the control plane would do from now on reaches nobody before. Who is behind ``reached_ns``, because a
        message woke it that far on, catches up however long it takes: that is where the run was said to be. What
        hosts say is lost, so afterwards nothing goes on; their rows may be collected.
        """
        end_s = self._clock() + CALL_S
        # Somebody may have gone as far: nobody could be told less since.
        quiet_ns = min(self._acts_ns, min(map(max, self._promises, self._next), default=NEVER)) + self._lookahead_ns
        target_ns = max(reached_ns, min(quiet_ns, self._end_ns))
        for number, entity in enumerate(self._entities):
            next_ns = self._next[number]
            while next_ns < reached_ns or (next_ns < target_ns and self._clock() < end_s):
                came_ns, next_ns, events, _ = entity.advance(target_ns, self._slices.events)
                if not events:
                    raise wrong_advance(entity.name, events, target_ns, came_ns)
            self._next[number] = next_ns
        return min(target_ns, *self._next)
