"""How far a long benchmark has come, on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY_S = 10.0
"""Between two plain lines."""
Tell = Callable[[int, int], None]
"""Called with how many are done, of how many."""


@contextlib.contextmanager
def bench_line(name: str, what: str) -> Iterator[Tell]:
    """Shows what a benchmark tells. ``what`` names the things it counts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(name, what)
        return
    count = MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), count, TextColumn(what), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(name: str, what: str) -> Tell:
    told_s = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= EVERY_S:
            told_s = now_s
            sys.stderr.write(f"{name}: {done:,} of {total:,} {what}\n")
            sys.stderr.flush()

    return tell
