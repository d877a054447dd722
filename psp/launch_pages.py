"""What SNP_LAUNCH_UPDATE does with the contents of each page type (SEV-SNP firmware ABI, section 8.17)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psp.guest_context import IMI_EN, GuestContext
from psp.launch_digest import PageType
from psp.register_protection import TWEAK_BITMAP
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES

SECRETS_VERSION = 3
_SECRETS_HEAD = struct.Struct("<IIII16s")
SECRETS_VMPCKS_OFFSET = _SECRETS_HEAD.size
_TWEAK_BITMAP_OFFSET = 0x100
CPUID_MOST_ENTRIES = 64
_ZERO_PAGE = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class LaunchPageKind:
    """One page type; ``contents`` makes what is encrypted: of a guest, what the host laid there, and CPUID 1 EAX."""

    page_type: PageType
    contents: Callable[[GuestContext, bytes, int], bytes]


def _as_it_lies(_: GuestContext, page: bytes, __: int) -> bytes:
    return page


def _zeros(_: GuestContext, __: bytes, ___: int) -> bytes:
    return _ZERO_PAGE


def _secrets(guest: GuestContext, _: bytes, cpuid_1_eax: int) -> bytes:
    """Version, IMI bit, the part as CPUID names it, workaround bits, the four message keys, and registers to be masked.

    The TSC factor stays zero.
    """
    imi = bool(guest.flags & IMI_EN)
    head = _SECRETS_HEAD.pack(SECRETS_VERSION, imi, cpuid_1_eax, 0, guest.gosvw)
    first = (head + guest.vmpcks).ljust(_TWEAK_BITMAP_OFFSET, b"\0")
    return (first + TWEAK_BITMAP).ljust(PAGE_BYTES, b"\0")


def _cpuid(_: GuestContext, page: bytes, __: int) -> bytes:
    """The table's shape; values are ``psp.cpuid_check``'s."""
    if int.from_bytes(page[:4], "little") > CPUID_MOST_ENTRIES:
        raise PspError(Status.INVALID_PARAM)
    return page


LAUNCH_PAGES: Mapping[int, LaunchPageKind] = {
    kind.page_type: kind
    for kind in (
        LaunchPageKind(PageType.NORMAL, _as_it_lies),
        LaunchPageKind(PageType.VMSA, _as_it_lies),
        LaunchPageKind(PageType.ZERO, _zeros),
        LaunchPageKind(PageType.UNMEASURED, _as_it_lies),
        LaunchPageKind(PageType.SECRETS, _secrets),
        LaunchPageKind(PageType.CPUID, _cpuid),
    )
}
