"""Secure TSC: a guest's own clock, which firmware sets and no hypervisor can (APM volume 2, 15.36.18; SNP ABI, 7.10).

A guest whose launch names a frequency has it. Firmware puts scale and offset into its first save areas after
they were measured; those that the guest makes itself it fills with what MSG_TSC_INFO says. That a guest without it is
told of a clock that nobody scales is the laboratory's choice, as is that its clock begins with the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at
from psp.guest_context import GuestContext
from psp.guest_requests import Request
from psp.status import PspError, Status

TSC_INFO_BYTES = 0x80
UNSCALED = 1 << 32
"""GUEST_TSC_SCALE has 32 bits behind its point, and 8 before."""
_MOST_SCALE = (1 << 40) - 1
_SCALE_OFFSET, _OFFSET_OFFSET = 0x2F0, 0x2F8
"""GUEST_TSC_SCALE and GUEST_TSC_OFFSET in a save area."""


@dataclass(frozen=True, slots=True)
class TscInfo(ByteLayout):
    """MSG_TSC_INFO_RSP. FACTOR: by how many parts of 100,000 the mean frequency is below the nominal one."""

    SIZE: ClassVar[int] = TSC_INFO_BYTES
    status: int = at(0x00, 4)
    scale: int = at(0x08, 8, UNSCALED)
    offset: int = at(0x10, 8)
    factor: int = at(0x18, 4)


def scale_of(desired_khz: int, host_khz: int) -> int:
    """GUEST_TSC_SCALE for a frequency. Raises PspError(INVALID_PARAM) for one that no scale gives."""
    scale = (desired_khz << 32) // host_khz
    if not 0 < scale <= _MOST_SCALE:
        raise PspError(Status.INVALID_PARAM)
    return scale


def with_clock(save_area: bytes, guest: GuestContext) -> bytes:
    """A save area of a guest with Secure TSC as firmware lays it."""
    clock = guest.tsc_scale.to_bytes(8, "little") + guest.tsc_offset.to_bytes(8, "little")
    return save_area[:_SCALE_OFFSET] + clock + save_area[_OFFSET_OFFSET + 8 :]


def tsc_info(request: Request) -> bytes:
    """The payload that answers MSG_TSC_INFO_REQ, whose payload is zeros."""
    if any(request.payload):
        return TscInfo(Status.INVALID_PARAM, scale=0).pack()
    guest = request.context
    return TscInfo(Status.SUCCESS, guest.tsc_scale or UNSCALED, guest.tsc_offset).pack()
