"""Codes of what a host writes into its digest chains."""

from __future__ import annotations

from enum import IntEnum


class HostEvent(IntEnum):
    """One kind of record; the two figures beside it depend on the kind."""

    ORDERED = 1
    ENTERED = 2
    REFUSED = 3
    DESTROYED = 4
    BATCH = 5
    """Operations in the batch, units of work so far."""
    PHASE = 6
    """Demand number, instructions of the phase."""
    PAUSED = 7
    STOPPED = 8
    """Shutdown code."""
    DEPARTED = 9
    ARRIVED = 10
