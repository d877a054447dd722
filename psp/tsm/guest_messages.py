"""Guest messages about TDIs: what a guest asks the firmware of its device, 19 to 26 (``spec/tio/tio-overview.md``, 4).

Offsets within MMIO_CONFIG are uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.tsm.secure_device_entry import ENTRY_BYTES
from psp.tsm.status_records import DIGEST_BYTES


class TdiInfoStatus(IntEnum):
    """Of TDI_INFO."""

    BOUND = 0
    INVALID_DEVICE_ID = 1
    UNBOUND = 2


class MmioValidateStatus(IntEnum):
    """Of MMIO_VALIDATE, in the newer list; ``OLDER`` numbers the older one."""

    SUCCESS = 0
    INVALID_TDI = 1
    TDI_UNBOUND = 2
    NOT_ASSIGNED = 3
    """To this guest."""
    NOT_IO = 4
    """Memory, and no page of a device."""
    NOT_UNIFORM = 5
    """Some pages are validated and some are not."""
    IMMUTABLE = 6
    NOT_MAPPED = 7
    """The RMP has another guest-physical address for it."""
    NOT_REPORTED = 8
    OUT_OF_RANGE = 9
    NOT_4K = 10


OLDER = {
    MmioValidateStatus.NOT_IO: 3,
    MmioValidateStatus.NOT_UNIFORM: 4,
    MmioValidateStatus.IMMUTABLE: 5,
    MmioValidateStatus.NOT_MAPPED: 6,
    MmioValidateStatus.NOT_REPORTED: 7,
    MmioValidateStatus.OUT_OF_RANGE: 8,
    MmioValidateStatus.NOT_4K: 4,
}
"""An RFC's list, without codes 4 and 10. What it said in their places is a guess."""


class MmioConfigStatus(IntEnum):
    """Of MMIO_CONFIG. The sheet has the first and the last; those between follow MMIO_VALIDATE."""

    SUCCESS = 0
    INVALID_TDI = 1
    TDI_UNBOUND = 2
    NOT_REPORTED = 3
    COULD_NOT_CHANGE = 4


class SdteWriteStatus(IntEnum):
    """Of SDTE_WRITE."""

    SUCCESS = 0
    INVALID_TDI = 1
    TDI_UNBOUND = 2
    RESERVED_BITS = 3


class ValidateFlags(IntFlag):
    """What MMIO_VALIDATE asks, and, in its answer, whether anything is other than before."""

    VALIDATED = 1 << 0
    FORCE = 1 << 1
    CHANGED = 1 << 0


NON_TEE = 1 << 2
"""Flag of MMIO_CONFIG; the answer has all attributes of the range, as TDISP numbers them."""
WRITE = 1 << 0


@dataclass(frozen=True, slots=True)
class TdiInfoRequest(ByteLayout):
    """TIO_MSG_TDI_INFO_REQ."""

    SIZE: ClassVar[int] = 0x10
    guest_device_id: int = at(0x00, 2)


@dataclass(frozen=True, slots=True)
class TdiInfoResponse(ByteLayout):
    """TIO_MSG_TDI_INFO_RSP: against this the guest holds the blobs that the hypervisor hands it."""

    SIZE: ClassVar[int] = 0xC0
    guest_device_id: int = at(0x00, 2)
    status: int = at(0x02, 2)
    measurement_flags: int = at(0x10, 4)
    lock_flags: int = at(0x14, 4)
    algorithms: int = at(0x18, 8)
    certificates_digest: bytes = at(0x20, DIGEST_BYTES, bytes(DIGEST_BYTES))
    measurements_digest: bytes = at(0x50, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_digest: bytes = at(0x80, DIGEST_BYTES, bytes(DIGEST_BYTES))
    report_counter: int = at(0xB0, 8)


@dataclass(frozen=True, slots=True)
class MmioValidateRequest(ByteLayout):
    """TIO_MSG_MMIO_VALIDATE_REQ: pages from a guest-physical address on, and from a page of a reported range on."""

    SIZE: ClassVar[int] = 0x30
    guest_device_id: int = at(0x00, 2)
    subrange_base: int = at(0x10, 8)
    page_count: int = at(0x18, 4)
    range_offset: int = at(0x1C, 4)
    flags: int = at(0x20, 2)
    range_id: int = at(0x22, 2)


@dataclass(frozen=True, slots=True)
class MmioValidateResponse(ByteLayout):
    """TIO_MSG_MMIO_VALIDATE_RSP."""

    SIZE: ClassVar[int] = 0x30
    guest_device_id: int = at(0x00, 2)
    status: int = at(0x02, 2)
    subrange_base: int = at(0x10, 8)
    page_count: int = at(0x18, 4)
    range_offset: int = at(0x1C, 4)
    flags: int = at(0x20, 2)
    range_id: int = at(0x22, 2)


@dataclass(frozen=True, slots=True)
class MmioConfigRequest(ByteLayout):
    """TIO_MSG_MMIO_CONFIG_REQ."""

    SIZE: ClassVar[int] = 0x10
    guest_device_id: int = at(0x00, 2)
    flags: int = at(0x04, 2)
    range_id: int = at(0x06, 2)
    write: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class MmioConfigResponse(ByteLayout):
    """TIO_MSG_MMIO_CONFIG_RSP."""

    SIZE: ClassVar[int] = 0x10
    guest_device_id: int = at(0x00, 2)
    status: int = at(0x02, 2)
    flags: int = at(0x04, 2)
    range_id: int = at(0x06, 2)
    write: int = at(0x08, 4)


@dataclass(frozen=True, slots=True)
class SdteWriteRequest(ByteLayout):
    """TIO_MSG_SDTE_WRITE_REQ."""

    SIZE: ClassVar[int] = 0x50
    guest_device_id: int = at(0x00, 2)
    entry: bytes = at(0x10, ENTRY_BYTES, bytes(ENTRY_BYTES))


@dataclass(frozen=True, slots=True)
class SdteWriteResponse(ByteLayout):
    """TIO_MSG_SDTE_WRITE_RSP."""

    SIZE: ClassVar[int] = 0x10
    guest_device_id: int = at(0x00, 2)
    status: int = at(0x02, 2)
