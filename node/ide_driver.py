"""A hypervisor's part in IDE: which packets belong to a stream, and when it is enabled, at both ends of a link.

It never sees a key: those go from the firmware to the root port, and sealed to the device. Each is a task for ``yield
from``. Source: PCI Express base specification, 7.9.26 (IDE extended capability); Linux include/uapi/linux/pci_regs.h.
"""

from __future__ import annotations

from collections.abc import Generator

from node import operations as op
from node.hypervisor_port import Answers, Batch, Task
from node.pci_driver import IDE_CAPABILITY, Function, extended_at

_CAPABILITY, _FIRST_BLOCK = 0x04, 0x0C
_LINK_IDE, _LINK_BLOCKS_SHIFT, _LINK_BLOCKS, _LINK_BLOCK_BYTES = 1 << 0, 13, 0b111, 8
_BLOCK_CONTROL, _BLOCK_RID_LIMIT, _BLOCK_RID_BASE, _BLOCK_ADDRESSES = 0x04, 0x0C, 0x10, 0x14
_ENABLE, _DEFAULT_STREAM, _TEE_LIMITED, _STREAM_ID_SHIFT = 1 << 0, 1 << 22, 1 << 23, 24
_RID_SHIFT, _VALID = 8, 1 << 0
_ADDRESS_SHIFT, _LIMIT_SHIFT = 20, 20


def associate(function: Function, stream_id: int) -> Task:
    """Set a stream up at a device and its root port, not yet enabled: the device's requests, and its memory."""
    first, last = function.requester, function.requester | 0xFF
    addresses = function.port.base, function.port.base + function.port.length - 1
    for requester, held in ((function.requester, (0, 0)), (function.port.port, (first, last))):
        block = yield from _block(requester)
        # At the device what comes from the root port belongs to the stream by default.
        rids = (0, 0xFFFF) if requester == function.requester else held
        yield (
            op.ConfigWrite(requester, block + _BLOCK_CONTROL, _control(stream_id)),
            op.ConfigWrite(requester, block + _BLOCK_RID_LIMIT, rids[1] << _RID_SHIFT),
            op.ConfigWrite(requester, block + _BLOCK_RID_BASE, rids[0] << _RID_SHIFT | _VALID),
        )
        if requester == function.port.port:
            yield from _hold_addresses(requester, block, addresses)


def enable_streams(function: Function, stream_id: int) -> Task:
    """Enable a stream that has its keys, at both ends."""
    for requester in (function.requester, function.port.port):
        block = yield from _block(requester)
        yield (op.ConfigWrite(requester, block + _BLOCK_CONTROL, _control(stream_id) | _ENABLE),)


def _control(stream_id: int) -> int:
    return stream_id << _STREAM_ID_SHIFT | _TEE_LIMITED | _DEFAULT_STREAM


def _hold_addresses(requester: int, block: int, addresses: tuple[int, int]) -> Task:
    first, last = addresses
    low = (first >> _ADDRESS_SHIFT & 0xFFF) << 8 | (last >> _ADDRESS_SHIFT & 0xFFF) << _LIMIT_SHIFT | _VALID
    at = block + _BLOCK_ADDRESSES
    yield (
        op.ConfigWrite(requester, at, low),
        op.ConfigWrite(requester, at + 4, last >> 32),
        op.ConfigWrite(requester, at + 8, first >> 32),
    )


def _block(requester: int) -> Generator[Batch, Answers, int]:
    """Where the first selective stream's registers begin in a configuration space."""
    at = yield from extended_at(requester, IDE_CAPABILITY)
    (capability,) = yield (op.ConfigRead(requester, at + _CAPABILITY),)
    links = 0
    if isinstance(capability, int) and capability & _LINK_IDE:
        links = (capability >> _LINK_BLOCKS_SHIFT & _LINK_BLOCKS) + 1
    return at + _FIRST_BLOCK + links * _LINK_BLOCK_BYTES
