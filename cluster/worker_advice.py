"""Whether more workers would pay, or fewer: worked out from what the first windows took.

A call to workers takes as long as the busiest of them works, and what it costs to
ask and to answer. With other numbers of workers the same work is shared otherwise,
no more evenly than it is now, and asking costs the same. One process alone does not know how evenly: it is
taken to be shared as its hosts' events would be. Where its hosts go on without windows, workers would be asked in
each that there would have been, and again where one takes longer than a call may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.slices import CALL_S

ENOUGH_S = 1.0
"""Wall time of windows from which advice is given."""
ENOUGH_CALLS = 3
WORTH = 1.15
"""What is less than so many times as fast is not worth a word."""
RAY_CALL_S = 0.0015
"""What a call to Ray workers costs beside their work, where none was measured (``sevfleet bench sync``)."""


@dataclass(slots=True)
class WorkerAdvice:
    """Takes the measures of calls until they are enough, then has its ``text``."""

    workers: int
    """Workers of Ray; 0 for layout inline."""
    hosts: int
    cores: int
    loads: Callable[[], Sequence[int]] = tuple
    """Events of each host so far, in the order in which hosts are dealt out; () where nobody knows."""
    text: str = ""
    _calls: int = 0
    _wall_s: float = 0.0
    _busy_s: float = 0.0
    _longest_s: float = 0.0

    def note(self, wall_s: float, busy_s: Sequence[float]) -> None:
        """A call took ``wall_s`` here, and of that ``busy_s`` in each worker that had something to do."""
        if self.text or not busy_s:
            return
        self._calls += 1
        self._wall_s += wall_s
        self._busy_s += sum(busy_s)
        self._longest_s += max(busy_s)
        self._judge()

    def hear(self, busy_s: float, windows: int) -> None:
        """Hosts have gone on for so long here, all told, and through what would have been so many windows."""
        if not self.text:
            calls = windows + int(busy_s / CALL_S)
            self._calls, self._wall_s, self._busy_s, self._longest_s = calls, busy_s, busy_s, busy_s
            self._judge()

    def _judge(self) -> None:
        if self._calls >= ENOUGH_CALLS and self._wall_s >= ENOUGH_S:
            self.text = self._advice()

    def _advice(self) -> str:
        most = max(1, min(self.cores, self.hosts))
        loads = self.loads() if self.workers <= 1 else ()
        choices = {0: self._busy_s} | {workers: self._expected_s(workers, loads) for workers in range(1, most + 1)}
        best = min(choices, key=lambda workers: (choices[workers], workers))
        gain = self._wall_s / choices[best]
        if best == self.workers or gain < WORTH:
            return f"neither more workers nor fewer would pay ({self._spent()})"
        name = f"layout packed with {best} worker{'s' * (best > 1)}" if best else "layout inline"
        return f"{name} would be about {gain:.1f} times as fast, once it is up ({self._spent()})"

    def _expected_s(self, workers: int, loads: Sequence[int]) -> float:
        """Wall time of the same calls with so many workers."""
        asking_s = RAY_CALL_S * self._calls if not self.workers else max(0.0, self._wall_s - self._longest_s)
        if whole := sum(loads):
            return self._busy_s * max(sum(loads[number::workers]) for number in range(workers)) / whole + asking_s
        # The share of the work that nobody else could do meanwhile (Amdahl).
        alone = 0.0
        if self.workers > 1 and self._busy_s:
            alone = min(1.0, max(0.0, (self._longest_s * self.workers / self._busy_s - 1) / (self.workers - 1)))
        return self._busy_s * (alone + (1 - alone) / workers) + asking_s

    def _spent(self) -> str:
        """What the advice follows from."""
        waited = max(0.0, self._wall_s - self._longest_s) / self._wall_s
        return f"of the first {self._wall_s:.1f} s workers were busy for {self._busy_s:.1f} s, {waited:.0%} was waiting"
