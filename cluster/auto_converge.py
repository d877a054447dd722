"""Auto-converge, the dirty limit, and what the dirty log costs: how far a source is to slow a guest that is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations
    from cluster.migration import Migration


def slow_down(live: LiveMigrations, one: Migration) -> None:
    """Tell the source how far, where that has changed."""
    assert one.precopy is not None
    assert one.guest is not None
    standing_still = one.precopy.throttle
    if one.guest.migration_handler and one.flows:
        rate = live.fabric.rate(one.number)
        standing_still = live.settings.beside_handler(standing_still, rate, one.guest.vcpus)
    if one.precopy.rounds:
        last, pace = one.precopy.rounds[-1], 1.0 - one.slowed[0]
        share = live.settings.log_share(last.dirty_bytes_per_s, pace, one.guest.vcpus)
        standing_still = 1.0 - (1.0 - standing_still) * (1.0 - share)
    wanted = (standing_still, live.settings.dirty_limit_bytes_per_s)
    if wanted != one.slowed:
        one.slowed = wanted
        live.send(one.source, "slow", (one.number, one.order.vm, *wanted))
