"""Long rows of page commands at the security processor, which other commands may come between.

A migration of a SEV guest sends or receives memory page by page: hundreds of thousands of commands of one length, of
which each waits for the one before. They are no events of their own: the processor is shared out evenly among the
rows under way (each has one command in the mailbox at a time), and stands still for them while it serves somebody
else. Who comes with another command finds the one that is running, half done on the mean, and one each of the
others ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.clock import Clock
from node.psp_queue import PspQueue


@dataclass(slots=True)
class _Row:
    command: int
    service_ns: int
    commands: int
    left_ns: float
    done: Callable[[], None]


class PspStreams:
    """The rows under way on one host."""

    def __init__(self, clock: Clock, queue: PspQueue, promises: dict[str, int]) -> None:
        self._clock = clock
        self._queue = queue
        self._promises = promises
        self._rows: dict[str, _Row] = {}
        self._looked_ns = 0
        self._busy: list[tuple[int, int]] = []
        """When the processor serves others, from the time looked at on; in order."""
        self._epoch = 0

    def start(self, name: str, command: int, commands: int, service_ns: int, done: Callable[[], None]) -> None:
        """Begin a row of so many commands; ``done`` is called when the last is through. One of the same name ends."""
        self.stop(name)
        self._advance()
        if not self._rows:
            self._busy = [(self._clock.now_ns, self._queue.free_ns)]  # What was served before it came.
        self._rows[name] = _Row(command, service_ns, commands, float(commands * service_ns), done)
        self._look_ahead()

    def stop(self, name: str) -> None:
        """Break a row off, if it is under way: what it has done stays done."""
        if name in self._rows:
            self._advance()
            self._book(self._rows.pop(name))
            self._promises.pop(name, None)
            self._look_ahead()

    def ahead_ns(self) -> int:
        """How long somebody else's command waits for those of rows that are in the mailbox before it."""
        return sum([ns for _, ns in self.ahead()])

    def ahead(self) -> list[tuple[str, int]]:
        """The same by rows' names."""
        found = [(name, row.service_ns) for name, row in self._rows.items()]
        if found:
            name, service_ns = found[0]
            found[0] = name, service_ns - service_ns // 2
        return found

    def served(self, start_ns: int, end_ns: int) -> None:
        """The processor serves somebody else, now or in a while."""
        if self._rows:
            self._busy.append((start_ns, end_ns))
            self._look_ahead()

    def _advance(self) -> None:
        now_ns, looked_ns = self._clock.now_ns, self._looked_ns
        self._looked_ns = now_ns
        if not self._rows:
            self._busy.clear()
            return
        free_ns = now_ns - looked_ns
        for start, end in self._busy:
            free_ns -= max(0, min(end, now_ns) - max(start, looked_ns))
        self._busy = [one for one in self._busy if one[1] > now_ns]
        share = free_ns / len(self._rows)
        for row in self._rows.values():
            row.left_ns -= share

    def _look_ahead(self) -> None:
        """Find when the next row is through, if nobody else comes, and wake then."""
        self._advance()
        self._epoch += 1
        if not self._rows:
            return
        epoch, now_ns = self._epoch, self._clock.now_ns
        for name, row in self._rows.items():
            # The promise of each is as if the others were gone.
            self._promises[name] = self._after(now_ns, max(0.0, row.left_ns))
        least_ns = min(row.left_ns for row in self._rows.values())
        end_ns = self._after(now_ns, max(0.0, least_ns) * len(self._rows))

        def through() -> None:
            if self._epoch != epoch:
                return
            self._advance()
            ended = [name for name, row in self._rows.items() if row.left_ns <= 1.0]
            done = []
            for name in ended:
                row = self._rows.pop(name)
                row.left_ns = 0.0
                self._book(row)
                del self._promises[name]
                done.append(row.done)
            self._look_ahead()
            for one in done:
                one()

        self._clock.after(end_ns - now_ns, through)

    def _after(self, now_ns: int, need_ns: float) -> int:
        """When so much of the processor's free time has passed."""
        at = float(now_ns)
        for start, end in self._busy:
            if at + need_ns <= start:
                break
            need_ns -= max(0.0, start - at)
            at = max(at, float(end))
        return int(-(-(at + need_ns) // 1))

    def _book(self, row: _Row) -> None:
        commands = row.commands - int(max(0.0, row.left_ns) // row.service_ns) if row.service_ns else row.commands
        self._queue.count(row.command, commands, commands * row.service_ns)
