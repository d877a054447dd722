"""How far a sweep has come, in one line on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from cluster.units import DURATION

EVERY_S = 1.0
NEWS_S = 3.0
"""How long something is told that happened: longer than from one glance to the next."""


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """One glance at a sweep. ``kept`` runs were done before it began; they are among ``done``."""

    runs: int
    done: int
    kept: int = 0
    failed: int = 0
    under_way: int = 0
    left_s: float | None = None
    """An estimate of the wall time that is left, None before there is one."""
    trouble: str = ""
    """What was out of the ordinary a moment ago: Ray lost a process while it started, and was started once more."""


OnSweepProgress = Callable[[SweepProgress], None]


def described(progress: SweepProgress) -> str:
    """A glance in words."""
    parts = [f"{progress.done:,} of {progress.runs:,} runs done"]
    if progress.kept:
        parts.append(f"{progress.kept:,} of them before")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.under_way:
        parts.append(f"{progress.under_way} under way")
    if progress.left_s is not None and progress.done < progress.runs:
        parts.append(f"about {DURATION.about(round(max(1.0, progress.left_s)) * 10**9)} left")
    return ", ".join(parts) + (f"; {progress.trouble}" if progress.trouble else "")


@contextlib.contextmanager
def sweep_line(name: str) -> Iterator[OnSweepProgress]:
    """Shows each glance it is called with."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(name)
        return
    with Bar(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
             console=console, transient=True) as bar:  # fmt: skip
        task = bar.add_task(name, total=None, text="starting")
        yield lambda progress: bar.update(task, total=progress.runs, completed=progress.done, text=described(progress))


def _plain_lines(name: str) -> OnSweepProgress:
    def show(progress: SweepProgress) -> None:
        sys.stderr.write(f"{name}: {described(progress)}\n")
        sys.stderr.flush()

    return show


class Pace:
    """Tells of a sweep about once a second, and guesses from the runs so far what is left."""

    def __init__(self, runs: int, kept: int, tell: OnSweepProgress | None) -> None:
        self._runs = runs
        self._kept = kept
        self._tell = tell
        self._done = kept
        self._failed = 0
        self._began_s = time.monotonic()
        self._told_s = float("-inf")
        self._end_s: float | None = None
        self._news, self._happened_s = "", float("-inf")

    def happened(self, what: str) -> None:
        """Something out of the ordinary, to be told for a moment."""
        self._news, self._happened_s = what, time.monotonic()

    def finished(self, *, failed: bool) -> None:
        """One more run is over."""
        self._done += 1
        self._failed += failed
        now_s = time.monotonic()
        # Guessed when a run ends, and only then: in between, time spent is no news of how long runs take.
        self._end_s = now_s + (now_s - self._began_s) / (self._done - self._kept) * (self._runs - self._done)

    def under_way(self, count: int) -> None:
        """So many are under way now; called often."""
        now_s = time.monotonic()
        if self._tell is None or now_s - self._told_s < EVERY_S:
            return
        self._told_s = now_s
        left_s = None if self._end_s is None else self._end_s - now_s
        trouble = self._news if now_s - self._happened_s <= NEWS_S else ""
        self._tell(SweepProgress(self._runs, self._done, self._kept, self._failed, count, left_s, trouble))
