"""What TIO_STATUS, TIO_DEV_STATUS, TIO_TDI_STATUS and TIO_TDI_INFO write (``spec/tio/tio-overview.md``, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from psp.byte_layout import ByteLayout, at

DIGEST_BYTES = 48
TIO_ENABLED = 1 << 0
TIO_INIT_DONE = 1 << 1
REQUEST_PENDING = 1 << 0
PENDING_IS_TDI = 1 << 1
DIGEST_VALID = 1 << 0
DIGEST_FRESH = 1 << 1
NO_FW_UPDATE = 1 << 1
TDI_STATUS_SHIFT = 2
"""TIO_TDI_INFO says in bits 3:2 of its flags whether a TDI is unbound (0), locked (1) or runs (2)."""


def measurement_flags(digest: bytes, *, fresh: bool) -> int:
    """What records say of a device's measurements."""
    return DIGEST_VALID * bool(digest) | DIGEST_FRESH * (bool(digest) and fresh)


class DeviceState(IntEnum):
    """CTX_STATE of TIO_DEV_STATUS. The numbers are the laboratory's: no text at hand has them."""

    CREATED = 0
    CONNECTED = 1


@dataclass(frozen=True, slots=True)
class TioStatusRecord(ByteLayout):
    """What TIO_STATUS writes: the shortest and longest buffers of each kind, and how long contexts are."""

    SIZE: ClassVar[int] = 0x40
    length: int = at(0x00, 4)
    flags: int = at(0x04, 4)
    request_min: int = at(0x08, 4)
    request_max: int = at(0x0C, 4)
    scratch_min: int = at(0x10, 4)
    scratch_max: int = at(0x14, 4)
    output_min: int = at(0x18, 4)
    output_max: int = at(0x1C, 4)
    response_min: int = at(0x20, 4)
    response_max: int = at(0x24, 4)
    device_context_bytes: int = at(0x28, 4)
    tdi_context_bytes: int = at(0x2C, 4)
    algorithms: int = at(0x30, 4)


@dataclass(frozen=True, slots=True)
class DeviceStatusRecord(ByteLayout):
    """What TIO_DEV_STATUS writes. ``pending`` is a command's number, ``pending_interface`` the TDI that it is about."""

    SIZE: ClassVar[int] = 0xA0
    length: int = at(0x00, 4)
    state: int = at(0x04, 1)
    flags: int = at(0x06, 1)
    certificate_slot: int = at(0x07, 1)
    requester: int = at(0x08, 2)
    segment: int = at(0x0A, 1)
    tc_mask: int = at(0x0B, 1)
    pending: int = at(0x0C, 2)
    pending_interface: bytes = at(0x10, 12, bytes(12))
    more_flags: int = at(0x1C, 4)
    stream_ids: bytes = at(0x20, 8, bytes(8))
    certificates_digest: bytes = at(0x30, DIGEST_BYTES, bytes(DIGEST_BYTES))
    measurements_digest: bytes = at(0x60, DIGEST_BYTES, bytes(DIGEST_BYTES))
    tdi_count: int = at(0x90, 4)
    bound_tdi_count: int = at(0x94, 4)
    algorithms: int = at(0x98, 8)


@dataclass(frozen=True, slots=True)
class TdiStatusRecord(ByteLayout):
    """What TIO_TDI_STATUS writes: the state that the device says, as TDISP numbers it.

    How long the record is, and that its length comes first, is taken from its neighbours.
    """

    SIZE: ClassVar[int] = 0x10
    length: int = at(0x00, 4)
    state: int = at(0x04, 1)


@dataclass(frozen=True, slots=True)
class TdiInfoRecord(ByteLayout):
    """What TIO_TDI_INFO writes."""

    SIZE: ClassVar[int] = 0xC0
    length: int = at(0x00, 4)
    interface_id: bytes = at(0x04, 12, bytes(12))
    flags: int = at(0x10, 4)
    lock_flags: int = at(0x14, 4)
    algorithms: int = at(0x18, 8)
    certificates_digest: bytes = at(0x20, DIGEST_BYTES, bytes(DIGEST_BYTES))
    measurements_digest: bytes = at(0x50, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_digest: bytes = at(0x80, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_counter: int = at(0xB0, 8)
    asid: int = at(0xB8, 4)
