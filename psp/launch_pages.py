"""What SNP_LAUNCH_UPDATE does with the contents of each page type (SEV-SNP firmware ABI, section 8.17)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psp.guest_context import GuestContext
from psp.launch_digest import PageType
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES

SECRETS_VERSION = 3
_SECRETS_HEAD = struct.Struct("<IIII16s")
SECRETS_VMPCKS_OFFSET = _SECRETS_HEAD.size
_CPUID_MOST_ENTRIES = 64
_CPUID_HEAD_BYTES = 16
_CPUID_ENTRY = struct.Struct("<IIQQIIIIQ")
_ENCRYPTION_LEAF = 0x8000_001F
_SNP_GUEST = 1 << 1 | 1 << 3 | 1 << 4
"""EAX of the leaf in an SNP guest: SEV, SEV-ES and SEV-SNP (APM volume 3, appendix E)."""
_ZERO_PAGE = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class LaunchPageKind:
    """One page type; ``contents`` makes what is encrypted of what the host laid there.

    It is told the place of the processor's C-bit.
    """

    page_type: PageType
    contents: Callable[[GuestContext, bytes, int], bytes]


def _as_it_lies(_: GuestContext, page: bytes, __: int) -> bytes:
    return page


def _zeros(_: GuestContext, __: bytes, ___: int) -> bytes:
    return _ZERO_PAGE


def _secrets(guest: GuestContext, _: bytes, __: int) -> bytes:
    """Version, workaround bits and the four message keys. IMI bit, CPU model and TSC factor stay zero."""
    head = _SECRETS_HEAD.pack(SECRETS_VERSION, 0, 0, 0, guest.gosvw)
    return (head + guest.vmpcks).ljust(PAGE_BYTES, b"\0")


def _cpuid(_: GuestContext, page: bytes, c_bit: int) -> bytes:
    """Shape, and the leaf of encryption where it is there: other values are taken as the host gives them.

    That which values a processor cannot have is for firmware to know; of this one a guest's secrets hang.
    """
    count = int.from_bytes(page[:4], "little")
    if count > _CPUID_MOST_ENTRIES:
        raise PspError(Status.INVALID_PARAM)
    for at in range(_CPUID_HEAD_BYTES, _CPUID_HEAD_BYTES + count * _CPUID_ENTRY.size, _CPUID_ENTRY.size):
        function, _index, _xcr0, _xss, eax, ebx, *_rest = _CPUID_ENTRY.unpack_from(page, at)
        if function == _ENCRYPTION_LEAF and (eax & _SNP_GUEST != _SNP_GUEST or ebx & 0x3F != c_bit):
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
