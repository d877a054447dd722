"""One line that says how a run goes: a bar on a terminal, plain lines elsewhere. On standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cluster.progress import OnProgress, Progress
from cluster.units import DURATION


@contextlib.contextmanager
def progress_line(name: str) -> Iterator[OnProgress]:
    """Shows each glance it is called with, at most one a second where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, text="starting")

        def show(progress: Progress) -> None:
            total = None if progress.note else progress.duration_ns
            bar.update(task, total=total, completed=progress.virtual_ns, text=described(progress))

        yield show


def described(progress: Progress) -> str:
    """A glance in words."""
    troubles = "".join(f"; {trouble}" for trouble in progress.troubles)
    if progress.note:
        return progress.note + troubles
    running = sum(count for (state, _), count in progress.machines.items() if state == "running")
    trips = f", {progress.round_trips:,} round trips" if progress.round_trips else ""
    return (
        f"{DURATION.about(progress.virtual_ns)} of {DURATION.about(progress.duration_ns)}, "
        f"{running} machines running, {progress.events:,} events{trips}{troubles}"
    )


def _plain_lines(name: str) -> OnProgress:
    last = 0.0

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1 or not last:
            last = now
            sys.stderr.write(f"{name}: {described(progress)}\n")
            sys.stderr.flush()

    return show
