"""The machine we run on: its cores, its memory, and what a process holds of it.

Memory is read from the kernel; None where it does not tell.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_PROC = Path("/proc")
_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def held_bytes() -> int | None:
    """This process's share of memory: pages that several processes map count in parts (PSS, proc_pid_smaps(5))."""
    return _field("self/smaps_rollup", "Pss")


def free_bytes() -> int | None:
    """What new processes may take before the machine, or the control group we are in, has none left."""
    machine = _field("meminfo", "MemAvailable")
    try:
        most, used = ((_GROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        group = int(most) - int(used)
    except (OSError, ValueError):  # no control group, or one without a bound ("max")
        return machine
    return group if machine is None else min(machine, group)


def _field(file: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", (_PROC / file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) << 10
