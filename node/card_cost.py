"""What cards' own transfers cost: time on the link, and what IDE adds to each packet of it.

Arithmetic on framing, for nobody has published a measurement: a payload in packets of one size, each with a header, and
under IDE a prefix for each and a MAC for each aggregate (``spec/tio/ide.md``, section 5). Reads and writes count alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class CardTraffic:
    """Bytes that cards have read and written since somebody last took the account, in the clear and trusted."""

    clear_bytes: int = 0
    trusted_bytes: int = 0

    def note(self, length: int, *, tee: bool) -> None:
        """A request of so many bytes."""
        if tee:
            self.trusted_bytes += length
        else:
            self.clear_bytes += length


class CardCost:
    """Prices of transfers under a cost table."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        payload, rate = costs["pcie.payload_bytes"], costs["pcie.link_bytes_per_s"]
        packet_ns = 1e9 / rate / payload
        # A table in which protection is free says nothing of packets, and of no bytes of a MAC either.
        together = max(1.0, costs["ide.packets_per_mac"])
        self._byte_ns = packet_ns * (payload + costs["pcie.packet_bytes"])
        self._ide_byte_ns = packet_ns * (costs["ide.prefix_bytes"] + costs["ide.mac_bytes"] / together)

    def transfer_ns(self, traffic: CardTraffic) -> tuple[float, float]:
        """Nanoseconds of the link for what moved, and beside them what IDE adds."""
        moved = traffic.clear_bytes + traffic.trusted_bytes
        return moved * self._byte_ns, traffic.trusted_bytes * self._ide_byte_ns
