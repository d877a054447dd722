"""When hosts get other firmware: a scenario's orders in virtual time, and the images that go with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.agenda import Agenda, Turn
from cluster.scenario_firmware import FirmwareUpdatePlan, version_of
from node.firmware_levels import known_level
from node.product import Product
from psp.sev_firmware_image import SevFirmware, signed_image
from psp.tcb_version import TcbComponent

UPDATE, COMMIT = "firmware", "commit"
"""Kinds of messages to a host: an image, and nothing."""


@dataclass(slots=True)
class FirmwareUpdates:
    """Enters orders into the agenda; ``send`` takes a host, a kind and what goes with it."""

    agenda: Agenda
    send: Callable[[str, str, object], None]

    def add(self, plan: FirmwareUpdatePlan, host: str, product: Product) -> None:
        """Enter the orders to one host."""
        self._enter(plan.at, host, UPDATE, update_image(product, plan.to))
        if plan.commit_after is not None:
            self._enter(plan.at + plan.commit_after, host, COMMIT, b"")

    def _enter(self, time_ns: int, host: str, kind: str, body: bytes) -> None:
        self.agenda.enter(time_ns, Turn.UPDATES, self._order, (host, kind, body))

    def _order(self, order: tuple[str, str, bytes], _: int) -> None:
        self.send(*order)


def update_image(product: Product, version: str) -> bytes:
    """The image that the laboratory gives out for a product's version. KeyError for one that nobody has seen."""
    known = known_level(product.name, version_of(version))
    return signed_image(product.line.name, SevFirmware(known.version, known.svns.get(TcbComponent.SNP, 0)))
