"""Rows of the attack matrix about devices: 70a to 88 without 82, which are the IOMMU's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.laboratory.row import Row
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD
from workloads.attacks import bounce_buffers, crooked_device, dma, link

DEVICE_ROWS: Mapping[str, Row] = {
    "70a": Row((bounce_buffers.observe,), victim="depositor", card=OWN_CARD),
    "70b": Row((bounce_buffers.alter,), victim="depositor", card=OWN_CARD),
    "71a": Row((dma.read_and_write_by_device,)),
    "71b": Row((dma.read_shared_by_device,), outbox_is_secret=True),
    "72": Row((crooked_device.impersonate,), victim="depositor", card=replace(OWN_CARD, maker=2)),
    "73": Row((crooked_device.update_firmware,), victim="depositor", card=OWN_CARD),
    "76": Row((link.alter, link.repeat, link.drop), victim="depositor", card=OWN_CARD),
    "77": Row((link.sniff,), victim="depositor", card=OWN_CARD),
    "78": Row((crooked_device.give_another,), victim="depositor", card=replace(OTHER_CARD, port=OWN_CARD.port)),
}
"""By id of the matrix."""
