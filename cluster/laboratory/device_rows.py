"""Rows of the attack matrix about devices: 70a to 88 without 82, which are the IOMMU's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.laboratory.interface import Interface
from cluster.laboratory.row import Row
from cluster.laboratory.scene import OTHER_CARD, OWN_CARD
from workloads.attacks import (
    bounce_buffers,
    crooked_device,
    dma,
    link,
    lock_breaking,
    peer,
    registers_moved,
    tdisp_misuse,
)

DEVICE_ROWS: Mapping[str, Row] = {
    "70a": Row((bounce_buffers.observe,), victim="depositor", card=OWN_CARD),
    "70b": Row((bounce_buffers.alter,), victim="depositor", card=OWN_CARD),
    "71a": Row((dma.read_and_write_by_device, dma.read_and_write_by_card), card=OWN_CARD),
    "71b": Row((dma.read_shared_by_device,), outbox_is_secret=True),
    "72": Row((crooked_device.impersonate,), victim="depositor", card=replace(OWN_CARD, maker=2)),
    "73": Row((crooked_device.update_firmware,), victim="depositor", card=OWN_CARD),
    "74a": Row((lock_breaking.move_bar,), victim="depositor", card=OWN_CARD),
    "74b": Row((lock_breaking.mask_interrupt,), victim="depositor", card=OWN_CARD, ways={"awaits": 1}),
    "75": Row(
        (tdisp_misuse.by_own_session, tdisp_misuse.by_commands), needs=Interface.TDISP, victim="depositor",
        card=OWN_CARD,
    ),
    "76": Row((link.alter, link.repeat, link.drop), victim="depositor", card=OWN_CARD),
    "77": Row((link.sniff,), victim="depositor", card=OWN_CARD),
    "78": Row((crooked_device.give_another,), victim="depositor", card=replace(OTHER_CARD, port=OWN_CARD.port)),
    "79": Row(
        (registers_moved.swap_pages, registers_moved.overlap_pages, registers_moved.map_another_device),
        victim="depositor", card=OWN_CARD,
    ),
    "80a": Row((lock_breaking.stop_interface,), needs=Interface.TDISP, victim="depositor", card=OWN_CARD),
    "80b": Row((lock_breaking.function_reset,), victim="depositor", card=OWN_CARD),
    "80c": Row((lock_breaking.bus_reset,), victim="depositor", card=OWN_CARD),
    "81": Row((peer.write,), victim="depositor", card=OWN_CARD, tenant_has_card=True),
    "83": Row((tdisp_misuse.program_keys,), needs=Interface.TDISP, victim="depositor", card=OWN_CARD),
    "84": Row(
        (crooked_device.read_what_is_left,), victim="depositor", card=OWN_CARD, ways={"wipes": 0, "detaches": 1}
    ),
    "85": Row((crooked_device.hand_over_old_evidence,), needs=Interface.TDISP, victim="depositor", card=OWN_CARD),
    "86": Row((link.reorder,), victim="depositor", card=OWN_CARD, ways={"polls": 1}),
    "87": Row((link.redirect,), victim="depositor", card=OWN_CARD),
    "88": Row((link.outlast,), victim="depositor", card=OWN_CARD, ways={"farewell": 1, "detaches": 2}),
}  # fmt: skip
"""By id of the matrix."""
