"""When hosts get other firmware: a scenario's orders in virtual time, and the images that go with them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.scenario_firmware import FirmwareUpdatePlan, version_of
from node.firmware_levels import known_level
from node.product import Product
from psp.sev_firmware_image import SevFirmware, signed_image
from psp.tcb_version import TcbComponent

UPDATE, COMMIT = "firmware", "commit"
"""Kinds of messages to a host: an image, and nothing."""


@dataclass(slots=True)
class FirmwareUpdates:
    """The timeline of orders; ``send`` takes a host, a kind and what goes with it."""

    send: Callable[[str, str, object], None]
    timeline: list[tuple[int, int, str, str, bytes]] = field(default_factory=list)
    """What goes out, and when: a heap of (time, entry, host, kind, body)."""
    _entries: int = 0

    def add(self, plan: FirmwareUpdatePlan, host: str, product: Product) -> None:
        """Enter the orders to one host."""
        self._enter(plan.at, host, UPDATE, update_image(product, plan.to))
        if plan.commit_after is not None:
            self._enter(plan.at + plan.commit_after, host, COMMIT, b"")

    def advance(self, now_ns: int) -> None:
        """Send what is due."""
        while self.timeline and self.timeline[0][0] <= now_ns:
            _, _, host, kind, body = heapq.heappop(self.timeline)
            self.send(host, kind, body)

    def _enter(self, time_ns: int, host: str, kind: str, body: bytes) -> None:
        self._entries += 1
        heapq.heappush(self.timeline, (time_ns, self._entries, host, kind, body))


def update_image(product: Product, version: str) -> bytes:
    """The image that the laboratory gives out for a product's version. KeyError for one that nobody has seen."""
    known = known_level(product.name, version_of(version))
    return signed_image(product.line.name, SevFirmware(known.version, known.svns.get(TcbComponent.SNP, 0)))
