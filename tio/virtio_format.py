"""Numbers and layouts of paravirtual devices over memory-mapped registers.

Source: Virtual I/O Device (VIRTIO) version 1.2: device status 2.1, split virtqueues 2.7,
MMIO transport 4.2, network device 5.1, reserved feature bits 6.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAGIC = 0x7472_6976
"""``virt`` in little-endian order."""
VERSION = 2
NETWORK_DEVICE = 1
VENDOR = 0x5645_5346


class Register(IntEnum):
    """Registers by offset (4.2.2); all but configuration space are 32 bits wide and accessed whole."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class DeviceStatus(IntFlag):
    """The status register; storing 0 resets the device."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    """The device met something that it cannot go on from."""
    FAILED = 128


class Interrupt(IntFlag):
    """The interrupt status register."""

    USED_BUFFER = 1
    CONFIGURATION = 2


class Feature(IntEnum):
    """Feature bits by number."""

    NET_MTU = 3
    NET_MAC = 5
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    """The device reaches memory only as the platform lets it: drivers map buffers, and bounce them where they must."""


class DescriptorFlag(IntFlag):
    """Flags of a descriptor (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


DESCRIPTOR = struct.Struct("<QIHH")
"""Address, length, flags, next."""
RING_HEAD = struct.Struct("<HH")
"""Flags and index, at the start of both rings."""
AVAILABLE_ENTRY = struct.Struct("<H")
USED_ENTRY = struct.Struct("<II")
"""Head of the chain, bytes written into it."""
INDEX_OFFSET = 2

NET_HEADER = struct.Struct("<BBHHHHH")
"""Flags, GSO type, header length, GSO size, checksum start and offset, number of buffers (5.1.6)."""
NET_CONFIG = struct.Struct("<6sHHH")
"""MAC, status, queue pairs, MTU (5.1.4)."""


def available_bytes(size: int) -> int:
    """Length of the available ring of a queue with ``size`` entries, without the event field."""
    return RING_HEAD.size + size * AVAILABLE_ENTRY.size


def used_bytes(size: int) -> int:
    """Length of the used ring."""
    return RING_HEAD.size + size * USED_ENTRY.size
