"""Processes that belong to one another: who is below whom, and an end to all of them.

A process is known by its number and the time it started, because numbers are
used again. Read from ``/proc``; where there is none, a family is empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

Process = tuple[int, int]
"""Number and start time, in the kernel's ticks since boot."""

_PROC = Path("/proc")
_STATE, _PARENT, _USER, _SYSTEM, _START = 0, 1, 11, 12, 19
"""Fields of /proc/PID/stat after the command's name, proc(5)."""
_LOOK_AGAIN_S = 0.02


def family(roots: Iterable[int]) -> frozenset[Process]:
    """The live processes with these numbers and all below them."""
    parents: dict[int, tuple[int, Process]] = {}
    if _PROC.is_dir():
        for folder in _PROC.iterdir():
            if folder.name.isdecimal() and (fields := _stat(int(folder.name))) is not None:
                pid = int(folder.name)
                parents[pid] = int(fields[_PARENT]), (pid, int(fields[_START]))
    found = {root for root in roots if root in parents}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return frozenset(parents[pid][1] for pid in found)


def process_of(pid: int) -> Process:
    """The live process of this number; start 0 where the kernel does not tell."""
    fields = _stat(pid)
    return pid, 0 if fields is None else int(fields[_START])


def end_of(processes: Iterable[Process], patience_s: float) -> None:
    """Wait until all are gone; after ``patience_s`` kill those that are not."""
    waiting = set(processes)
    deadline_s = time.monotonic() + patience_s
    while waiting := {process for process in waiting if is_alive(process)}:
        if time.monotonic() >= deadline_s:
            for pid, _ in waiting:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(_LOOK_AGAIN_S)


def is_alive(process: Process) -> bool:
    """Whether this very process lives."""
    pid, start = process
    fields = _stat(pid)
    return fields is not None and int(fields[_START]) == start


def is_stopped(pid: int) -> bool:
    """Whether a live process stands still until somebody has it go on (SIGSTOP), or traces it."""
    fields = _stat(pid)
    return fields is not None and fields[_STATE] in "Tt"


def spent_ticks(thread: int) -> int | None:
    """What a thread has had of a core so far, in the kernel's ticks; None for one that there is not."""
    fields = _stat(thread, f"task/{thread}")
    return None if fields is None else int(fields[_USER]) + int(fields[_SYSTEM])


def is_ready(thread: int) -> bool:
    """Whether a thread runs, or would if there were a core for it."""
    fields = _stat(thread, f"task/{thread}")
    return fields is not None and fields[_STATE] == "R"


def _stat(pid: int, of: str = "") -> list[str] | None:
    """The fields of a live process; one that only waits for its parent to notice its end (``Z``) is none."""
    try:
        # The command's name stands in brackets and may hold anything, spaces and brackets too.
        fields = (_PROC / str(pid) / of / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] == "Z" else fields
