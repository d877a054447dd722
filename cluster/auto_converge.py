"""Auto-converge and the dirty limit: how far a source is to slow the guest whose memory is being copied."""

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
        rate = live.fabric.rate(str(one.number))
        standing_still = live.settings.beside_handler(standing_still, rate, one.guest.vcpus)
    wanted = (standing_still, live.settings.dirty_limit_bytes_per_s)
    if wanted != one.slowed:
        one.slowed = wanted
        live.send(one.source, "slow", (one.number, one.order.vm, *wanted))
