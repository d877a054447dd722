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
_ACTS = 16
"""How many acts of the control plane there are, at most, for each that is timed; fewer where they, or what is answered
in the same breath, are dear."""


class Stretch(NamedTuple):
    """How far hosts came: events that they did, the control plane's acts, the first event left, and its next act."""

    events: int
    acts: int
    next_ns: int
    acts_ns: int


class _Standing:
    """How far an entity is, and what it promises."""

    __slots__ = ("advance", "answer", "beneath_ns", "entity", "next_ns", "number", "promise_ns")

    def __init__(self, number: int, entity: Entity) -> None:
        self.number = number
        self.entity = entity
        self.answer, self.advance = entity.answer, entity.advance
        self.next_ns = entity.next_event_ns()
        """When its next event is."""
        self.beneath_ns = NEVER
        """What that was before mail came for before it: it stands in the heap still, unless it is ``NEVER``.

        More such mail overwrites it; coming to that event clears it, and then nothing stands beneath.
        """
        self.promise_ns = entity.earliest_output_ns()
        """As it was when somebody last looked: it binds until mail comes."""


class Together:
    """Entities in their order, each with its next event; ``clock`` tells wall time."""

    def __init__(
        self, entities: Mapping[str, Entity], lookahead_ns: int, end_ns: int, clock: Callable[[], float]
    ) -> None:
        self._seats = {name: _Standing(number, entity) for number, (name, entity) in enumerate(entities.items())}
        self._lookahead_ns = lookahead_ns
        self._end_ns = end_ns
        self._clock = clock
        self._slices, self._turns = Slices(), Slices(1, _ACTS)
        self._untimed_s = 0.0
        """Wall time of calls since an act was timed."""
        self._promised_ns = self._promise()
        """By all."""
        self._acted_ns = -1
        """When the control plane acted last."""
        self._first: list[tuple[int, int, _Standing | None]] = [
            (seat.next_ns, seat.number, seat) for seat in self._seats.values() if seat.next_ns != NEVER
        ]
        self._first.append((NEVER, len(entities), None))  # Nobody's, so that there is always a first.
        heapify(self._first)
        self._heard: list[Message] = []
        """What hosts have said and the control plane has not acted on: a heap."""
        self._moved: list[_Standing] = []
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
        seats, first, heard, moved = self._seats, self._first, self._heard, self._moved
        promised_ns, acted_ns = self._promised_ns, self._acted_ns
        end_ns, lookahead_ns, clock = self._end_ns, self._lookahead_ns, self._clock
        slices, turns = self._slices, self._turns
        windows, window_ns = self.windows, self._window_ns
        events = acts = 0
        began_s = sliced_s = now_s = clock()
        end_s, timed_s = now_s + CALL_S, now_s - self._untimed_s
        until_ns = end_ns  # Nowhere, once this call has taken long enough.
        # Wall time is looked at after so many events, and around one in so many acts, which stands for those before.
        left = given = slices.events
        timed, before = 1, 0
        while True:
            next_ns, number, seat = first[0]
            # What comes first may be what somebody had planned and has no more: that is no later than what does.
            if (acts_ns < next_ns or acts_ns < promised_ns) and acts_ns < until_ns:
                if acts_ns <= acted_ns:
                    raise acted_already(heard, acted_ns)
                acted_ns, acts = acts_ns, acts + 1
                messages = []
                while heard and heard[0].time_ns == acted_ns:
                    messages.append(heappop(heard))
                if acts < timed:
                    mail, acts_ns = control.step(acted_ns, messages)
                else:
                    before_s = clock()
                    mail, acts_ns = control.step(acted_ns, messages)
                    now_s = clock()
                    took_s = (acts - before) * (now_s - before_s)
                    began_s, sliced_s = began_s + took_s, sliced_s + took_s
                    turns.learn(now_s - timed_s)
                    timed, before, timed_s = acts + turns.events, acts, now_s
                    if until_acted or now_s >= end_s:
                        until_ns = -1
                if mail:
                    soonest_ns = acted_ns + lookahead_ns
                    if soonest_ns >= window_ns:
                        windows, window_ns = windows + 1, soonest_ns + lookahead_ns
                    # No other mail comes sooner: who has nothing to do before it answers in the same breath.
                    at_once_ns = soonest_ns if soonest_ns < end_ns and len(mail) <= given else -1
                    for message in mail:
                        to = seats.get(message.receiver)
                        time_ns = message.time_ns
                        if to is None or time_ns < soonest_ns:
                            raise wrong_mail(message, acted_ns, here=to is not None)
                        if time_ns == at_once_ns and time_ns <= to.next_ns:
                            next_ns, done, said = to.answer(message)
                            for answer in said:
                                if answer.time_ns < time_ns:
                                    raise broken_promise(answer.sender, answer, time_ns)
                                heappush(heard, answer)
                            if next_ns != to.next_ns:
                                to.beneath_ns, to.next_ns = to.next_ns, next_ns
                                heappush(first, (next_ns, to.number, to))
                            to.promise_ns = next_ns  # Nothing is said without an event.
                            if next_ns < promised_ns:
                                promised_ns = next_ns
                            moved.append(to)
                            left -= done
                            continue
                        to.entity.deliver(message)
                        if time_ns < to.next_ns:
                            to.beneath_ns, to.next_ns = to.next_ns, time_ns
                            heappush(first, (time_ns, to.number, to))
                        to.promise_ns = min(time_ns, to.promise_ns)
                        promised_ns = min(time_ns, promised_ns)
                    if left < 1:  # After one more event the clock is looked at.
                        given, left = given + 1 - left, 1
                if heard and heard[0].time_ns < acts_ns:
                    acts_ns = heard[0].time_ns
                continue
            if next_ns >= until_ns or seat is None:
                break
            if seat.next_ns != next_ns:
                heappop(first)
                continue
            horizon_ns = (next_ns if next_ns > promised_ns else promised_ns) + lookahead_ns
            if horizon_ns > end_ns:
                horizon_ns = end_ns
            if next_ns >= window_ns:
                windows, window_ns = windows + 1, horizon_ns
            while True:
                # One entity after another, not slice about: what an entity needs is in the processor's caches.
                reached_ns, next_ns, done, said = seat.advance(horizon_ns, left)
                if not done or reached_ns > horizon_ns:
                    raise wrong_advance(seat.entity.name, done, horizon_ns, reached_ns)
                for message in said:
                    time_ns = message.time_ns
                    if time_ns < seat.promise_ns:  # As it was when somebody looked last.
                        raise broken_promise(message.sender, message, seat.promise_ns)
                    heappush(heard, message)
                    if time_ns < acts_ns:
                        acts_ns = time_ns
                seat.next_ns = next_ns
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
            moved.append(seat)
            if next_ns == seat.beneath_ns:
                heappop(first)
                seat.beneath_ns = NEVER  # Else a nanosecond that is not done with would be popped in its turn.
            else:
                heapreplace(first, (next_ns, number, seat))
        self._promised_ns, self._acted_ns, self._acts_ns = promised_ns, acted_ns, acts_ns
        self.windows, self._window_ns = windows, window_ns
        now_s = clock()
        self._untimed_s = now_s - timed_s
        self.busy_s += max(0.0, now_s - began_s)
        return Stretch(events + given - left, acts, next_ns, acts_ns)

    def _look(self, first_ns: int) -> int:
        """What all promise; each who has moved since the last look is asked.

        Quiet fleets go far on that. Where it is no later than what comes first it helps nobody, and is looked at half
        as often from then on.
        """
        for seat in set(self._moved):
            seat.promise_ns = max(seat.promise_ns, seat.entity.earliest_output_ns())
        self._moved.clear()
        promised_ns = self._promise()
        self._often = min(2 * self._often, self._seldom) if promised_ns <= first_ns else self._soon
        return promised_ns

    def _promise(self) -> int:
        """What all promise, as far as is known: nothing is said without an event."""
        return min([max(seat.promise_ns, seat.next_ns) for seat in self._seats.values()], default=NEVER)

    def level(self, reached_ns: int) -> int:
        """Have all go as far as any may, if that does not take longer than a call may; how far all are then.

        What the control plane would do from now on reaches nobody before. Who is behind ``reached_ns``, because a
        message woke it that far on, catches up however long it takes: that is where the run was said to be. What
        hosts say is lost, so afterwards nothing goes on; their rows may be collected.
        """
        end_s = self._clock() + CALL_S
        # Somebody may have gone as far: nobody could be told less since.
        quiet_ns = min(self._acts_ns, self._promise()) + self._lookahead_ns
        target_ns = max(reached_ns, min(quiet_ns, self._end_ns))
        for seat in self._seats.values():
            while seat.next_ns < reached_ns or (seat.next_ns < target_ns and self._clock() < end_s):
                came_ns, seat.next_ns, events, _ = seat.advance(target_ns, self._slices.events)
                if not events:
                    raise wrong_advance(seat.entity.name, events, target_ns, came_ns)
        return min([target_ns, *[seat.next_ns for seat in self._seats.values()]])
