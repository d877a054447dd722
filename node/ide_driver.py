"""A hypervisor's part in IDE: which packets belong to a stream, and when it is enabled, at both ends of a link.

It never sees a key: those go from the firmware to the root port, and sealed to the device. Each is a task for ``yield
from``. Source: PCI Express base specification, 7.9.26 (IDE extended capability).
"""

from __future__ import annotations

from collections.abc import Generator

from node import operations as op
from node.hypervisor_port import Answers, Batch, Task
from node.pci_driver import Function, extended_at
from tio.ide.capability import (
    BLOCKS_AT,
    CAPABILITY_ID,
    BlockRegister,
    address_words,
    control_word,
    requester_words,
)

AGGREGATION = 8
"""Packets under one MAC: as many as there may be."""


def associate(function: Function, stream_id: int) -> Task:
    """Set a stream up at a device and its root port, not yet enabled.

    At the root port the device's requests belong to it, and requests to the device's memory; at the device what it
    asks for itself.
    """
    window = function.port
    block = yield from _block(window.requester)
    words = requester_words(function.requester, function.requester | 0xFF)
    addresses = address_words(window.base, window.base + window.length - 1)
    yield (
        op.ConfigWrite(window.requester, block + BlockRegister.CONTROL, _control(stream_id, enable=False)),
        *[
            op.ConfigWrite(window.requester, block + BlockRegister.RID_1 + 4 * at, word)
            for at, word in enumerate(words)
        ],
        *[
            op.ConfigWrite(window.requester, block + BlockRegister.ADDRESS_1 + 4 * at, word)
            for at, word in enumerate(addresses)
        ],
    )
    block = yield from _block(function.requester)
    yield (op.ConfigWrite(function.requester, block + BlockRegister.CONTROL, _control(stream_id, enable=False)),)


def enable_streams(function: Function, stream_id: int) -> Task:
    """Enable a stream that has its keys, at both ends."""
    for requester in (function.port.requester, function.requester):
        block = yield from _block(requester)
        yield (op.ConfigWrite(requester, block + BlockRegister.CONTROL, _control(stream_id, enable=True)),)


def _control(stream_id: int, *, enable: bool) -> int:
    return control_word(stream_id, enable=enable, default=True, tee_limited=True, aggregation=AGGREGATION)


def _block(requester: int) -> Generator[Batch, Answers, int]:
    """Where the first selective stream's registers begin in a configuration space."""
    at = yield from extended_at(requester, CAPABILITY_ID)
    return at + BLOCKS_AT
