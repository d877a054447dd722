"""The result rows of guests' frames between hosts."""

from __future__ import annotations

from cluster.guest_traffic import GuestTraffic
from cluster.layout import Row


def traffic_rows(traffic: GuestTraffic) -> list[Row]:
    """Rows of the table ``traffic``."""
    return [
        {
            "source": source,
            "destination": destination,
            "frames": pair.frames,
            "bytes": pair.bytes,
            "lost": pair.lost,
            "transfer_mean_ns": pair.transfer_ns / pair.delivered if pair.delivered else None,
            "transfer_longest_ns": pair.longest_ns if pair.delivered else None,
        }
        for (source, destination), pair in traffic.pairs.items()
    ]
