"""Long rows of page commands at the security processor, which other commands may come between.

A migration of a SEV guest sends or receives memory page by page: hundreds of thousands of commands of one length, of
which each waits for the one before. They are no events of their own: the processor is shared out evenly among the
rows under way (each has one command in the mailbox at a time), and stands still for them while it serves somebody
else. Who comes with another command finds the one that is running, half done on the mean, and one each of the
others ahead. What a row takes longer than its commands it waits, for other rows and for whoever is served meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from node.clock import Clock
from node.neighbour_ledger import HOST
from node.psp_queue import PspQueue


@dataclass(slots=True)
class _Row:
    command: int
    service_ns: int
    commands: int
    left_ns: float
    done: Callable[[], None]
    waited: Callable[[int], None]
    waited_ns: float = 0.0

    @property
    def commands_left(self) -> int:
        """Those that were not begun."""
        return int(max(0.0, self.left_ns) // self.service_ns) if self.service_ns else 0


class PspStreams:
    """The rows under way on one host."""

    def __init__(self, clock: Clock, queue: PspQueue, promises: dict[str, int]) -> None:
        self._clock = clock
        self._queue = queue
        self._promises = promises
        self.blamed: Callable[[str, str, float], None] | None = None
        """Who hears, where somebody asks, that a row waited for somebody: another row by its name, or a VM."""
        self._rows: dict[str, _Row] = {}
        self._looked_ns = 0
        self._busy: list[tuple[int, int, str]] = []
        """When the processor serves others, and whom, from the time looked at on; in order."""
        self._epoch = 0

    def start(
        self,
        name: str,
        command: int,
        commands: int,
        service_ns: int,
        done: Callable[[], None],
        waited: Callable[[int], None] = lambda _: None,
        ahead: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Begin a row of so many commands; ``done`` is called when the last is through.

        What is left of one of the same name comes first, and nobody is called for that. ``waited`` is told before how
        long its commands waited, also those of a row that is broken off; ``ahead`` says who is served before the first
        of them, and for how long.
        """
        commands += self.stop(name)
        self._advance()
        if not self._rows:
            self._busy, at = [], self._clock.now_ns
            for who, ns in ahead:
                self._busy.append((at, at + round(ns), who))
                at += round(ns)
            if at < self._queue.free_ns:
                self._busy.append((at, self._queue.free_ns, HOST))
        self._rows[name] = _Row(command, service_ns, commands, float(commands * service_ns), done, waited)
        self._look_ahead()

    def stop(self, name: str) -> int:
        """Break a row off, if it is under way: what it has done stays done. How many commands are left of it."""
        if name not in self._rows:
            return 0
        self._advance()
        left = self._book(self._rows.pop(name))
        self._promises.pop(name, None)
        self._look_ahead()
        return left

    def left(self, name: str) -> int:
        """How many commands of a row were not begun, 0 for one that is not under way."""
        if name not in self._rows:
            return 0
        self._advance()
        return self._rows[name].commands_left

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

    def served(self, start_ns: int, end_ns: int, who: str = HOST) -> None:
        """The processor serves somebody else, now or in a while."""
        if self._rows:
            self._busy.append((start_ns, end_ns, who))
            self._look_ahead()

    def _advance(self) -> None:
        now_ns, looked_ns = self._clock.now_ns, self._looked_ns
        self._looked_ns = now_ns
        if not self._rows:
            self._busy.clear()
            return
        free_ns = now_ns - looked_ns
        for start, end, who in self._busy:
            busy_ns = max(0, min(end, now_ns) - max(start, looked_ns))
            free_ns -= busy_ns
            if self.blamed is not None and busy_ns:
                for name, row in self._rows.items():
                    if row.commands:
                        self.blamed(name, who, float(busy_ns))
        self._busy = [one for one in self._busy if one[1] > now_ns]
        share = free_ns / len(self._rows)
        for name, row in self._rows.items():
            row.left_ns -= share
            if not row.commands:
                continue  # Nothing of it waits.
            row.waited_ns += now_ns - looked_ns - share
            if self.blamed is not None and share:
                for other in self._rows:
                    if other != name:
                        self.blamed(name, other, share)

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
        for start, end, _ in self._busy:
            if at + need_ns <= start:
                break
            need_ns -= max(0.0, start - at)
            at = max(at, float(end))
        return int(-(-(at + need_ns) // 1))

    def _book(self, row: _Row) -> int:
        left = row.commands_left
        commands = row.commands - left
        self._queue.count(row.command, commands, commands * row.service_ns)
        waited_ns = round(row.waited_ns)
        self._queue.waited_ns += waited_ns
        row.waited(waited_ns)
        return left
