"""Where the command ``sevfleet`` begins: Ctrl-C is understood from here on, also while the rest is still loaded."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> int:
    """Load the command line and run it; returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from cluster.cli import main as command  # noqa: PLC0415 - this is what takes its time
    finally:
        signal.signal(signal.SIGINT, before)
    return command()


def _leave(number: int, _: FrameType | None) -> None:
    """Nothing has begun, so there is nothing to end."""
    os._exit(128 + number)
