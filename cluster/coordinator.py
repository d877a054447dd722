"""The coordinator: how far everybody may go, and when the control plane may act.

Conservative synchronisation in a star. Let L >= 1 be the lookahead, the control
plane's latency. A host's message takes effect at the control plane at its own
time; what the control plane does at T reaches a host at T + L or later. A host
promises an earliest output; mail that is not handed over yet lowers it, since a
host may answer from the moment of delivery.

    promise    = min(earliest output of every host, time of every undelivered message)
    act at T   only if T < promise: then nothing that could come before is unknown
    horizon    = min(promise, the control plane's next time) + L, at most the end

Why an act is safe: T < promise is strict, so every message for T itself is
there too, and one step sees them all, in their order.

Why a window is safe: whatever the control plane does next, it does at its own
next time or at that of a message, which no host sends before the promise. L later it
arrives, not before the horizon. So within a window nobody can be reached by
anything that is not in its inbox, and hosts go there without asking.

Why it goes on: a shard lifts a promise to its host's next event, and after a
window all of these are at its horizon H or later. So is all new mail, by the same
sum as above. Once everything before the promise is acted on, the control plane's next
time is not before it either; the next horizon is at least H + L, or the end.

Why cuts change nothing: windows are half-open, [from, horizon). A shorter one
hands over the same messages, earlier or later, but always before their time, and an
inbox sorts them by (time, sender, sequence). So the same messages meet the same
events in the same order. Nor does it matter which hosts share a process.

Where all hosts are in this process there are no windows at all: ``cluster.together`` has
each of them, and the control plane, go on by the same rules.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.broken_rules import stood_still, undercut
from cluster.entity import NEVER, ControlPlane, Message
from cluster.inbox import ProtocolViolationError
from cluster.layout import Layout
from cluster.together import Together

PROGRESS_S = 1.0
_AT_FIRST = 16
"""Acts of the control plane after each of which whoever wants to may end a run where all are in this process.

