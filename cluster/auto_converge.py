"""Auto-converge, the dirty limit, and what the dirty log costs: how far a source is to slow a guest that is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.live_migration import LiveMigrations
    from cluster.migration import Migration


def slow_down(live: LiveMigrations, one: Migration) -> None:
    """Tell the source how far, where that has changed."""
    settings, precopy, guest, slowed = live.settings, one.precopy, one.guest, one.slowed
    assert precopy is not None
    assert guest is not None
    standing_still = precopy.throttle
    if guest.migration_handler and one.flow is not None:
        standing_still = settings.beside_handler(standing_still, one.flow.rate, guest.vcpus)
    if rounds := precopy.rounds:
        share = settings.log_share(rounds[-1].dirty_bytes_per_s, 1.0 - slowed[0], guest.vcpus)
        standing_still = 1.0 - (1.0 - standing_still) * (1.0 - share)
    wanted = (standing_still, settings.dirty_limit_bytes_per_s)
    if wanted != slowed:
        one.slowed = wanted
        live.send(one.source, "slow", (one.number, one.order.vm, *wanted))
