"""How far a run has come, as the driver tells it about once a second of wall time.

Never part of results: it says how this run goes, not what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.migration_figures import MigrationFigures

NO_MIGRATIONS = MigrationFigures()


@dataclass(frozen=True, slots=True)
class Progress:
    """One glance at a running simulation."""

    virtual_ns: int
    duration_ns: int
    round_trips: int = 0
    """How often hosts waited for one another; never, where all are in one process."""
    control_plane_acts: int = 0
    events: int = 0
    machines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Virtual machines by (state, generation)."""
    gauges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Each host's ``Entity.gauges()``, by host."""
    migrations: MigrationFigures = NO_MIGRATIONS
    vmi_phases: Mapping[str, str] = field(default_factory=dict)
    """Of each machine that does not run what KubeVirt calls that."""
    note: str = ""
    """What the driver is busy with, where it is not simulating: "starting Ray"."""
    troubles: tuple[str, ...] = ()
    """What is out of the ordinary: workers that are late, or lost and replaced."""


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], str | None]
"""Asked at least once a second: why the run should end now, with what it has; None to go on."""
