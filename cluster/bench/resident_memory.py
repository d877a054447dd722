"""How much memory this process has in use, or had, as its kernel says."""

from __future__ import annotations

import resource
from pathlib import Path


def resident_bytes() -> int:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most that was resident since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
