"""Command buffers of SEV-TIO, D0 to E4: offsets as AMD's patches for Linux have them (``spec/tio/tio-overview.md``, 3).

Each begins with its own length. Fields ``device``, ``tdi`` and the four of the exchange are scatter-list addresses
(``scatter_list``); all others are system-physical addresses or numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at

FORCE = 1 << 0
"""Flag of TIO_DEV_DISCONNECT and TIO_TDI_UNBIND: the device is not asked."""
RAW_BIT_STREAM = 1 << 0
"""Flag of TIO_DEV_MEASUREMENTS: bit streams in the place of digests."""
RUN = 1 << 0
"""Run flag of TIO_TDI_BIND: start what is locked."""
TRAFFIC_CLASSES = 8
NONCE_BYTES = 32
INTERFACE_ID_BYTES = 12


@dataclass(frozen=True, slots=True)
class TioOrder(ByteLayout):
    """What every buffer begins with."""

    length: int = at(0x00, 4)
    flags: int = at(0x04, 4)


@dataclass(frozen=True, slots=True)
class SpdmOrder(TioOrder):
    """A command that may need its device: where packets go out and answers come in, work space, and the result."""

    request: int = at(0x08, 8)
    response: int = at(0x10, 8)
    scratch: int = at(0x18, 8)
    output: int = at(0x20, 8)


@dataclass(frozen=True, slots=True)
class TioStatus(TioOrder):
    """TIO_STATUS."""

    SIZE: ClassVar[int] = 0x10
    address: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class TioInit(TioOrder):
    """TIO_INIT."""

    SIZE: ClassVar[int] = 0x10


@dataclass(frozen=True, slots=True)
class DeviceCreate(TioOrder):
    """TIO_DEV_CREATE: ``requester`` is function 0 of the device, ``root_port`` the port's number as LNKCAP says it."""

    SIZE: ClassVar[int] = 0x20
    device: int = at(0x08, 8)
    requester: int = at(0x10, 2)
    root_port: int = at(0x12, 2)
    segment: int = at(0x14, 1)


@dataclass(frozen=True, slots=True)
class DeviceReclaim(TioOrder):
    """TIO_DEV_RECLAIM."""

    SIZE: ClassVar[int] = 0x10
    device: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class DeviceConnect(SpdmOrder):
    """TIO_DEV_CONNECT: ``stream_ids`` has a byte for each traffic class, which counts if its bit is in ``tc_mask``."""

    SIZE: ClassVar[int] = 0x50
    device: int = at(0x30, 8)
    tc_mask: int = at(0x38, 1)
    certificate_slot: int = at(0x39, 1)
    stream_ids: bytes = at(0x40, TRAFFIC_CLASSES, bytes(TRAFFIC_CLASSES))


@dataclass(frozen=True, slots=True)
class DeviceOrder(SpdmOrder):
    """TIO_DEV_DISCONNECT, TIO_DEV_CERTIFICATES, TIO_ROLL_KEY."""

    SIZE: ClassVar[int] = 0x30
    device: int = at(0x28, 8)


@dataclass(frozen=True, slots=True)
class DeviceStatus(TioOrder):
    """TIO_DEV_STATUS."""

    SIZE: ClassVar[int] = 0x20
    device: int = at(0x08, 8)
    address: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class DeviceMeasurements(SpdmOrder):
    """TIO_DEV_MEASUREMENTS."""

    SIZE: ClassVar[int] = 0x50
    device: int = at(0x28, 8)
    nonce: bytes = at(0x30, NONCE_BYTES, bytes(NONCE_BYTES))


@dataclass(frozen=True, slots=True)
class TdiCreate(TioOrder):
    """TIO_TDI_CREATE."""

    SIZE: ClassVar[int] = 0x30
    device: int = at(0x08, 8)
    tdi: int = at(0x10, 8)
    interface_id: bytes = at(0x18, INTERFACE_ID_BYTES, bytes(INTERFACE_ID_BYTES))


@dataclass(frozen=True, slots=True)
class TdiReclaim(TioOrder):
    """TIO_TDI_RECLAIM."""

    SIZE: ClassVar[int] = 0x20
    device: int = at(0x08, 8)
    tdi: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class TdiBind(SpdmOrder):
    """TIO_TDI_BIND: ``lock_flags`` are those of LOCK_INTERFACE_REQUEST."""

    SIZE: ClassVar[int] = 0x50
    device: int = at(0x28, 8)
    tdi: int = at(0x30, 8)
    gctx: int = at(0x38, 8)
    guest_device_id: int = at(0x40, 2)
    lock_flags: int = at(0x42, 2)
    run_flags: int = at(0x44, 2)


@dataclass(frozen=True, slots=True)
class TdiOrder(SpdmOrder):
    """TIO_TDI_UNBIND, TIO_TDI_REPORT."""

    SIZE: ClassVar[int] = 0x40
    device: int = at(0x28, 8)
    tdi: int = at(0x30, 8)
    gctx: int = at(0x38, 8)


@dataclass(frozen=True, slots=True)
class TdiStatus(SpdmOrder):
    """TIO_TDI_STATUS."""

    SIZE: ClassVar[int] = 0x40
    device: int = at(0x28, 8)
    tdi: int = at(0x30, 8)
    address: int = at(0x38, 8)


@dataclass(frozen=True, slots=True)
class TioGuestRequest(SpdmOrder):
    """TIO_GUEST_REQUEST: a guest's message about a TDI, and where the answer goes."""

    SIZE: ClassVar[int] = 0x50
    device: int = at(0x28, 8)
    tdi: int = at(0x30, 8)
    gctx: int = at(0x38, 8)
    message: int = at(0x40, 8)
    answer: int = at(0x48, 8)


@dataclass(frozen=True, slots=True)
class FenceClear(TioOrder):
    """TIO_ASID_FENCE_CLEAR."""

    SIZE: ClassVar[int] = 0x20
    device: int = at(0x08, 8)
    gctx: int = at(0x10, 8)


@dataclass(frozen=True, slots=True)
class FenceStatus(TioOrder):
    """TIO_ASID_FENCE_STATUS; the address is not aligned."""

    SIZE: ClassVar[int] = 0x20
    device: int = at(0x08, 8)
    asid: int = at(0x10, 4)
    address: int = at(0x14, 8)


@dataclass(frozen=True, slots=True)
class TdiInfo(TioOrder):
    """TIO_TDI_INFO."""

    SIZE: ClassVar[int] = 0x30
    device: int = at(0x08, 8)
    tdi: int = at(0x10, 8)
    address: int = at(0x18, 8)