Who asks for an end before a run begins, or as it does, gets little more than that. Later calls end when they have taken
long enough, or each act would cost as much again.
"""


UNBOUNDED = NEVER
"""Events of a call, where only its wall time bounds it."""


@dataclass(frozen=True, slots=True)
class ProgressFacts:
    """How far a run has come. Calls that go on with a window, because it took longer than one, are no round trips."""

    virtual_ns: int
    round_trips: int
    control_plane_acts: int
    events: int


@dataclass(frozen=True, slots=True)
class CoordinatorResult:
    """How a run ended: at ``reached_ns``, early if ``stopped`` says why."""

    reached_ns: int
    round_trips: int
    """Windows: how often everybody had to wait for everybody. None without windows, where nobody waits."""
    control_plane_acts: int
    """How often the control plane acted: the same in every layout, however windows are cut."""
    calls: int
    """Calls of the layout: more than windows where one took longer than a call may."""
    events: int
    stopped: str | None


class Coordinator:
    """Drives a layout's entities and a control plane to ``end_ns``.

    With ``windows`` hosts of this process go on in windows too, as those of others always do: for whoever wants to
    know how many there are. ``cut`` may shorten a window: it gets (from, horizon) and answers a time in between,
    ``horizon`` included. ``event_budget`` bounds the events of a call. Only tests have a reason for these two, and
    each implies windows.
    """

    def __init__(
        self,
        layout: Layout,
        control: ControlPlane,
        lookahead_ns: int,
        end_ns: int,
        *,
        windows: bool = False,
        cut: Callable[[int, int], int] | None = None,
        event_budget: int = UNBOUNDED,
        on_progress: Callable[[ProgressFacts], None] | None = None,
        should_stop: Callable[[], str | None] | None = None,
    ) -> None:
        if lookahead_ns < 1:
            raise ValueError(f"lookahead_ns: expected at least 1, got {lookahead_ns}: nobody could go anywhere")
        self._layout = layout
        self._control = control
        self._lookahead_ns = lookahead_ns
        self._end_ns = end_ns
        self._windows = windows or cut is not None or event_budget != UNBOUNDED
        self._cut = cut
        self._event_budget = event_budget
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._received: list[Message] = []
        self._mail: list[Message] = []
        self._promise_ns = NEVER
        self._following_ns = control.next_event_ns()
        """The control plane's next time of its own, as it said after its last step: only a step changes it."""
        self._reached_ns = 0
        self._round_trips = 0
        self._acts = 0
        self._calls = 0
        self._events = 0
        self._shown_s = time.monotonic()
        self._shown_ns = 0

    def run(self) -> CoordinatorResult:
        """Go to the end, or to where ``should_stop`` gives a reason."""
        together = None if self._windows else self._layout.together(self._lookahead_ns, self._end_ns)
        if together is not None:
            return self._run_together(together)
        self._promise_ns = self._layout.report().earliest_output_ns
        while True:
            horizon = min(self._end_ns, self._act(self._promise_ns) + self._lookahead_ns)
            if self._cut is not None and horizon > self._reached_ns + 1:
                horizon = self._cut(self._reached_ns, horizon)
            reached, stopped = self._go_to(horizon)
            # Whoever asks for an end where there is nothing left to do gets all there is.
            over = reached and horizon == self._end_ns
            if over and min([self._control_ns(), *(m.time_ns for m in self._mail)]) >= horizon:
                return self.result(None)
            if stopped is not None:
                return self.result(stopped)

    def _run_together(self, together: Together) -> CoordinatorResult:
        """The same where everybody is here: without windows, mail and answers go from hand to hand."""
        acts_ns, watched = self._following_ns, self._should_stop is not None or self._on_progress is not None
        while True:
            soon = watched and self._acts < _AT_FIRST
            events, acts, next_ns, acts_ns = together.go_on(self._control, acts_ns, until_acted=soon)
            self._calls += 1
            self._events += events
            self._acts += acts
            # Nobody says anything before either time, and an answer takes the lookahead. A host that a message wakes
            # catches up from its start on, which takes nothing back.
            reached_ns = min(next_ns, acts_ns + self._lookahead_ns, self._end_ns)
            self._reached_ns = max(self._reached_ns, reached_ns)
            if self._on_progress is not None:
                self._show(self._reached_ns)
            if next_ns >= self._end_ns and acts_ns >= self._end_ns:
                return self.result(None)
            if self._should_stop is not None and (reason := self._should_stop()) is not None:
                self._reached_ns = together.level(self._reached_ns)
                return self.result(reason)

    def _control_ns(self) -> int:
        following = self._following_ns
        return min(self._received[0].time_ns, following) if self._received else following

    def _act(self, promise: int) -> int:
        """Let the control plane act as far as nothing earlier can come: before when now nobody will do or say anything.

        All mail is on its way, so its own is all there is.
        """
        mail = self._mail
        while True:
            now = self._control_ns()
            if now >= promise or now >= self._end_ns:
                return min(promise, now)
            new, self._following_ns = self._control.step(now, self._received_at(now))
            self._acts += 1
            if self._following_ns <= now:
                raise stood_still(now)
            for message in new:
                if message.time_ns < now + self._lookahead_ns:
                    raise undercut(message, now)
                promise = min(promise, message.time_ns)
            mail += new

    def _received_at(self, now: int) -> list[Message]:
        received, messages = self._received, []
        while received and received[0].time_ns == now:
            messages.append(heapq.heappop(received))
        return messages

    def _go_to(self, horizon_ns: int) -> tuple[bool, str | None]:
        """A window: whether everybody got to its end, and why the run is to stop, if it is."""
        mail = self._letters()
        self._round_trips += 1
        while True:
            report = self._layout.advance(horizon_ns, mail, self._event_budget)
            mail = {}
            self._calls += 1
            self._events += report.events
            self._promise_ns = report.earliest_output_ns
            for message in report.outputs:
                if message[0] < self._reached_ns:
                    raise ProtocolViolationError(
                        f"{message.sender}: sent at {message.time_ns} ns, inside a window that began later"
                    )
                heapq.heappush(self._received, message)
            if self._on_progress is not None:
                self._show(min(report.next_event_ns, horizon_ns))
            reason = None if self._should_stop is None else self._should_stop()
            if report.reached:
                self._reached_ns = horizon_ns
            elif reason is not None:
                self._reached_ns = max(self._reached_ns, min(report.next_event_ns, horizon_ns))
            if report.reached or reason is not None:
                return report.reached, reason

    def _letters(self) -> dict[str, tuple[Message, ...]]:
        """The mail by receiver, for each in its order."""
        mail = self._mail
        if len(mail) > 1:
            mail.sort()
        letters: dict[str, tuple[Message, ...]] = {}
        for message in mail:
            receiver = message.receiver
            letters[receiver] = (*letters[receiver], message) if receiver in letters else (message,)
        mail.clear()
        return letters

    def _show(self, virtual_ns: int) -> None:
        now = time.monotonic()
        if self._on_progress is not None and now - self._shown_s >= PROGRESS_S:
            self._shown_s = now
            # A worker that is replaced goes a way again that was shown already.
            self._shown_ns = max(self._shown_ns, virtual_ns)
            self._on_progress(ProgressFacts(self._shown_ns, self._round_trips, self._acts, self._events))

    def result(self, stopped: str | None) -> CoordinatorResult:
        """How far everybody is."""
        return CoordinatorResult(
            self._reached_ns, self._round_trips, self._acts, self._calls, self._events, stopped
        )  # fmt: skip
